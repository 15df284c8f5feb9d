"""What listeners have counted, as families of metrics: of an agent, and of a verifier service."""

from itertools import accumulate
from typing import TYPE_CHECKING, Final

from attestkit.serve.stats import BOUNDS, Stats

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric

__all__ = ["CONTENT_TYPE", "traffic_families"]

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
