"""Indications that this machine is a TDX or SEV-SNP guest, which the host controls."""

import os
from pathlib import Path
from typing import Final, NamedTuple

from attestkit.backends.registry import load
from attestkit.errors import AttestKitError


class HardwareSign(NamedTuple):
    """An indication that this machine is a TDX or SEV-SNP guest.

    It is not authenticated: the host controls it until a quote has been verified. `what` is its
    name, `positive` whether it is present, `saw` the details; `doctor --json` prints all three.
    """

    what: str
    positive: bool
    saw: str


CPUINFO_READ: Final = 65536  # bytes; the entry of the first CPU has about 2 KiB
PATHS: Final = (
    ("CCEL table", "sys/firmware/acpi/tables/CCEL"),
    ("/dev/tdx_guest", "dev/tdx_guest"),
    ("/dev/sev-guest", "dev/sev-guest"),
    ("tsm report folder", "sys/kernel/config/tsm/report"),
)

# Prefix of the platform's name, its backend, and the object in the TPM that is the sign.
_CLOUD_TPMS: Final = (
    ("Azure", "azure", "HCL report"),
    ("Google", "gcp", "key of Google"),
    ("AWS", "nitro_tpm", "NitroTPM"),
)


def check_hardware_signs(root: str | os.PathLike[str] = "/") -> tuple[HardwareSign, ...]:
    """Return each known indication of a TDX or SEV-SNP guest below `root`, present or not.

    They are a flag of the CPU, and paths in /sys and /dev. Guests behind a paravisor and EC2
    instances with a NitroTPM have none of these. If `root` is `/`, two more are checked: Hyper-V's
    isolation type in CPUID, and objects of Azure, Google or AWS in the TPM.
    """
    base = Path(root)
    signs = (_cpu_flags(base), *(_path(base, *place) for place in PATHS))
    return (*signs, _isolation(), _cloud_tpm()) if base == Path("/") else signs


def detect_hardware(root: str | os.PathLike[str] = "/") -> tuple[str, ...]:
    """Return the names of the indications of a TEE that are present, such as `/dev/tdx_guest`.

    They are looked up in files below `root` and, if that is `/`, in CPUID and the TPM.
    """
    return tuple(sign.what for sign in check_hardware_signs(root) if sign.positive)


def _cpu_flags(root: Path) -> HardwareSign:
    """Look in proc/cpuinfo below `root` for the flag of a guest.

    It is `tdx_guest`, or `sev_snp` together with `hypervisor`, which hosts lack.
    """
    try:
        with (root / "proc/cpuinfo").open("rb") as file:
            text = file.read(CPUINFO_READ).decode("utf-8", errors="replace")
    except OSError as error:
        return HardwareSign("CPU flags", positive=False, saw=_error_text(error))
    line = next((line for line in text.splitlines() if line.startswith("flags")), "")
    flags = set(line.partition(":")[2].split())
    if "tdx_guest" in flags:
        return HardwareSign("CPU flag tdx_guest", positive=True, saw="present")
    if "sev_snp" in flags and "hypervisor" in flags:
        return HardwareSign("CPU flag sev_snp", positive=True, saw="present")
    return HardwareSign("CPU flags", positive=False, saw="neither tdx_guest nor sev_snp")


def _isolation() -> HardwareSign:
    """Check the isolation type of Hyper-V, by CPUID (leaf 0x4000000C)."""
    from attestkit import _native
    from attestkit.backends.linux.host_inspection import inspect_cpu  # lazy: rarely needed

    cpu, name = inspect_cpu(_native.cpuid), "Hyper-V isolation"
    if not cpu.known:
        return HardwareSign(name, positive=False, saw="unknown: needs the compiled core")
    if cpu.isolation in {"SNP", "TDX"}:
        return HardwareSign(f"{name} {cpu.isolation}", positive=True, saw="present")
    return HardwareSign(name, positive=False, saw=cpu.isolation)


def _cloud_tpm() -> HardwareSign:
    """Look for evidence in the TPM if DMI or CPUID names a cloud; other TPMs are not opened.

    On AWS the NitroTPM is the only sign. In an emulated guest of Azure the HCL report is, because
    CPUID is that of the real machine.
    """
    from attestkit.backends.linux.host_inspection import detect_platforms  # lazy: rarely needed

    for platform in detect_platforms():
        for prefix, name, what in _CLOUD_TPMS:
            if platform.name.startswith(prefix) and _is_in_tpm(name):
                return HardwareSign(what, positive=True, saw="in the TPM")
    return HardwareSign("TPM of a cloud", positive=False, saw="no evidence of Azure, Google or AWS")


def _is_in_tpm(name: str) -> bool:
    """Return whether the TPM has the object by which the backend `name` recognises its cloud.

    Other needs of the backend are not checked: its method `probe_tpm` is used if it has one, since
    its `probe` checks more than the TPM.
    """
    backend = load(name)
    try:
        getattr(backend, "probe_tpm", backend.probe)()
    except AttestKitError:
        return False
    return True


def _path(root: Path, name: str, path: str) -> HardwareSign:
    try:
        (root / path).stat()
    except OSError as error:  # also where access is denied, which ordinary machines do too
        return HardwareSign(name, positive=False, saw=_error_text(error))
    return HardwareSign(name, positive=True, saw="present")


def _error_text(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
