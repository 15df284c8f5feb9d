"""Paths of the kernel's interfaces, TEE features by release, and the cloud that DMI names.

Sources: the kernel's Documentation/ABI/testing (configfs-tsm-report,
sysfs-devices-virtual-misc-tdx_guest), drivers/char/tpm, the ACPI specification (CCEL), and the
dstack guest agent.

Distributions backport features and fixes, so a release number can explain why a feature is missing,
but not prove that it is. The DMI table is not authenticated: the host controls it. Detection of a
cloud's backend reads it first, so that the TPM of a machine outside that cloud is not opened.
"""

import os
import re
from pathlib import Path
from typing import Final, Literal, NamedTuple

from attestkit.backends.linux.device_errors import unavailable

# Sockets of a guest agent, in the search order of the dstack clients.
AGENT_SOCKETS: Final = (
    "/var/run/dstack.sock",
    "/run/dstack.sock",
    "/var/run/dstack/dstack.sock",
    "/run/dstack/dstack.sock",
)


class KernelPaths(NamedTuple):
    """Paths of the kernel's TEE interfaces; `below` moves them to another root directory."""

    tsm_report: Path = Path("/sys/kernel/config/tsm/report")
    tsm_entry: Path | None = None  # an existing entry; None: a new entry for each request
    tdx_guest: Path = Path("/dev/tdx_guest")
    old_nodes: tuple[Path, ...] = (Path("/dev/tdx-guest"), Path("/dev/tdx-attest"))
    measurements: Path = Path("/sys/devices/virtual/misc/tdx_guest/measurements")
    measurements_configured: bool = False  # True: `measurements` was configured: no fallback
    sev_guest: Path = Path("/dev/sev-guest")
    ccel_table: Path = Path("/sys/firmware/acpi/tables/CCEL")
    ccel_data: Path = Path("/sys/firmware/acpi/tables/data/CCEL")
    ccel_file: Path | None = None  # a copy of the log, used instead of both
    tdx_attest_conf: Path = Path("/etc/tdx-attest.conf")
    tpm_nodes: tuple[Path, ...] = (Path("/dev/tpmrm0"), Path("/dev/tpm0"))  # in this order
    tpm_class: Path = Path("/sys/class/tpm")
    tpm_boot_log: Path = Path("/sys/kernel/security/tpm0/binary_bios_measurements")
    ima_log: Path = Path("/sys/kernel/security/ima/binary_runtime_measurements")
    dmi: Path = Path("/sys/class/dmi/id")
    boot_id: Path = Path("/proc/sys/kernel/random/boot_id")
    runtime_log: Path = Path("/run/log/dstack")

    @classmethod
    def below(cls, root: str | os.PathLike[str]) -> "KernelPaths":
        """Return the default paths below `root`, such as an emulator or a mounted file system."""
        base = Path(root)

        def moved(value: object) -> object:
            if isinstance(value, tuple):
                return tuple(map(moved, value))
            return base / value.relative_to("/") if isinstance(value, Path) else value

        return cls._make(map(moved, cls()))


# The mainline release that added a feature, and its name.
FEATURES: Final = {
    "tdx_guest": ((6, 2), "/dev/tdx_guest"),
    "ccel": ((6, 4), "the firmware's event log (CCEL)"),
    "configfs_tsm": ((6, 7), "configfs-tsm"),
    "svsm_services": ((6, 11), "reports about services of an SVSM"),
    "rtmr_files": ((6, 16), "RTMR files in sysfs"),
    "quote_errors": ((7, 1), "EIO in place of an empty outblob"),
}
# CVE-2026-31470, since configfs-tsm: the kernel does not check the quote length that the host
# returns. Fixed in 7.0 and, by series, in these patch levels.
_REPAIRED: Final = {(6, 12): 80, (6, 18): 21, (6, 19): 11}


class KernelRelease(NamedTuple):
    """A kernel release (`uname -r`) and its number: major, minor, patch; (0, 0, 0) without one."""

    text: str
    number: tuple[int, int, int]

    @classmethod
    def parse(cls, text: str) -> "KernelRelease":
        """Parse a release such as `6.12.94+deb13-amd64` or `7.1-rc3`; any text is accepted."""
        found = re.match(r"(\d{1,5})\.(\d{1,5})(?:\.(\d{1,5}))?", text)
        if found is None:
            return cls(text, (0, 0, 0))
        major, minor, patch = (int(digits or 0) for digits in found.groups())
        return cls(text, (major, minor, patch))

    @property
    def known(self) -> bool:
        """True if the release has a number."""
        return self.number != (0, 0, 0)

    def has(self, feature: str) -> bool:
        """Return whether this release of mainline Linux has `feature`, a key of `FEATURES`.

        False if the release has no number.
        """
        return self.number[:2] >= FEATURES[feature][0]

    @property
    def repaired(self) -> bool:
        """True if the mainline release is not affected by CVE-2026-31470.

        The vulnerability lets the host make the guest's kernel read beyond its quote buffer.
        """
        series = self.number[:2]
        if not self.has("configfs_tsm") or series >= (7, 0):
            return True
        return self.number[2] >= _REPAIRED.get(series, 1 << 16)


Cloud = Literal["azure", "google", "aws"]

_NAMES: Final[dict[Cloud, str]] = {
    "azure": "a VM of Azure",
    "google": "a VM of Google Compute Engine",
    "aws": "an EC2 instance",
}
_LONGEST: Final = 256  # bytes of a value
_AZURE_ASSET_TAG: Final = "7783-7084-3265-9085-8269-3286-77"


def detect_cloud(folder: Path) -> Cloud | None:
    """Return the cloud that the DMI table names: "aws", "google" or "azure"; None for any other.

    Args:
        folder: /sys/class/dmi/id (`KernelPaths.dmi`).
    """
    vendor = _read(folder / "sys_vendor")
    if vendor == "Amazon EC2":
        return "aws"
    if vendor == "Google" or _read(folder / "product_name") == "Google Compute Engine":
        return "google"
    is_hyper_v = vendor == "Microsoft Corporation"
    if is_hyper_v and _read(folder / "chassis_asset_tag") == _AZURE_ASSET_TAG:
        return "azure"
    return None


def require_cloud(folder: Path, cloud: Cloud) -> None:
    """Raise BackendUnavailableError (`wrong_platform`) unless DMI, at `folder`, names `cloud`."""
    if detect_cloud(folder) != cloud:
        raise unavailable(folder, f"the DMI table does not name {_NAMES[cloud]}", "wrong_platform")


def _read(path: Path) -> str:
    """Return the text of a DMI file; empty if the file is missing or not readable."""
    from attestkit.backends.linux.syscalls import read_file  # lazy: loads ctypes

    try:
        return read_file(path, _LONGEST).decode("utf-8", "replace").strip()
    except OSError:
        return ""
