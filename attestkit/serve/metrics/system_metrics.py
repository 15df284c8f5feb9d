"""System metrics with the names and the text format of dstack's guest agent.

First the families `dstack_guest_*` of agents since 0.6.0, then the older ones, which are deprecated
there (guest-agent-v1.md, section 7.4). The format differs from prometheus-client's: integers
without a fraction, a space after the comma between labels, an empty line between families.
"""

from collections.abc import Iterable, Iterator, Mapping
from operator import attrgetter
from typing import Final, NamedTuple

from attestkit.serve.machine_info import Disk, Figures

_SEPARATOR: Final = "# The metrics below are deprecated; their help names the replacements.\n"


class _Family(NamedTuple):
    """Name of a metric family, without its prefix, and its HELP text."""

    name: str
    description: str


_INFO: Final = _Family("dstack_guest_info", "Static system information: OS, kernel and CPU model.")
# Deprecated families, by attribute of Figures; their names are labels of `_INFO`.
_LABELS: Final = {
    "os_name": _Family("os_name", "Operating system name"),
    "os_version": _Family("os_version", "Operating system version"),
    "kernel": _Family("kernel_version", "Kernel version"),
    "cpu": _Family("cpu_model", "CPU model information"),
}
# The family and the deprecated one of each value, by attribute of Figures.
_SYSTEM: Final = {
    "cpus": (
        _Family("cpus", "Number of logical CPUs."),
        _Family("num_cpus", "Number of logical CPUs"),
    ),
    "memory.total": (
        _Family("memory_total_bytes", "Total memory in bytes."),
        _Family("memory_total", "Total memory in bytes"),
    ),
    "memory.available": (
        _Family("memory_available_bytes", "Available memory in bytes."),
        _Family("memory_available", "Available memory in bytes"),
    ),
    "memory.used": (
        _Family("memory_used_bytes", "Used memory in bytes."),
        _Family("memory_used", "Used memory in bytes"),
    ),
    "memory.free": (
        _Family("memory_free_bytes", "Free memory in bytes."),
        _Family("memory_free", "Free memory in bytes"),
    ),
    "swap.total": (
        _Family("swap_total_bytes", "Total swap in bytes."),
        _Family("swap_total", "Total swap memory in bytes"),
    ),
    "swap.used": (
        _Family("swap_used_bytes", "Used swap in bytes."),
        _Family("swap_used", "Used swap memory in bytes"),
    ),
    "swap.free": (
        _Family("swap_free_bytes", "Free swap in bytes."),
        _Family("swap_free", "Free swap memory in bytes"),
    ),
    "uptime": (
        _Family("uptime_seconds", "System uptime in seconds."),
        _Family("uptime", "System uptime in seconds"),
    ),
    "load.one": (
        _Family("load1", "System load average over 1 minute."),
        _Family("load_average_1m", "System load average (1 minute)"),
    ),
    "load.five": (
        _Family("load5", "System load average over 5 minutes."),
        _Family("load_average_5m", "System load average (5 minutes)"),
    ),
    "load.fifteen": (
        _Family("load15", "System load average over 15 minutes."),
        _Family("load_average_15m", "System load average (15 minutes)"),
    ),
}
# The same for each disk, by attribute of Disk.
_DISK: Final = {
    "total": (
        _Family("total_bytes", "Disk size in bytes."),
        _Family("total_size", "Disk total size in bytes"),
    ),
    "free": (
        _Family("free_bytes", "Free disk space in bytes."),
        _Family("free_size", "Disk free size in bytes"),
    ),
    "used": (
        _Family("used_bytes", "Used disk space in bytes."),
        _Family("used_size", "Disk used size in bytes"),
    ),
    "percentage": (
        _Family("used_ratio", "Used fraction of the disk, 0 to 1."),
        _Family("usage_percentage", "Disk usage percentage"),
    ),
}


def encode_system_metrics(figures: Figures) -> bytes:
    """Return the system metrics in the Prometheus text format, with an empty line at the end."""
    new, old = _families(figures), _deprecated_families(figures)
    return "\n".join([*new, _SEPARATOR, *old, ""]).encode()


def _families(figures: Figures) -> Iterator[str]:
    labels = {old.name: attrgetter(attribute)(figures) for attribute, old in _LABELS.items()}
    yield _encode(*_INFO, [(labels, 1)])
    for attribute, (family, _) in _SYSTEM.items():
        value = _in_unit(attribute, figures)
        yield _encode(f"dstack_guest_{family.name}", family.description, [({}, value)])
    for attribute, (family, _) in _DISK.items():
        samples = [(_labels(disk), _in_unit(attribute, disk)) for disk in figures.disks]
        yield _encode(f"dstack_guest_disk_{family.name}", family.description, samples)


def _deprecated_families(figures: Figures) -> Iterator[str]:
    for attribute, old in _LABELS.items():
        sample = {old.name: attrgetter(attribute)(figures)}, 1
        yield _encode(f"system_{old.name}", _deprecated(old, _INFO.name), [sample])
    for attribute, (family, old) in _SYSTEM.items():
        description = _deprecated(old, f"dstack_guest_{family.name}")
        yield _encode(f"system_{old.name}", description, [({}, attrgetter(attribute)(figures))])
    for attribute, (family, old) in _DISK.items():
        description = _deprecated(old, f"dstack_guest_disk_{family.name}")
        samples = [(_labels(disk), getattr(disk, attribute)) for disk in figures.disks]
        yield _encode(f"disk_{old.name}", description, samples)


def _in_unit(attribute: str, source: Figures | Disk) -> float | str:
    """Return a value in the unit of the new family: loads are hundredths in the old one."""
    value: float = attrgetter(attribute)(source)
    if attribute.startswith("load."):
        return f"{value / 100:.2f}"
    return value / 100 if attribute == "percentage" else value


def _deprecated(family: _Family, replacement: str) -> str:
    return f"{family.description} (deprecated: use {replacement})"


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
