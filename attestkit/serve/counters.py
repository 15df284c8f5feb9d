"""Counters of the server, and their encoding as metrics.

They are plain numbers in dictionaries: counting a request takes a microsecond, and
prometheus-client is only loaded for a scrape. A worker process sends them to its supervisor.
"""

from bisect import bisect_left
from collections import Counter
from itertools import accumulate
from types import GenericAlias
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias, get_args

import msgspec

from attestkit._formats.msgpack import MsgpackReader
from attestkit._native import CORE
from attestkit._package import own_version
from attestkit.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client.core import Metric


BOUNDS: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
"""Upper bounds of the latency buckets in seconds; one more bucket is for the rest."""

OTHER: Final = "other"
"""Method of requests to unknown paths, so that clients cannot create metric labels."""


MAX_ENCODED_STATS: Final = 32_768
"""Limit in bytes. A method and status takes about 30; there are a few dozen."""

_MAX_DEPTH: Final = 8  # an encoded Stats has 6 levels
_BUCKETS: Final = len(BOUNDS) + 1
_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]
_Buckets: TypeAlias = Annotated[
    list[_Count], msgspec.Meta(min_length=_BUCKETS, max_length=_BUCKETS)
]


class Latency(msgspec.Struct):
    """Histogram of the durations of one method's requests.

    Attributes:
        buckets: Number of requests by duration, not cumulative: up to each of BOUNDS, and longer.
        seconds: Sum of the durations.
    """

    buckets: _Buckets = msgspec.field(default_factory=lambda: [0] * _BUCKETS)
    seconds: Annotated[float, msgspec.Meta(ge=0, lt=2**63)] = 0.0

    def add(self, more: "Latency") -> None:
        """Add the requests of another histogram."""
        self.seconds += more.seconds
        self.buckets = [a + b for a, b in zip(self.buckets, more.buckets, strict=True)]


class Traffic(msgspec.Struct):
    """Counters of one listener.

    Attributes:
        requests: Number of requests by method and status.
        latencies: Durations by method; for a stream, the time until its first piece.
        refusals: Errors of the listener before a request was parsed, by status.
        connections: Number of open connections.
    """

    requests: Counter[tuple[str, int]] = msgspec.field(default_factory=Counter)
    latencies: dict[str, Latency] = {}
    refusals: Counter[int] = msgspec.field(default_factory=Counter)
    connections: _Count = 0

    def done(self, method: str, status: int, seconds: float) -> None:
        """Count a request to `method`, its HTTP `status`, and its duration in `seconds`."""
        self.requests[method, status] += 1
        latency = self.latencies.get(method)
        if latency is None:
            latency = self.latencies[method] = Latency()
        latency.buckets[bisect_left(BOUNDS, seconds)] += 1
        latency.seconds += seconds

    def add(self, more: "Traffic") -> None:
        """Add the counters of the same listener in another worker process."""
        self.connections += more.connections
        self.requests.update(more.requests)
        self.refusals.update(more.refusals)
        for method, latency in more.latencies.items():
            self.latencies.setdefault(method, Latency()).add(latency)


class Stats(msgspec.Struct):
    """Counters of all listeners and of the device.

    Attributes:
        traffic: Counters of each listener by its name, such as dstack or verifier.
        quotes: Number of quotes, and of the evidence of other platforms, that the device produced.
        device_errors: Number of failures of the device by name of the exception class.
        streams: Number of open streams of container logs.
        verdicts: Number of results of the verifier service by outcome ("accepted", "refused" or
            "failed") and by the step of the verification that refused or failed.
    """

    traffic: dict[str, Traffic] = {}
    quotes: _Count = 0
    device_errors: Counter[str] = msgspec.field(default_factory=Counter)
    streams: _Count = 0
    verdicts: Counter[tuple[str, str]] = msgspec.field(default_factory=Counter)

    def of(self, listener: str) -> Traffic:
        """Return the counters of the listener with this name, new ones at the first call."""
        return self.traffic.setdefault(listener, Traffic())

    def add(self, more: "Stats") -> None:
        """Add the traffic and verdicts of another worker process, which has no device."""
        self.verdicts.update(more.verdicts)
        for name, traffic in more.traffic.items():
            self.of(name).add(traffic)


encode_stats: Final = msgspec.msgpack.Encoder().encode


def decode_stats(data: bytes) -> Stats:
    """Return the counters that `encode_stats` has encoded.

    Raises:
        FormatError: If the data are malformed.
    """
    MsgpackReader(data).check_depth(_MAX_DEPTH)  # the decoder is recursive
    try:
        return _DECODER.decode(data)
    except msgspec.ValidationError as error:
        raise FormatError(f"worker counters: {error}", reason="wrong_type") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"worker counters: {error}", reason="syntax") from error


def _decode_counter(kind: object, value: object) -> object:
    """Convert `value` to a `collections.Counter`, a type that msgspec does not support.

    msgspec calls this hook for each field with the type `kind`, such as `Counter[str]`.
    """
    plain = GenericAlias(dict, (*get_args(kind), _Count))
    return Counter(msgspec.convert(value, plain))


_DECODER: Final = msgspec.msgpack.Decoder(Stats, dec_hook=_decode_counter)


# Prometheus metric families of the request counters of an agent or a verifier service.

CONTENT_TYPE: Final = b"text/plain; charset=utf-8"


def traffic_families(stats: Stats) -> "Iterator[Metric]":
    """Yield the metric families of requests and, if there are any, of verification results."""
    yield from _requests(stats)
    if stats.verdicts:
        yield _verdicts(stats)


def _requests(stats: Stats) -> "Iterator[Metric]":
    from prometheus_client import core  # lazy

    requests = core.CounterMetricFamily(
        "attestkit_requests", "Requests answered", labels=("listener", "method", "status")
    )
    refusals = core.CounterMetricFamily(
        "attestkit_refusals",
        "Connections and messages refused before they were a request",
        labels=("listener", "status"),
    )
    connections = core.GaugeMetricFamily(
        "attestkit_open_connections", "Connections open now", labels=("listener",)
    )
    durations = core.HistogramMetricFamily(
        "attestkit_request_duration_seconds",
        "Seconds from a request's headers to its response, of a stream to its first piece",
        labels=("listener", "method"),
    )
    bounds = [*map(str, BOUNDS), "+Inf"]
    for listener, traffic in sorted(stats.traffic.items()):
        for (method, status), count in sorted(traffic.requests.items()):
            requests.add_metric((listener, method, str(status)), count)
        for status, count in sorted(traffic.refusals.items()):
            refusals.add_metric((listener, str(status)), count)
        connections.add_metric((listener,), traffic.connections)
        for method, latency in sorted(traffic.latencies.items()):
            buckets = list(zip(bounds, accumulate(latency.buckets), strict=True))
            durations.add_metric((listener, method), buckets, latency.seconds)
    yield from (requests, refusals, connections, durations)


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


def build_info(description: str, **labels: str) -> "Metric":
    """Return the metric family attestkit_build_info: its value is 1, its labels are constant.

    `description` is its HELP text. The labels are the program's version, the native core and
    `labels`.
    """
    from prometheus_client.core import GaugeMetricFamily

    labels = {"version": own_version(), "core": CORE, **labels}
    build = GaugeMetricFamily("attestkit_build_info", description, labels=tuple(labels))
    build.add_metric(tuple(labels.values()), 1)
    return build


def encode_metrics(families: "Iterable[Metric]") -> bytes:
    """Return `families`, and metrics of this process, in the Prometheus text format."""
    from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
    from prometheus_client.registry import Collector

    class Families(Collector):
        def collect(self) -> "Iterable[Metric]":
            return families

    registry = CollectorRegistry()  # the global one belongs to the whole program
    registry.register(Families())
    ProcessCollector(registry=registry)
    return generate_latest(registry)
