"""System metrics with the names and the text format of dstack's guest agent.

First the families `dstack_guest_*` of agents since 0.6.0, then the older ones, which are deprecated
there (guest-agent-v1.md, section 7.4). The format differs from prometheus-client's: integers
without a fraction, a space after the comma between labels, an empty line between families.
"""

from collections.abc import Iterator
from operator import attrgetter
from typing import Final

from attestkit.serve.gpu_sampler import GpuSample
from attestkit.serve.machine_info import Disk, Figures
from attestkit.serve.metrics.gpu_metrics import gpu_families
from attestkit.serve.metrics.text_format import MetricFamily, encode_family

_SEPARATOR: Final = "# The metrics below are deprecated; their help names the replacements.\n"
_INFO: Final = "dstack_guest_info"
_INFO_TEXT: Final = "Static system information: OS, kernel and CPU model."


class _Family(NamedTuple):
    """A family and the deprecated one: their names, without prefix, and HELP texts."""

    name: str
    text: str
    old_name: str
    old_text: str


def _make_families(table: str) -> dict[str, _Family]:
    """Return the families by attribute; by default the old text is the new one without its dot."""
    found = {}
    for line in table.strip().splitlines():
        attribute, name, text, old_name, *old_text = line.split(" | ")
        found[attribute] = _Family(name, text, old_name, *(old_text or [text.removesuffix(".")]))
    return found


_INFO: Final = MetricFamily(
    "dstack_guest_info", "Static system information: OS, kernel and CPU model."
)
# Deprecated families, by attribute of Figures; their names are labels of `_INFO`.
_LABELS: Final = {
    "os_name": MetricFamily("os_name", "Operating system name"),
    "os_version": MetricFamily("os_version", "Operating system version"),
    "kernel": MetricFamily("kernel_version", "Kernel version"),
    "cpu": MetricFamily("cpu_model", "CPU model information"),
}
# The family and the deprecated one of each value, by attribute of Figures.
_SYSTEM: Final = {
    "cpus": (
        MetricFamily("cpus", "Number of logical CPUs."),
        MetricFamily("num_cpus", "Number of logical CPUs"),
    ),
    "memory.total": (
        MetricFamily("memory_total_bytes", "Total memory in bytes."),
        MetricFamily("memory_total", "Total memory in bytes"),
    ),
    "memory.available": (
        MetricFamily("memory_available_bytes", "Available memory in bytes."),
        MetricFamily("memory_available", "Available memory in bytes"),
    ),
    "memory.used": (
        MetricFamily("memory_used_bytes", "Used memory in bytes."),
        MetricFamily("memory_used", "Used memory in bytes"),
    ),
    "memory.free": (
        MetricFamily("memory_free_bytes", "Free memory in bytes."),
        MetricFamily("memory_free", "Free memory in bytes"),
    ),
    "swap.total": (
        MetricFamily("swap_total_bytes", "Total swap in bytes."),
        MetricFamily("swap_total", "Total swap memory in bytes"),
    ),
    "swap.used": (
        MetricFamily("swap_used_bytes", "Used swap in bytes."),
        MetricFamily("swap_used", "Used swap memory in bytes"),
    ),
    "swap.free": (
        MetricFamily("swap_free_bytes", "Free swap in bytes."),
        MetricFamily("swap_free", "Free swap memory in bytes"),
    ),
    "uptime": (
        MetricFamily("uptime_seconds", "System uptime in seconds."),
        MetricFamily("uptime", "System uptime in seconds"),
    ),
    "load.one": (
        MetricFamily("load1", "System load average over 1 minute."),
        MetricFamily("load_average_1m", "System load average (1 minute)"),
    ),
    "load.five": (
        MetricFamily("load5", "System load average over 5 minutes."),
        MetricFamily("load_average_5m", "System load average (5 minutes)"),
    ),
    "load.fifteen": (
        MetricFamily("load15", "System load average over 15 minutes."),
        MetricFamily("load_average_15m", "System load average (15 minutes)"),
    ),
}
# The same for each disk, by attribute of Disk.
_DISK: Final = {
    "total": (
        MetricFamily("total_bytes", "Disk size in bytes."),
        MetricFamily("total_size", "Disk total size in bytes"),
    ),
    "free": (
        MetricFamily("free_bytes", "Free disk space in bytes."),
        MetricFamily("free_size", "Disk free size in bytes"),
    ),
    "used": (
        MetricFamily("used_bytes", "Used disk space in bytes."),
        MetricFamily("used_size", "Disk used size in bytes"),
    ),
    "percentage": (
        MetricFamily("used_ratio", "Used fraction of the disk, 0 to 1."),
        MetricFamily("usage_percentage", "Disk usage percentage"),
    ),
}
# By attribute of Figures.
_SYSTEM: Final = _make_families("""
cpus | cpus | Number of logical CPUs. | num_cpus
memory.total | memory_total_bytes | Total memory in bytes. | memory_total
memory.available | memory_available_bytes | Available memory in bytes. | memory_available
memory.used | memory_used_bytes | Used memory in bytes. | memory_used
memory.free | memory_free_bytes | Free memory in bytes. | memory_free
swap.total | swap_total_bytes | Total swap in bytes. | swap_total | Total swap memory in bytes
swap.used | swap_used_bytes | Used swap in bytes. | swap_used | Used swap memory in bytes
swap.free | swap_free_bytes | Free swap in bytes. | swap_free | Free swap memory in bytes
uptime | uptime_seconds | System uptime in seconds. | uptime
load.one | load1 | System load average over 1 minute. | load_average_1m | \
System load average (1 minute)
load.five | load5 | System load average over 5 minutes. | load_average_5m | \
System load average (5 minutes)
load.fifteen | load15 | System load average over 15 minutes. | load_average_15m | \
System load average (15 minutes)
""")
# By attribute of Disk.
_DISK: Final = _make_families("""
total | total_bytes | Disk size in bytes. | total_size | Disk total size in bytes
free | free_bytes | Free disk space in bytes. | free_size | Disk free size in bytes
used | used_bytes | Used disk space in bytes. | used_size | Disk used size in bytes
percentage | used_ratio | Used fraction of the disk, 0 to 1. | usage_percentage | \
Disk usage percentage
""")


def encode_system_metrics(figures: Figures, gpus: GpuSample | None = None) -> bytes:
    """Return the system metrics in the Prometheus text format, with an empty line at the end.

    Args:
        figures: The values of the machine.
        gpus: Those of its GPUs; None: without families of GPUs.
    """
    new, old = _families(figures), _deprecated_families(figures)
    of_gpus = () if gpus is None else gpu_families(gpus)
    return "\n".join([*new, *of_gpus, _SEPARATOR, *old, ""]).encode()


def _families(figures: Figures) -> Iterator[str]:
    labels = {old.name: attrgetter(attribute)(figures) for attribute, old in _LABELS.items()}
    yield encode_family(*_INFO, [(labels, 1)])
    for attribute, (family, _) in _SYSTEM.items():
        value = _in_unit(attribute, figures)
        yield encode_family(f"dstack_guest_{family.name}", family.description, [({}, value)])
    for attribute, (family, _) in _DISK.items():
        samples = [(_labels(disk), _in_unit(attribute, disk)) for disk in figures.disks]
        yield encode_family(f"dstack_guest_disk_{family.name}", family.description, samples)


def _deprecated_families(figures: Figures) -> Iterator[str]:
    for attribute, old in _LABELS.items():
        sample = {old.name: attrgetter(attribute)(figures)}, 1
        yield encode_family(f"system_{old.name}", _deprecated(old, _INFO.name), [sample])
    for attribute, (family, old) in _SYSTEM.items():
        description = _deprecated(old, f"dstack_guest_{family.name}")
        yield encode_family(
            f"system_{old.name}", description, [({}, attrgetter(attribute)(figures))]
        )
    for attribute, (family, old) in _DISK.items():
        description = _deprecated(old, f"dstack_guest_disk_{family.name}")
        samples = [(_labels(disk), getattr(disk, attribute)) for disk in figures.disks]
        yield encode_family(f"disk_{old.name}", description, samples)


def _in_unit(attribute: str, source: Figures | Disk) -> float | str:
    """Return a value in the unit of the new family: loads are hundredths in the old one."""
    value: float = attrgetter(attribute)(source)
    if attribute.startswith("load."):
        return f"{value / 100:.2f}"
    return value / 100 if attribute == "percentage" else value


def _deprecated(family: MetricFamily, replacement: str) -> str:
    return f"{family.description} (deprecated: use {replacement})"


def _labels(disk: Disk) -> dict[str, str]:
    return {"name": disk.name, "mount_point": disk.mount_point}
