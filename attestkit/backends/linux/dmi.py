"""The cloud whose virtual machine this is, by the DMI table.

It is not authenticated: the host controls it. Detection reads it first, so that the TPM of another
machine is not used.
"""

from pathlib import Path
from typing import Final, Literal

from attestkit.backends.linux.device_errors import unavailable
from attestkit.backends.linux.syscalls import read_file

Cloud = Literal["azure", "google", "aws"]

_NAMES: Final[dict[Cloud, str]] = {
    "azure": "a VM of Azure",
    "google": "a VM of Google Compute Engine",
    "aws": "an EC2 instance",
}
_LONGEST: Final = 256  # bytes of a value
_AZURE_ASSET_TAG: Final = "7783-7084-3265-9085-8269-3286-77"


def detect_cloud(folder: Path) -> Cloud | None:
    """Return the cloud that the DMI table names; None for another machine.

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
    """Raise BackendUnavailableError (`wrong_platform`) unless the DMI table names a cloud."""
    if detect_cloud(folder) != cloud:
        raise unavailable(folder, f"not {_NAMES[cloud]}, by the DMI table", "wrong_platform")


def _read(path: Path) -> str:
    """Return a value; empty if it is missing or not readable."""
    try:
        return read_file(path, _LONGEST).decode("utf-8", "replace").strip()
    except OSError:
        return ""
