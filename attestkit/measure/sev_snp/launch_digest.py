"""Launch digest of an SEV-SNP guest: pages of firmware and metadata, and the vCPUs' save areas.

SEV Secure Nested Paging Firmware ABI, 8.17.2. VMMs differ in page types, order and registers.
"""

from collections.abc import Iterator
from typing import Final, Literal, NamedTuple

from attestkit._crypto.hashes import sha256, sha384
from attestkit._outcomes.reasons import FormatReason, UsageReason
from attestkit._sanitize import near, shown
from attestkit.attestation.launch.snp import (
    CPU_IDENTITIES,
    NORMAL_PAGE,
    RESET_VECTOR,
    VMSA_GPA,
    VMSA_PAGE,
    CpuState,
    OvmfSection,
    Segment,
    build_vmsa,
    cpu_signature,
    extend_page,
    kernel_hash_table,
    reset_state,
)
from attestkit.errors import FormatError, UsageError
from attestkit.measure.expected import Basis
from attestkit.measure.firmware.guid_table import MAX_IMAGE
from attestkit.measure.kernel.kernel_events import check_cmdline
from attestkit.measure.sev_snp import sev_metadata

Vmm = Literal["qemu", "ec2", "gce"]
"""QEMU, Amazon EC2, Google Compute Engine."""

IDENTITIES: Final = CPU_IDENTITIES | {
    "epyc-v5": (23, 1, 2),
    "epyc-rome-v4": (23, 49, 0),
    "epyc-rome-v5": (23, 49, 0),
    "epyc-milan-v3": (25, 1, 1),
    "epyc-genoa-v2": (25, 17, 0),
    "epyc-turin": (26, 0, 0),
    "epyc-turin-v1": (26, 0, 0),
}
"""Family, model and stepping by CPU type of QEMU, in lower case."""

_CLOUD_RDX: Final = 0x600  # EC2 and GCE set no CPU signature


def find_cpu_signature(cpu_type: str) -> int:
    """Return EAX of CPUID function 1 of a CPU type of QEMU, such as `EPYC-Milan-v2`.

    Raises:
        UsageError: If the type is unknown.
    """
    identity = IDENTITIES.get(cpu_type.strip().lower())
    if identity is None:
        hint = near(cpu_type, IDENTITIES)
        raise UsageError(f"CPU type: unknown: {shown(cpu_type)}{hint}", reason="unknown_name")
    return cpu_signature(*identity)


def initial_vmsa(eip: int, signature: int, guest_features: int, vmm: Vmm = "qemu") -> bytes:
    """Return the save area (4096 bytes) of a virtual CPU that starts in real mode.

    Args:
        eip: Start address, 32 bits: the reset vector for the first virtual CPU.
        signature: EAX of CPUID function 1; EC2 and GCE do not use it.
        guest_features: SEV_FEATURES, 64 bits.
        vmm: VMM of the guest: `qemu`, `ec2` (Amazon EC2) or `gce` (Google Compute Engine).
    """
    state = reset_state(eip, signature)
    if vmm == "ec2":
        attributes = 0x9A if eip == RESET_VECTOR else 0x9B
        state = state._replace(
            code=state.code._replace(attributes=attributes),
            stack=Segment(0, 0x92),
            task_attributes=0x83,
        )
    elif vmm == "gce":
        state = state._replace(pat=0x00070106)
    if vmm != "qemu":
        state = state._replace(rdx=_CLOUD_RDX, mxcsr=0, x87_control=0)
    return build_vmsa(state, guest_features)


def svsm_vmsa(entry: int, signature: int) -> bytes:
    """Return the save area (4096 bytes) of a vCPU that starts COCONUT-SVSM in protected mode.

    Args:
        entry: Guest physical address of the entry point.
        signature: EAX of CPUID function 1.
    """
    flat = Segment(16, 0xC93, 0xFFFFFFFF)
    state = CpuState(
        rip=entry,
        code=Segment(8, 0xC9B, 0xFFFFFFFF),
        stack=flat,
        data=flat,
        cr0=0x11,
        rdx=signature,
        x87_control=0,
    )
    return build_vmsa(state, 1)


_PAGE: Final = 4096
_FOUR_GIB: Final = 1 << 32
_NOTHING: Final = bytes(48)  # contents of pages whose type does not measure them
_ZERO_PAGE, _UNMEASURED_PAGE, _SECRETS_PAGE, _CPUID_PAGE = 3, 4, 5, 6
_HASH_TABLE_SIZE: Final = 176  # bytes, padded
_MOST_VCPUS: Final = 4096  # KVM's limit

_PageInfo = tuple[int, int, bytes]  # type, guest physical address, measured contents


class SnpMachine(NamedTuple):
    """Properties of the machine that the launch digest covers; the VMM chooses them.

    Attributes:
        vcpus: Number of virtual CPUs, 1 to 4096.
        cpu_signature: EAX of CPUID function 1; see `find_cpu_signature`.
        guest_features: SEV_FEATURES, 64 bits; 0x21 with debug swap.
        vmm: `qemu`, `ec2` (Amazon EC2) or `gce` (Google Compute Engine).
    """

    vcpus: int  # 1 to 4096
    cpu_signature: int  # EAX of CPUID function 1; see `find_cpu_signature`
    guest_features: int = 1  # SEV_FEATURES, 64 bits; 0x21 with debug swap
    vmm: Vmm = "qemu"


class KernelHashes(NamedTuple):
    """SHA-256 (32 bytes) of kernel, initrd and command line, as QEMU gives them to the firmware.

    Without an initrd, its hash is that of empty data. The command line is hashed with a final NUL.
    """

    kernel: bytes
    initrd: bytes
    cmdline: bytes

    def hash_table(self) -> bytes:
        """Return the table of the hashes as the firmware reads it: 168 bytes."""
        return kernel_hash_table(self.cmdline, self.initrd, self.kernel)


class KernelFiles(NamedTuple):
    """Kernel, initrd (b"" for none) and command line whose hashes QEMU gives the firmware."""

    kernel: bytes
    initrd: bytes = b""
    cmdline: str = ""

    def hashes(self) -> KernelHashes:
        """Return the SHA-256 of kernel, initrd, and command line with a final NUL.

        Raises:
            UsageError: If the command line is not ASCII, contains a NUL or is too long.
        """
        check_cmdline(self.cmdline)
        cmdline = sha256(self.cmdline.encode() + b"\0")
        return KernelHashes(sha256(self.kernel), sha256(self.initrd), cmdline)


def firmware_digest(firmware: bytes) -> bytes:
    """Return the launch digest after the pages of the firmware only, 48 bytes.

    It is the `ovmf_hash` in a dstack image's measurement documents (`measurement.*.cbor`).

    Raises:
        FormatError: If the firmware is empty, not whole pages of 4096 bytes, or over 64 MiB.
    """
    return _extend_image(_NOTHING, firmware, _FOUR_GIB - len(firmware), "firmware")


def compute_launch_digest(
    firmware: bytes, machine: SnpMachine, kernel: KernelFiles | KernelHashes | None = None
) -> bytes:
    """Return the launch digest, 48 bytes: MEASUREMENT of the guest's reports.

    Args:
        firmware: Image of OVMF.
        machine: Virtual CPUs and VMM.
        kernel: Files whose hashes QEMU gives the firmware, or the hashes; None without
            `kernel-hashes=on`.

    Raises:
        FormatError: If the firmware is malformed, or has no address for further virtual CPUs.
        UsageError: If the machine or the command line is not valid, or the firmware has no page for
            kernel hashes.
    """
    _check_machine(machine)
    metadata = sev_metadata.read_sev_metadata(firmware)
    hashes = kernel.hashes() if isinstance(kernel, KernelFiles) else kernel
    table = None if hashes is None else _hashes_page(metadata, hashes)
    digest = firmware_digest(firmware)
    for page in _metadata_pages(metadata, machine.vmm, table):
        digest = extend_page(digest, *page)
    for eip, count in _start_addresses(metadata, machine.vcpus):
        vmsa = initial_vmsa(eip, machine.cpu_signature, machine.guest_features, machine.vmm)
        digest = _extend_vcpus(digest, vmsa, count)
    return digest


def svsm_launch_digest(
    firmware: bytes, svsm: bytes, machine: SnpMachine, *, variables_size: int
) -> bytes:
    """Return the launch digest, 48 bytes, of a guest of QEMU with COCONUT-SVSM.

    Args:
        firmware: Image of OVMF.
        svsm: Image of COCONUT-SVSM, which is below the firmware and its variables.
        machine: Virtual CPUs; `guest_features` is 1 for all of them.
        variables_size: Bytes between both images, for the firmware's variables.

    Raises:
        FormatError: If an image is malformed, or that of COCONUT-SVSM has no entry point.
        UsageError: If the machine is not valid or not of QEMU, or the images do not fit.
    """
    _check_machine(machine)
    if machine.vmm != "qemu" or machine.guest_features != 1:
        raise _usage_error("svsm: needs vmm qemu and guest_features 1", "not_applicable")
    start = _FOUR_GIB - len(firmware) - variables_size - len(svsm)
    if variables_size < 0 or variables_size % _PAGE or start < 0:
        problem = f"variables_size: must be whole pages that fit below 4 GiB, not {variables_size}"
        raise _usage_error(problem, "out_of_range")
    metadata = sev_metadata.read_sev_metadata(svsm)
    if metadata.svsm_entry is None:
        raise FormatError("svsm: no entry point; use an image for QEMU", reason="missing")
    digest = _extend_image(firmware_digest(firmware), svsm, start, "svsm")
    for page in _metadata_pages(metadata, "qemu", None):
        digest = extend_page(digest, *page)
    vmsa = svsm_vmsa(start + metadata.svsm_entry, machine.cpu_signature)
    return _extend_vcpus(digest, vmsa, machine.vcpus)


def launch_digest_basis(vmm: Vmm, *, hashes: bool, svsm: bool = False) -> Basis:
    """Return what confirms a launch digest, by the kind of guest.

    It is `hardware` for QEMU with kernel hashes and without SVSM, else `independent`.
    """
    return "hardware" if vmm == "qemu" and hashes and not svsm else "independent"


def _metadata_pages(
    metadata: sev_metadata.SevMetadata, vmm: Vmm, hashes: bytes | None
) -> Iterator[_PageInfo]:
    """Yield type, address and measured contents of each page of all sections, in the VMM's order.

    The type is that of a PAGE_INFO, the address guest physical, and the contents are a SHA-384 or
    48 zeros. EC2 adds CPUID pages last. `hashes` is the page with kernel hashes, 4096 bytes, or
    None.
    """
    sections = list(metadata.sections)
    if vmm == "ec2":
        sections.sort(key=lambda section: section.kind == sev_metadata.CPUID)
    for section in sections:
        if section.kind == sev_metadata.KERNEL_HASHES and hashes is not None:
            if section.size != _PAGE:
                problem = f"section for kernel hashes: {section.size} bytes, not {_PAGE}"
                raise _format_error(problem, "wrong_size")
            yield NORMAL_PAGE, section.gpa, sha384(hashes)
        else:
            yield from _section_pages(section, vmm)


def _section_pages(section: OvmfSection, vmm: Vmm) -> Iterator[_PageInfo]:
    single = {sev_metadata.SECRETS: _SECRETS_PAGE, sev_metadata.CPUID: _CPUID_PAGE}
    if section.kind in single:
        yield single[section.kind], section.gpa, _NOTHING
        return
    unmeasured = section.kind == sev_metadata.SEC_MEMORY and vmm == "gce"
    kind = _UNMEASURED_PAGE if unmeasured else _ZERO_PAGE
    for number in range(section.pages):
        yield kind, section.gpa + number * _PAGE, _NOTHING


def _hashes_page(metadata: sev_metadata.SevMetadata, hashes: KernelHashes) -> bytes:
    """Return the page, 4096 bytes, with the table of kernel hashes at the firmware's offset."""
    address = metadata.hashes_table_gpa
    if address is None or all(
        section.kind != sev_metadata.KERNEL_HASHES for section in metadata.sections
    ):
        problem = "kernel: the firmware has no page for its hash; use an AmdSev build of OVMF"
        raise _usage_error(problem, "not_applicable")
    offset = address % _PAGE
    if offset + _HASH_TABLE_SIZE > _PAGE:
        raise _format_error("table of kernel hashes: must be in one page", "wrong_value")
    return (bytes(offset) + hashes.hash_table()).ljust(_PAGE, b"\0")


def _start_addresses(metadata: sev_metadata.SevMetadata, vcpus: int) -> Iterator[tuple[int, int]]:
    """Yield each start address (EIP), and how many of the `vcpus` virtual CPUs start there.

    Raises:
        FormatError: If there are several virtual CPUs, but `metadata` has no address for them.
    """
    yield RESET_VECTOR, 1
    if vcpus > 1:
        if metadata.reset_eip is None:
            raise _format_error("must have a start address of virtual CPUs 1 and above", "missing")
        yield metadata.reset_eip, vcpus - 1


def _extend_image(digest: bytes, image: bytes, gpa: int, name: str) -> bytes:
    if len(image) % _PAGE or not image:
        message = f"{name}: must be one or more pages of {_PAGE} bytes, not {len(image)} bytes"
        raise FormatError(message, reason="wrong_size")
    if len(image) > MAX_IMAGE:
        raise FormatError(f"{name}: {len(image)} bytes, at most {MAX_IMAGE}", reason="too_large")
    for at in range(0, len(image), _PAGE):
        digest = extend_page(digest, NORMAL_PAGE, gpa + at, sha384(image[at : at + _PAGE]))
    return digest


def _extend_vcpus(digest: bytes, vmsa: bytes, count: int) -> bytes:
    contents = sha384(vmsa)
    for _ in range(count):
        digest = extend_page(digest, VMSA_PAGE, VMSA_GPA, contents)
    return digest


def _check_machine(machine: SnpMachine) -> None:
    if not 1 <= machine.vcpus <= _MOST_VCPUS:
        problem = f"virtual CPUs: must be 1 to {_MOST_VCPUS}, not {machine.vcpus}"
        raise _usage_error(problem, "out_of_range")
    if not 0 <= machine.cpu_signature < 1 << 32:
        raise _usage_error("CPU signature: must be 0 to 2**32 - 1", "out_of_range")
    if not 1 <= machine.guest_features < 1 << 64:
        raise _usage_error("guest features: must be 1 to 2**64 - 1", "out_of_range")
    if machine.vmm not in {"qemu", "ec2", "gce"}:
        raise _usage_error("VMM: must be qemu, ec2 or gce", "unknown_name")


def _usage_error(problem: str, reason: UsageReason) -> UsageError:
    return UsageError(f"SEV-SNP: {problem}", reason=reason)


def _format_error(problem: str, reason: FormatReason) -> FormatError:
    return FormatError(f"firmware: {problem}", reason=reason)
