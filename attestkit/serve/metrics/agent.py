"""`/metrics`: system metrics with the guest agent's names, and the server's own counters.

The system metrics have the same format as in dstack's agent: integers without a fraction, a blank
after the comma between labels, an empty line between metric families. The server's counters are
written by prometheus-client.
"""

import asyncio
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from attestkit.errors import AttestKitError
from attestkit.serve.counters import CONTENT_TYPE, traffic_families
from attestkit.serve.exposition import build_info, encode_metrics
from attestkit.serve.http.views import ViewRequest, ViewResponse
from attestkit.serve.lazy_import import load
from attestkit.serve.machine_info import Disk, Figures, read_figures
from attestkit.serve.services.context import Guest, backend_error

if TYPE_CHECKING:
    from prometheus_client.core import Metric

__all__ = ["CONTENT_TYPE", "AgentMetrics"]

_DEVICE_SECONDS: Final = 0.1  # to wait for the device, so that a scrape does not time out
_DISK: Final = ("name", "mount_point")


class AgentMetrics:
    """The metrics of one guest."""

    def __init__(self) -> None:
        self._events: int | None = None  # last known number
        self._counting: asyncio.Task[int | None] | None = None

    async def show(self, guest: Guest, _: ViewRequest) -> ViewResponse:
        """Return all metrics in the Prometheus text format."""
        await load("psutil", "prometheus_client")
        try:
            figures = read_figures(guest.data_disks)
        except AttestKitError as error:
            raise backend_error("Failed to get system info", error) from error
        events = await self._count(guest)
        text = "\n".join(map(_as_the_agent, _machine(figures)))
        return ViewResponse(
            CONTENT_TYPE, f"{text}\n".encode() + encode_metrics(_families(guest, events))
        )

    async def _count(self, guest: Guest) -> int | None:
        """Return how many events the app has emitted; the last known number if the device is busy.

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
    """Return how many events the app has emitted; None if the device fails."""
    try:
        return guest.cached("runtime events", lambda: len(guest.attester.event_log().runtime))
    except AttestKitError:  # counted elsewhere; the other metrics are still valid
        return None


def _machine(figures: Figures) -> "Iterator[Metric]":
    """Yield the agent's metric families, with its names, labels and help texts."""
    from prometheus_client.core import GaugeMetricFamily as Gauge  # lazy

    for name, help_text, value in (
        ("os_name", "Operating system name", figures.os_name),
        ("os_version", "Operating system version", figures.os_version),
        ("kernel_version", "Kernel version", figures.kernel),
        ("cpu_model", "CPU model information", figures.cpu),
    ):
        family = Gauge(f"system_{name}", help_text, labels=[name])
        family.add_metric([value], 1)
        yield family
    memory, swap, load = figures.memory, figures.swap, figures.load
    yield Gauge("system_num_cpus", "Number of logical CPUs", figures.cpus)
    yield Gauge("system_memory_total", "Total memory in bytes", memory.total)
    yield Gauge("system_memory_available", "Available memory in bytes", memory.available)
    yield Gauge("system_memory_used", "Used memory in bytes", memory.used)
    yield Gauge("system_memory_free", "Free memory in bytes", memory.free)
    yield Gauge("system_swap_total", "Total swap memory in bytes", swap.total)
    yield Gauge("system_swap_used", "Used swap memory in bytes", swap.used)
    yield Gauge("system_swap_free", "Free swap memory in bytes", swap.free)
    yield Gauge("system_uptime", "System uptime in seconds", figures.uptime)
    yield Gauge("system_load_average_1m", "System load average (1 minute)", load.one)
    yield Gauge("system_load_average_5m", "System load average (5 minutes)", load.five)
    yield Gauge("system_load_average_15m", "System load average (15 minutes)", load.fifteen)
    yield from _disks(figures.disks)


def _disks(disks: Sequence[Disk]) -> "Iterator[Metric]":
    from prometheus_client.core import GaugeMetricFamily as Gauge

    total = Gauge("disk_total_size", "Disk total size in bytes", labels=_DISK)
    free = Gauge("disk_free_size", "Disk free size in bytes", labels=_DISK)
    used = Gauge("disk_used_size", "Disk used size in bytes", labels=_DISK)
    percentage = Gauge("disk_usage_percentage", "Disk usage percentage", labels=_DISK)
    for disk in disks:
        labels = (disk.name, disk.mount_point)
        total.add_metric(labels, disk.total)
        free.add_metric(labels, disk.free)
        used.add_metric(labels, disk.used)
        percentage.add_metric(labels, disk.percentage)
    yield from (total, free, used, percentage)


def _as_the_agent(family: "Metric") -> str:
    """Return a metric family in the text format, with the agent's spacing."""
    lines = [
        f"# HELP {family.name} {family.documentation}",
        f"# TYPE {family.name} {family.type}",
    ]
    for name, labels, value, *_ in family.samples:
        inside = ", ".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
        whole = int(value) if value == int(value) else value
        lines.append(f"{name}{{{inside}}} {whole}" if inside else f"{name} {whole}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


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
