"""Counters of the server, which the metrics export.

They are plain numbers in dictionaries: counting a request takes a microsecond, and
prometheus-client is only loaded for a scrape.
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
"""Upper bounds of the latency buckets in seconds; one more bucket is for the rest."""

OTHER: Final = "other"
"""Method of requests to unknown paths, so that clients cannot create metric labels."""


class Latency:
    """Histogram of the durations of one method's requests.

    Attributes:
        buckets: Number of requests by duration (not cumulative), one more than BOUNDS.
        seconds: Sum of the durations.
    """

    __slots__ = ("buckets", "seconds")

    def __init__(self) -> None:
        self.buckets: list[int] = [0] * (len(BOUNDS) + 1)
        self.seconds: float = 0.0


class Traffic:
    """Counters of one listener.

    Attributes:
        requests: Number of requests by method and status.
        latencies: Durations by method; of a stream until its first piece.
        refusals: Errors of the listener before a request was parsed, by status.
        connections: Number of open connections.
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
    """Counters of all listeners and of the device.

    Attributes:
        traffic: By name of the listener: dstack, tappd, http, dev_http, verifier, pccs.
        quotes: Number of quotes and other evidence.
        device_errors: Number of failures by name of the error class.
        streams: Number of open streams of container logs.
        verdicts: Results of the verifier service: "accepted", "refused" or "failed", and the step.
    """

    __slots__ = ("device_errors", "quotes", "streams", "traffic", "verdicts")

    def __init__(self) -> None:
        self.traffic: dict[str, Traffic] = {}
        self.quotes: int = 0
        self.device_errors: Counter[str] = Counter()
        self.streams: int = 0
        self.verdicts: Counter[tuple[str, str]] = Counter()

    def of(self, listener: str) -> Traffic:
        """Return the counters of a listener."""
        return self.traffic.setdefault(listener, Traffic())


# Prometheus metric families of the request counters of an agent or a verifier service.

CONTENT_TYPE: Final = b"text/plain; charset=utf-8"


def traffic_families(stats: Stats) -> "Iterator[Metric]":
    """Yield the families of requests and, if there are any, of verification results."""
    yield from _requests(stats)
    yield _durations(stats)
    if stats.verdicts:
        yield _verdicts(stats)


def _requests(stats: Stats) -> "Iterator[Metric]":
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # lazy

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
        "Seconds from a request's headers to its response, of a stream to its first piece",
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
        "Evidence verified; step is the step that refused it, or in which verification failed",
        labels=("verdict", "step"),
    )
    for (verdict, step), count in sorted(stats.verdicts.items()):
        verdicts.add_metric((verdict, step), count)
    return verdicts
