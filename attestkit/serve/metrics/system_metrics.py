"""System metrics with the names and the text format of dstack's guest agent.

First the families `dstack_guest_*` of agents since 0.6.0, then the older ones, which are deprecated
there (guest-agent-v1.md, section 7.4). The format differs from prometheus-client's: integers
without a fraction, a blank after the comma between labels, an empty line between families.
"""

from collections.abc import Iterable, Iterator, Mapping
from operator import attrgetter
from typing import Final, NamedTuple

from attestkit.serve.machine_info import Disk, Figures

_SEPARATOR: Final = "# The metrics below are deprecated; their help names the replacements.\n"
_INFO: Final = "dstack_guest_info", "Static system information: OS, kernel and CPU model."
# Label, HELP of the deprecated family of that name, and attribute of Figures.
_LABELS: Final = (
    ("os_name", "Operating system name", "os_name"),
    ("os_version", "Operating system version", "os_version"),
    ("kernel_version", "Kernel version", "kernel"),
    ("cpu_model", "CPU model information", "cpu"),
)


class _Row(NamedTuple):
    """A value: name and HELP of its family and of the deprecated one, and the attribute."""

    name: str
    description: str
    old_name: str
    old_description: str
    attribute: str


_SYSTEM: Final = (
    _Row("cpus", "Number of logical CPUs.", "num_cpus", "Number of logical CPUs", "cpus"),
    _Row(
        *("memory_total_bytes", "Total memory in bytes."),
        *("memory_total", "Total memory in bytes", "memory.total"),
    ),
    _Row(
        *("memory_available_bytes", "Available memory in bytes."),
        *("memory_available", "Available memory in bytes", "memory.available"),
    ),
    _Row(
        *("memory_used_bytes", "Used memory in bytes."),
        *("memory_used", "Used memory in bytes", "memory.used"),
    ),
    _Row(
        *("memory_free_bytes", "Free memory in bytes."),
        *("memory_free", "Free memory in bytes", "memory.free"),
    ),
    _Row(
        *("swap_total_bytes", "Total swap in bytes."),
        *("swap_total", "Total swap memory in bytes", "swap.total"),
    ),
    _Row(
        *("swap_used_bytes", "Used swap in bytes."),
        *("swap_used", "Used swap memory in bytes", "swap.used"),
    ),
    _Row(
        *("swap_free_bytes", "Free swap in bytes."),
        *("swap_free", "Free swap memory in bytes", "swap.free"),
    ),
    _Row(
        *("uptime_seconds", "System uptime in seconds."),
        *("uptime", "System uptime in seconds", "uptime"),
    ),
    _Row(
        *("load1", "System load average over 1 minute."),
        *("load_average_1m", "System load average (1 minute)", "load.one"),
    ),
    _Row(
        *("load5", "System load average over 5 minutes."),
        *("load_average_5m", "System load average (5 minutes)", "load.five"),
    ),
    _Row(
        *("load15", "System load average over 15 minutes."),
        *("load_average_15m", "System load average (15 minutes)", "load.fifteen"),
    ),
)
_DISK: Final = (
    _Row("total_bytes", "Disk size in bytes.", "total_size", "Disk total size in bytes", "total"),
    _Row(
        *("free_bytes", "Free disk space in bytes."),
        *("free_size", "Disk free size in bytes", "free"),
    ),
    _Row(
        *("used_bytes", "Used disk space in bytes."),
        *("used_size", "Disk used size in bytes", "used"),
    ),
    _Row(
        *("used_ratio", "Used fraction of the disk, 0 to 1."),
        *("usage_percentage", "Disk usage percentage", "percentage"),
    ),
)


def encode_system_metrics(figures: Figures) -> bytes:
    """Return the system metrics in the Prometheus text format, with an empty line at the end."""
    new, old = _families(figures), _deprecated_families(figures)
    return "\n".join([*new, _SEPARATOR, *old, ""]).encode()


def _families(figures: Figures) -> Iterator[str]:
    labels = {label: attrgetter(attribute)(figures) for label, _, attribute in _LABELS}
    yield _encode(*_INFO, [(labels, 1)])
    for row in _SYSTEM:
        yield _encode(f"dstack_guest_{row.name}", row.description, [({}, _in_unit(row, figures))])
    for row in _DISK:
        samples = [(_labels(disk), _in_unit(row, disk)) for disk in figures.disks]
        yield _encode(f"dstack_guest_disk_{row.name}", row.description, samples)


def _deprecated_families(figures: Figures) -> Iterator[str]:
    for label, description, attribute in _LABELS:
        sample = {label: attrgetter(attribute)(figures)}, 1
        yield _encode(f"system_{label}", _deprecated(description, _INFO[0]), [sample])
    for row in _SYSTEM:
        description = _deprecated(row.old_description, f"dstack_guest_{row.name}")
        sample = {}, attrgetter(row.attribute)(figures)
        yield _encode(f"system_{row.old_name}", description, [sample])
    for row in _DISK:
        description = _deprecated(row.old_description, f"dstack_guest_disk_{row.name}")
        samples = [(_labels(disk), getattr(disk, row.attribute)) for disk in figures.disks]
        yield _encode(f"disk_{row.old_name}", description, samples)


def _in_unit(row: _Row, source: Figures | Disk) -> float | str:
    """Return a value in the unit of the new family: loads are hundredths in the old one."""
    value: float = attrgetter(row.attribute)(source)
    if row.attribute.startswith("load."):
        return f"{value / 100:.2f}"
    return value / 100 if row.attribute == "percentage" else value


def _deprecated(description: str, replacement: str) -> str:
    return f"{description} (deprecated: use {replacement})"


def _labels(disk: Disk) -> dict[str, str]:
    return {"name": disk.name, "mount_point": disk.mount_point}


def _encode(
    name: str, description: str, samples: Iterable[tuple[Mapping[str, str], float | str]]
) -> str:
    """Return a family of gauges in the text format."""
    lines = [f"# HELP {name} {description}", f"# TYPE {name} gauge"]
    for labels, value in samples:
        inside = ", ".join(f'{label}="{_escape(text)}"' for label, text in labels.items())
        whole = int(value) if isinstance(value, float) and value == int(value) else value
        lines.append(f"{name}{{{inside}}} {whole}" if inside else f"{name} {whole}")
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
