"""Rows of the dashboard's tables: labels of the guest agent, and human-readable values."""

from typing import Final, NamedTuple

from attestkit.event_log.display import printable
from attestkit.serve.machine_info import Figures
from attestkit.serve.rpc.messages import AppInfo

__all__ = ["LONGEST", "DashboardRow", "duration_text", "identity_rows", "machine_rows", "size_text"]

LONGEST: Final = 300
"""Characters that are shown of untrusted text."""

_UNITS: Final = ("B", "KB", "MB", "GB", "TB", "PB", "EB")


class DashboardRow(NamedTuple):
    """A label and its value; `full` is a fill level in percent."""

    label: str
    value: str
    mono: bool = False
    full: float | None = None
    note: str = ""


def identity_rows(info: AppInfo) -> list[DashboardRow]:
    """Return the rows of the app's identity."""
    rows = [
        DashboardRow("App Name", printable(info.app_name, LONGEST)),
        DashboardRow("App ID", info.app_id.hex(), mono=True),
        DashboardRow("Instance ID", info.instance_id.hex(), mono=True),
        DashboardRow("Device ID", info.device_id.hex(), mono=True),
        DashboardRow("Key Provider Info", printable(info.key_provider_info, LONGEST)),
    ]
    if info.cloud_vendor or info.cloud_product:
        maker = f"{info.cloud_vendor} ({info.cloud_product})"
        rows.append(DashboardRow("Machine Provider", printable(maker, LONGEST)))
    if info.compose_hash:
        rows.append(DashboardRow("Compose Hash", info.compose_hash.hex(), mono=True))
    if info.os_image_hash:
        rows.append(DashboardRow("OS Image Hash", info.os_image_hash.hex(), mono=True))
    return rows


def machine_rows(figures: Figures) -> list[DashboardRow]:
    """Return the rows of the system information."""
    memory, swap = figures.memory, figures.swap
    one, five, fifteen = (f"{hundredths / 100:.2f}%" for hundredths in figures.load)
    system = f"{figures.os_name} {figures.os_version}".strip()
    rows = [
        DashboardRow("Operating System", printable(system, LONGEST)),
        DashboardRow("Kernel Version", printable(figures.kernel, LONGEST)),
        DashboardRow("CPU", f"{figures.cpu} ({figures.cpus} cores)"),
        DashboardRow(
            "Memory Usage",
            f"{size_text(memory.used)} / {size_text(memory.total)} / {size_text(memory.available)}",
            full=_percent(memory.used, memory.total),
            note="Used / Total / Available",
        ),
        DashboardRow(
            "Swap Usage",
            f"{size_text(swap.used)} / {size_text(swap.total)} / {size_text(swap.free)}",
            full=_percent(swap.used, swap.total),
            note="Used / Total / Free",
        ),
        DashboardRow("Load Average", f"{one} / {five} / {fifteen}", note="1 / 5 / 15 minutes"),
        DashboardRow(
            "System Uptime", f"{figures.uptime} seconds", note=duration_text(figures.uptime)
        ),
    ]
    for index, disk in enumerate(figures.disks):
        rows.append(
            DashboardRow(
                f"Disk {index}",
                f"{size_text(disk.free)} / {size_text(disk.total)}",
                full=disk.percentage,
                note=f"Free / Total of {printable(disk.mount_point, LONGEST)}",
            )
        )
    return rows


def size_text(size: float) -> str:
    """Return a size with a unit, below 1024 and with two decimal places."""
    unit = 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size /= 1024
        unit += 1
    return f"{size:.2f} {_UNITS[unit]}"


def _percent(used: int, total: int) -> float | None:
    return used / total * 100 if total else None


def duration_text(seconds: int) -> str:
    """Return a duration in its two largest units."""
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, seconds = divmod(seconds, size)
        if count or parts:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])
