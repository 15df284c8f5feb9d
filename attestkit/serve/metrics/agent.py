"""`/metrics`: system metrics with the guest agent's names, and the server's own counters.

The server's counters are written by prometheus-client, those of the machine and its GPUs with the
names and the text format of dstack's guest agent.

First the families `dstack_guest_*` of agents since 0.6.0, then `dstack_gpu_*` of machines with
NVIDIA GPUs, then the older ones, which are deprecated there. The format differs from
prometheus-client's: integers without a fraction, a space after the comma between labels, an empty
line between families. Names and labels are dstack's; the HELP texts of GPUs are of attestkit.
"""

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Final, NamedTuple

from attestkit.errors import AttestKitError
from attestkit.serve.counters import CONTENT_TYPE, build_info, encode_metrics, traffic_families
from attestkit.serve.http.views import ViewRequest, ViewResponse
from attestkit.serve.lazy_import import load
from attestkit.serve.machine_info import Disk, Figures, GpuSample, read_figures
from attestkit.serve.services.backend_errors import backend_error
from attestkit.serve.services.context import Guest

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from attestkit.gpu.driver.nvml import GpuTelemetry

_SEPARATOR: Final = "# The metrics below are deprecated; their help names the replacements.\n"
_INFO: Final = "dstack_guest_info"
_INFO_TEXT: Final = "Static system information: OS, kernel and CPU model."


class _Family(NamedTuple):
    """Name and HELP text of a metric family and of the deprecated one; names without prefix."""

    name: str
    text: str
    old_name: str
    old_text: str


def _make_families(table: str) -> dict[str, _Family]:
    """Return the families in the lines of a table, by attribute of Figures or Disk.

    A line is `attribute | name | text | old name | old text`. The old text is optional; by default
    it is the text without its full stop.
    """
    found = {}
    for line in table.strip().splitlines():
        attribute, name, text, old_name, *old_text = line.split(" | ")
        found[attribute] = _Family(name, text, old_name, *(old_text or [text.removesuffix(".")]))
    return found


# Deprecated families, by attribute of Figures; their names are labels of `_INFO`.
_LABELS: Final = {
    "os_name": ("os_name", "Operating system name"),
    "os_version": ("os_version", "Operating system version"),
    "kernel": ("kernel_version", "Kernel version"),
    "cpu": ("cpu_model", "CPU model information"),
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
        gpus: The values of its GPUs; None: no families of GPUs.
    """
    new, old = _system_families(figures), _deprecated_families(figures)
    of_gpus = () if gpus is None else gpu_families(gpus)
    return "\n".join([*new, *of_gpus, _SEPARATOR, *old, ""]).encode()


def _system_families(figures: Figures) -> Iterator[str]:
    labels = {name: attrgetter(attribute)(figures) for attribute, (name, _) in _LABELS.items()}
    yield encode_family(_INFO, _INFO_TEXT, [(labels, 1)])
    for attribute, family in _SYSTEM.items():
        value = _in_unit(attribute, figures)
        yield encode_family(f"dstack_guest_{family.name}", family.text, [({}, value)])
    for attribute, family in _DISK.items():
        samples = [(_disk_labels(disk), _in_unit(attribute, disk)) for disk in figures.disks]
        yield encode_family(f"dstack_guest_disk_{family.name}", family.text, samples)


def _deprecated_families(figures: Figures) -> Iterator[str]:
    for attribute, (name, text) in _LABELS.items():
        sample = {name: attrgetter(attribute)(figures)}, 1
        yield encode_family(f"system_{name}", _deprecated(text, _INFO), [sample])
    for attribute, family in _SYSTEM.items():
        text = _deprecated(family.old_text, f"dstack_guest_{family.name}")
        value = attrgetter(attribute)(figures)
        yield encode_family(f"system_{family.old_name}", text, [({}, value)])
    for attribute, family in _DISK.items():
        text = _deprecated(family.old_text, f"dstack_guest_disk_{family.name}")
        samples = [(_disk_labels(disk), getattr(disk, attribute)) for disk in figures.disks]
        yield encode_family(f"disk_{family.old_name}", text, samples)


def _in_unit(attribute: str, source: Figures | Disk) -> float | str:
    """Return the value of a (dotted) attribute in the unit of its new family.

    A load is a text with two decimals, and not in hundredths; a percentage becomes a fraction.
    """
    value: float = attrgetter(attribute)(source)
    if attribute.startswith("load."):
        return f"{value / 100:.2f}"
    return value / 100 if attribute == "percentage" else value


def _deprecated(text: str, replacement: str) -> str:
    return f"{text} (deprecated: use {replacement})"


def _disk_labels(disk: Disk) -> dict[str, str]:
    return {"name": disk.name, "mount_point": disk.mount_point}


def gpu_families(sample: GpuSample) -> Iterator[str]:
    """Yield the families of GPUs in the text format; an unknown value has no sample."""
    for name, text, value in (
        ("nvml_up", "Whether NVIDIA's driver could be read.", not sample.error),
        ("cc_ready", "Whether the GPUs accept work.", sample.ready),
        ("cc_enabled", "Whether confidential computing of the GPUs is on.", sample.enabled),
    ):
        if value is not None:
            yield encode_family(f"dstack_gpu_{name}", text, [({}, int(value))])
    if sample.error:
        return
    text = "Seconds since the values of the GPUs were read."
    yield encode_family("dstack_gpu_sample_age_seconds", text, [({}, f"{sample.age:.3f}")])
    for name, text in _OF_GPU.items():
        values = [(_gpu_labels(gpu), _gpu_values(gpu)[name]) for gpu in sample.gpus]
        samples = [(labels, value) for labels, value in values if value is not None]
        if samples:
            yield encode_family(f"dstack_gpu_{name}", text, samples)


# Families with a sample for each GPU.
_OF_GPU: Final = {
    "utilization_percent": "Busy time of the processors in percent.",
    "memory_utilization_percent": "Busy time of the memory in percent.",
    "memory_total_bytes": "Total memory of the GPU in bytes.",
    "memory_used_bytes": "Used memory of the GPU in bytes.",
    "memory_free_bytes": "Free memory of the GPU in bytes.",
    "temperature_celsius": "Temperature in degrees Celsius.",
    "power_usage_milliwatts": "Power in milliwatts.",
    "query_errors": "Values that the driver did not return.",
}


def _gpu_values(gpu: "GpuTelemetry") -> dict[str, int | None]:
    """Return the values of a GPU by the name of their family; None: it could not be read."""
    values = (
        *(gpu.utilization or (None, None)),
        *(gpu.memory or (None, None, None)),
        *(gpu.temperature, gpu.power_usage, len(gpu.errors)),
    )
    return dict(zip(_OF_GPU, values, strict=True))


def _gpu_labels(gpu: "GpuTelemetry") -> dict[str, str]:
    return {"index": str(gpu.position), "uuid": gpu.uuid, "pci_bus_id": gpu.pci_bus_id}


def encode_family(
    name: str, text: str, samples: Iterable[tuple[Mapping[str, str], float | str]]
) -> str:
    """Return a family of gauges in the text format.

    `text` is its HELP text; each of the samples is a pair of labels (values by name) and a value.
    """
    lines = [f"# HELP {name} {text}", f"# TYPE {name} gauge"]
    for labels, value in samples:
        inside = ", ".join(f'{label}="{_escape(text)}"' for label, text in labels.items())
        whole = int(value) if isinstance(value, float) and value == int(value) else value
        lines.append(f"{name}{{{inside}}} {whole}" if inside else f"{name} {whole}")
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


__all__ = ["CONTENT_TYPE", "AgentMetrics"]

_DEVICE_SECONDS: Final = 0.1  # to wait for the device, so that a scrape does not time out


class AgentMetrics:
    """The metrics of one guest."""

    def __init__(self) -> None:
        self._events: int | None = None  # last known number
        self._counting: asyncio.Task[int | None] | None = None

    async def show(self, guest: Guest, _: ViewRequest) -> ViewResponse:
        """Return all metrics in the Prometheus text format.

        Raises:
            BackendError: If the system information cannot be read. Unknown values of GPUs and of
                the event log are left out instead.
        """
        await load("psutil", "prometheus_client")
        try:
            figures = read_figures(guest.data_disks)
        except AttestKitError as error:
            raise backend_error("Failed to get system info", error) from error
        events = await self._count(guest)
        gpus = await guest.gpus.sample(wait=_DEVICE_SECONDS)
        system = encode_system_metrics(figures, gpus)
        return ViewResponse(CONTENT_TYPE, system + encode_metrics(_families(guest, events)))

    async def _count(self, guest: Guest) -> int | None:
        """Return how many runtime events are in the log; the last known number with a busy device.

        A pending query stays in the device's queue, and answers a later scrape.
        """
        if self._counting is None:
            work = guest.on_device(lambda: _runtime_events(guest))
            self._counting = asyncio.create_task(work)
        counting = self._counting
        await asyncio.wait({counting}, timeout=_DEVICE_SECONDS)
        if counting.done():
            if self._counting is counting:
                self._counting = None
            self._events = counting.result()
        return self._events


def _runtime_events(guest: Guest) -> int | None:
    """Return how many runtime events are in the event log; None if the device fails."""
    try:
        return guest.cached("runtime events", lambda: len(guest.attester.event_log().runtime))
    except AttestKitError:  # counted elsewhere; the other metrics are still valid
        return None


def _families(guest: Guest, events: int | None) -> "Iterator[Metric]":
    """Yield the metric families of the server's own counters.

    Args:
        guest: The app, with its counters.
        events: Number of runtime events in the event log; None if unknown.
    """
    from prometheus_client.core import CounterMetricFamily as Counter
    from prometheus_client.core import GaugeMetricFamily as Gauge

    stats, attester = guest.stats, guest.attester
    yield from traffic_families(stats)
    yield Gauge("attestkit_open_log_streams", "Open streams of container logs", stats.streams)
    yield Counter(
        "attestkit_quotes", "Quotes and other evidence that the platform produced", stats.quotes
    )
    errors = Counter(
        "attestkit_device_errors", "Quotes that the platform failed to produce", labels=("error",)
    )
    for name, count in sorted(stats.device_errors.items()):
        errors.add_metric((name,), count)
    yield errors
    yield Gauge("attestkit_runtime_events", "Runtime events in the event log", events)
    yield build_info(
        "Version, backend and platform; always 1",
        backend=attester.backend.name,
        simulated="true" if attester.simulated else "false",
    )
