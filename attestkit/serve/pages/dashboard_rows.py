"""The facts in the dashboard's tables: labels as the guest agent has them, values for people."""

from typing import Final, NamedTuple

from attestkit.event_log.display import printable
from attestkit.serve.machine_info import Figures
from attestkit.serve.rpc.messages import AppInfo

__all__ = ["LONGEST", "Row", "duration_text", "identity_rows", "machine_rows", "size_text"]

LONGEST: Final = 300
"""Characters that are shown of a text that somebody else wrote."""

_UNITS: Final = ("B", "KB", "MB", "GB", "TB", "PB", "EB")


class Row(NamedTuple):
    """A label and its value; `full` is how full it is, in percent."""

    label: str
    value: str
    mono: bool = False
    full: float | None = None
    note: str = ""


def identity_rows(info: AppInfo) -> list[Row]:
    """Return who the app is."""
    rows = [
        Row("App Name", printable(info.app_name, LONGEST)),
        Row("App ID", info.app_id.hex(), mono=True),
        Row("Instance ID", info.instance_id.hex(), mono=True),
        Row("Device ID", info.device_id.hex(), mono=True),
        Row("Key Provider Info", printable(info.key_provider_info, LONGEST)),
    ]
    if info.cloud_vendor or info.cloud_product:
        maker = f"{info.cloud_vendor} ({info.cloud_product})"
        rows.append(Row("Machine Provider", printable(maker, LONGEST)))
    if info.compose_hash:
        rows.append(Row("Compose Hash", info.compose_hash.hex(), mono=True))
    if info.os_image_hash:
        rows.append(Row("OS Image Hash", info.os_image_hash.hex(), mono=True))
    return rows


def machine_rows(figures: Figures) -> list[Row]:
    """Return what the machine says of itself."""
    memory, swap = figures.memory, figures.swap
    one, five, fifteen = (f"{hundredths / 100:.2f}%" for hundredths in figures.load)
    system = f"{figures.os_name} {figures.os_version}".strip()
    rows = [
        Row("Operating System", printable(system, LONGEST)),
        Row("Kernel Version", printable(figures.kernel, LONGEST)),
        Row("CPU", f"{figures.cpu} ({figures.cpus} cores)"),
        Row(
            "Memory Usage",
            f"{size_text(memory.used)} / {size_text(memory.total)} / {size_text(memory.available)}",
            full=_percent(memory.used, memory.total),
            note="Used / Total / Available",
        ),
        Row(
            "Swap Usage",
            f"{size_text(swap.used)} / {size_text(swap.total)} / {size_text(swap.free)}",
            full=_percent(swap.used, swap.total),
            note="Used / Total / Free",
        ),
        Row("Load Average", f"{one} / {five} / {fifteen}", note="1 / 5 / 15 minutes"),
        Row("System Uptime", f"{figures.uptime} seconds", note=duration_text(figures.uptime)),
    ]
    for index, disk in enumerate(figures.disks):
        rows.append(
            Row(
                f"Disk {index}",
                f"{size_text(disk.free)} / {size_text(disk.total)}",
                full=disk.percentage,
                note=f"Free / Total of {printable(disk.mount_point, LONGEST)}",
            )
        )
    return rows


def size_text(size: float) -> str:
    """Return a size as people read it: below 1024 of a unit, two digits behind the point."""
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
