"""Expected launch digest of an SEV-SNP guest, from firmware, boot files and the virtual CPUs."""

from collections.abc import Mapping

from attestkit._argument_checks import require_bytes
from attestkit._crypto.hashes import sha256
from attestkit.errors import UsageError
from attestkit.measure.expected import ExpectedMeasurements
from attestkit.measure.sev_snp.launch_digest import (
    KernelFiles,
    KernelHashes,
    SnpMachine,
    Vmm,
    compute_launch_digest,
    find_cpu_signature,
    launch_digest_basis,
    svsm_launch_digest,
)

DEFAULT_VARIABLES_SIZE = 0x84000
"""Bytes of the variables of a 4 MiB build of OVMF."""


def snp(
    *,
    firmware: bytes,
    vcpus: int,
    cpu_type: str | None = None,
    cpu_signature: int | None = None,
    guest_features: int = 1,
    vmm: Vmm = "qemu",
    kernel: bytes | None = None,
    initrd: bytes | None = None,
    cmdline: str | None = None,
    svsm: bytes | None = None,
    variables_size: int = DEFAULT_VARIABLES_SIZE,
) -> ExpectedMeasurements:
    """Return the expected launch digest of an SEV-SNP guest.

    Args:
        firmware: Image of OVMF.
        vcpus: Virtual CPUs, 1 to 4096.
        cpu_type: CPU type of QEMU, such as `EPYC-v4`. On QEMU either it or `cpu_signature` is
            required; EC2 and GCE need neither.
        cpu_signature: EAX of CPUID function 1.
        guest_features: SEV_FEATURES, 64 bits; 0x21 on hosts with debug swap.
        vmm: VMM of the guest: `qemu`, `ec2` (Amazon EC2) or `gce` (Google Compute Engine).
        kernel: Kernel whose hash QEMU gives the firmware (`kernel-hashes=on`); without it the
            kernel is not measured.
        initrd: Initrd of the kernel; None: no initrd.
        cmdline: Command line of the kernel; None: an empty one.
        svsm: Image of COCONUT-SVSM; None without it. Not with `kernel`, and only with the default
            `vmm` and `guest_features`.
        variables_size: Bytes between the images of COCONUT-SVSM and the firmware.

    Raises:
        FormatError: If an image is malformed, or exceeds a limit.
        UsageError: If arguments are missing or exclude each other, a value is unknown or out of
            range, or the firmware has no page for kernel hashes.
    """
    named = {"firmware": firmware, "svsm": svsm, "kernel": kernel, "initrd": initrd}
    given = {name: data for name, data in named.items() if data is not None}
    for name, data in given.items():
        require_bytes(name, data)
    machine = SnpMachine(vcpus, _signature(cpu_type, cpu_signature, vmm), guest_features, vmm)
    files = _kernel(kernel, initrd, cmdline)
    if svsm is not None and files is not None:
        raise UsageError("kernel, svsm: give only one", reason="conflict")
    hashes = None if files is None else files.hashes()
    if svsm is None:
        digest = compute_launch_digest(firmware, machine, hashes)
    else:
        digest = svsm_launch_digest(firmware, svsm, machine, variables_size=variables_size)
    return ExpectedMeasurements(
        platform="snp",
        launch_digest=digest,
        launch_basis=launch_digest_basis(vmm, hashes=hashes is not None, svsm=svsm is not None),
        not_proven=("kernel_not_measured",) if files is None else (),
        inputs=_input_digests(given, hashes),
        settings=_settings(machine, cpu_type, cmdline),
    )


def _input_digests(files: Mapping[str, bytes], hashes: KernelHashes | None) -> dict[str, bytes]:
    """Return the SHA-256 of each of the files, contents by name.

    Those of kernel and initrd are taken from `hashes`, if it is not None.
    """
    known = {} if hashes is None else hashes._asdict()
    return {name: known.get(name) or sha256(data) for name, data in files.items()}


def _settings(machine: SnpMachine, cpu_type: str | None, cmdline: str | None) -> dict[str, str]:
    """Return the settings that the digest is computed for, as text by name.

    Without `cpu_type`, that of QEMU, the CPU's signature is shown; without `cmdline` there is none.
    """
    found = {"vmm": machine.vmm, "vcpus": str(machine.vcpus)}
    if machine.vmm == "qemu":
        found["cpu"] = cpu_type or f"{machine.cpu_signature:#x}"
    found["guest_features"] = f"{machine.guest_features:#x}"
    return found if cmdline is None else found | {"cmdline": cmdline}


def _signature(cpu_type: str | None, cpu_signature: int | None, vmm: Vmm) -> int:
    if cpu_type is not None and cpu_signature is not None:
        raise UsageError("cpu_type, cpu_signature: give only one", reason="conflict")
    if cpu_type is not None:
        return find_cpu_signature(cpu_type)
    if cpu_signature is not None:
        return cpu_signature
    if vmm == "qemu":
        raise UsageError("cpu_type: missing; give it or cpu_signature", reason="missing")
    return 0


def _kernel(kernel: bytes | None, initrd: bytes | None, cmdline: str | None) -> KernelFiles | None:
    if kernel is not None:
        return KernelFiles(kernel, initrd or b"", cmdline or "")
    if initrd is not None or cmdline:
        raise UsageError("initrd, cmdline: need a kernel; pass it, too", reason="missing")
    return None
