"""`/metrics`: system metrics with the guest agent's names, and the server's own counters.

The server's counters are written by prometheus-client.
"""

import asyncio
from typing import TYPE_CHECKING, Final

from attestkit.errors import AttestKitError
from attestkit.serve.counters import CONTENT_TYPE, build_info, encode_metrics, traffic_families
from attestkit.serve.http.views import ViewRequest, ViewResponse
from attestkit.serve.lazy_import import load
from attestkit.serve.machine_info import read_figures
from attestkit.serve.metrics.system_metrics import encode_system_metrics
from attestkit.serve.services.backend_errors import backend_error
from attestkit.serve.services.context import Guest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric

__all__ = ["CONTENT_TYPE", "AgentMetrics"]

_DEVICE_SECONDS: Final = 0.1  # to wait for the device, so that a scrape does not time out


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
        gpus = await guest.gpus.sample(wait=_DEVICE_SECONDS)
        system = encode_system_metrics(figures, gpus)
        return ViewResponse(CONTENT_TYPE, system + encode_metrics(_families(guest, events)))

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
