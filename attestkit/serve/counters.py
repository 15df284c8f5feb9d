"""What the server counts while it works; `/metrics` shows it.

Plain numbers in dictionaries: a request costs one microsecond here, and who never asks for the
metrics never loads the library that writes them.
"""

from bisect import bisect_left
from collections import Counter
from itertools import accumulate
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric

__all__ = ["BOUNDS", "CONTENT_TYPE", "OTHER", "Latency", "Stats", "Traffic", "traffic_families"]

BOUNDS: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
"""Upper bounds of the latency buckets in seconds; one more bucket has what took longer."""

OTHER: Final = "other"
"""The method of requests that lead to none, so that strangers cannot invent names."""


class Latency:
    """How long the requests of one method took.

    Attributes:
        buckets: Requests by duration, one more than BOUNDS; each counted once.
        seconds: The sum of all.
    """

    __slots__ = ("buckets", "seconds")

    def __init__(self) -> None:
        self.buckets: list[int] = [0] * (len(BOUNDS) + 1)
        self.seconds: float = 0.0


class Traffic:
    """What one listener has seen.

    Attributes:
        requests: How many, by method and status.
        latencies: How long they took, by method; a stream counts until its first piece.
        refusals: What the listener refused before it was a request, by status.
        connections: How many are open.
    """

    __slots__ = ("connections", "latencies", "refusals", "requests")

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.latencies: dict[str, Latency] = {}
        self.refusals: Counter[int] = Counter()
        self.connections: int = 0

    def done(self, method: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self.requests[method, status] += 1
        latency = self.latencies.get(method)
        if latency is None:
            latency = self.latencies[method] = Latency()
        latency.buckets[bisect_left(BOUNDS, seconds)] += 1
        latency.seconds += seconds


class Stats:
    """What all listeners have seen, and the device behind them.

    Attributes:
        traffic: By the name of the listener: dstack, tappd, http, dev_http, verifier, pccs.
        quotes: How many the platform has given.
        device_errors: How many it has refused or failed, by the name of the error's class.
        streams: How many streams of container logs are open.
        verdicts: Of the verifier service: "accepted", "refused" or "failed", and the step.
    """

    __slots__ = ("device_errors", "quotes", "streams", "traffic", "verdicts")

    def __init__(self) -> None:
        self.traffic: dict[str, Traffic] = {}
        self.quotes: int = 0
        self.device_errors: Counter[str] = Counter()
        self.streams: int = 0
        self.verdicts: Counter[tuple[str, str]] = Counter()

    def of(self, listener: str) -> Traffic:
        """Return what the listener of that name has seen."""
        return self.traffic.setdefault(listener, Traffic())


# What listeners have counted, as families of metrics: of an agent, and of a verifier service.

CONTENT_TYPE: Final = b"text/plain; charset=utf-8"


def traffic_families(stats: Stats) -> "Iterator[Metric]":
    """Yield the families of requests and of verdicts; the latter where a verifier has given any."""
    yield from _requests(stats)
    yield _durations(stats)
    if stats.verdicts:
        yield _verdicts(stats)


def _requests(stats: Stats) -> "Iterator[Metric]":
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # late: who collects

    requests = CounterMetricFamily(
        "attestkit_requests", "Requests answered", labels=("listener", "method", "status")
    )
    refusals = CounterMetricFamily(
        "attestkit_refusals",
        "Connections and messages refused before they were a request",
        labels=("listener", "status"),
    )
    connections = GaugeMetricFamily(
        "attestkit_open_connections", "Connections open now", labels=("listener",)
    )
    for listener, traffic in sorted(stats.traffic.items()):
        for (method, status), count in sorted(traffic.requests.items()):
            requests.add_metric((listener, method, str(status)), count)
        for status, count in sorted(traffic.refusals.items()):
            refusals.add_metric((listener, str(status)), count)
        connections.add_metric((listener,), traffic.connections)
    yield from (requests, refusals, connections)


def _durations(stats: Stats) -> "Metric":
    from prometheus_client.core import HistogramMetricFamily

    durations = HistogramMetricFamily(
        "attestkit_request_duration_seconds",
        "Seconds from a request's headers to its answer, of a stream to its first piece",
        labels=("listener", "method"),
    )
    bounds = [*map(str, BOUNDS), "+Inf"]
    for listener, traffic in sorted(stats.traffic.items()):
        for method, latency in sorted(traffic.latencies.items()):
            buckets = list(zip(bounds, accumulate(latency.buckets), strict=True))
            durations.add_metric((listener, method), buckets, latency.seconds)
    return durations


def _verdicts(stats: Stats) -> "Metric":
    from prometheus_client.core import CounterMetricFamily

    verdicts = CounterMetricFamily(
        "attestkit_verdicts",
        "Evidence judged; step is where it was refused, or where judging failed",
        labels=("verdict", "step"),
    )
    for (verdict, step), count in sorted(stats.verdicts.items()):
        verdicts.add_metric((verdict, step), count)
    return verdicts
