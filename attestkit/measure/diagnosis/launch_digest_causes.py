"""Causes of a differing launch digest of an SEV-SNP guest, found by trying other inputs."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple, get_args

from attestkit._crypto.hashes import sha384
from attestkit.attestation.launch.snp import VMSA_GPA, VMSA_PAGE, cpu_signature, extend_page
from attestkit.errors import FormatError, UsageError
from attestkit.measure.diagnosis.difference import Cause, CauseName
from attestkit.measure.sev_snp.launch_digest import (
    IDENTITIES,
    KernelFiles,
    SnpMachine,
    Vmm,
    compute_launch_digest,
    initial_vmsa,
)
from attestkit.measure.sev_snp.sev_metadata import read_sev_metadata

_MOST_VCPUS: Final = 512
_FEATURES: Final = (0x1, 0x21)  # without and with debug swap
# The first name of a signature is that without a version.
_SIGNATURES: Final = {cpu_signature(*IDENTITIES[name]): name for name in reversed(IDENTITIES)}


@dataclass(frozen=True, kw_only=True)
class SnpInputs:
    """Inputs of the expected launch digest.

    Attributes:
        firmware: Image of OVMF.
        machine: Virtual CPUs and VMM.
        kernel: Files whose hashes QEMU gives the firmware; None if it gives none.
    """

    firmware: bytes
    machine: SnpMachine
    kernel: KernelFiles | None = None


class _Variant(NamedTuple):
    """Inputs to try (`machine`, `kernel`), and the cause if they give the digest in the report."""

    name: CauseName
    text: str
    value: int | str
    machine: SnpMachine
    kernel: KernelFiles | None


def find_launch_cause(inputs: SnpInputs | None, digest: bytes) -> Cause:
    """Return why the launch digest in a report differs from the expected one.

    Up to 512 vCPUs are tried with each variant of the inputs, in 2 s.

    Args:
        inputs: Inputs of the expected digest; None: unknown, then the cause is not proven.
        digest: Launch digest in the report, 48 bytes.
    """
    text = "firmware, vCPUs, CPU type, guest features, or hashes of the kernel"
    if inputs is None:
        return Cause("launch_inputs", text)
    for variant in _variants(inputs):
        count = _find_vcpus(inputs.firmware, variant, digest)
        if count is None:
            continue
        if count == inputs.machine.vcpus:
            return Cause.found(variant.name, variant.text, variant.value)
        many = f"the guest has {count} vCPUs, expected {inputs.machine.vcpus}"
        if variant.name == "cpu_count":
            return Cause.found("cpu_count", many, count)
        return Cause.found("several_properties", f"{many}; {variant.text}")
    return Cause("launch_inputs", text)


def _variants(inputs: SnpInputs) -> Iterator[_Variant]:
    """Yield the expected inputs, and inputs in which one differs from the expected one."""
    machine, kernel = inputs.machine, inputs.kernel
    yield _Variant("cpu_count", "", machine.vcpus, machine, kernel)
    for features in _FEATURES:
        if features != machine.guest_features:
            text = f"guest features {features:#x}, expected {machine.guest_features:#x}"
            other = machine._replace(guest_features=features)
            yield _Variant("guest_features", text, features, other, kernel)
    for signature, name in _SIGNATURES.items():
        if signature != machine.cpu_signature and machine.vmm == "qemu":
            other = machine._replace(cpu_signature=signature)
            yield _Variant("cpu_type", f"the CPU type is {name}", name, other, kernel)
    if kernel is not None:
        text = "the VMM did not give the firmware hashes of the kernel"
        yield _Variant("kernel_hashes", text, 0, machine, None)
    for vmm in get_args(Vmm):
        if vmm != machine.vmm:
            yield _Variant("vmm", f"the VMM is {vmm}", vmm, machine._replace(vmm=vmm), kernel)


def _find_vcpus(firmware: bytes, variant: _Variant, digest: bytes) -> int | None:
    """Return the number of vCPUs, 1 to 512, with which a variant gives the digest; else None.

    `firmware` is the image of OVMF, `digest` the launch digest in the report.
    """
    machine = variant.machine
    try:
        current = compute_launch_digest(firmware, machine._replace(vcpus=1), variant.kernel)
        eip = read_sev_metadata(firmware).reset_eip
    except (FormatError, UsageError):
        return None
    if current == digest:
        return 1
    if eip is None:
        return None
    contents = sha384(initial_vmsa(eip, machine.cpu_signature, machine.guest_features, machine.vmm))
    for count in range(2, _MOST_VCPUS + 1):
        current = extend_page(current, VMSA_PAGE, VMSA_GPA, contents)
        if current == digest:
            return count
    return None
