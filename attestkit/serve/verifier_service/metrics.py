"""`GET /metrics` of a verifier service, on its own listener (`--verifier-metrics`).

Clients of the verifier need not know its load, so the metrics are not on the verifier's listener.
For a worker pool, the supervisor serves the metrics of all workers. A worker sends all its counters
with each heartbeat, and the last message counts. After its exit its counters stay in the sum, so
that no counter decreases. At a graceful exit it sends them once more; a killed worker loses what it
counted after its last heartbeat.
"""

from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass, field
from socket import socket
from time import perf_counter
from typing import TYPE_CHECKING, ClassVar, Final

from attestkit.serve import counters
from attestkit.serve.config.limits import Limits
from attestkit.serve.http import asgi
from attestkit.serve.http.request_checks import has_loopback_host, is_loopback
from attestkit.serve.lazy_import import load
from attestkit.serve.server_log.access_log import AccessLog

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from attestkit.serve.http.server import Listener

NAME: Final = "verifier_metrics"
"""Name of the listener."""

_NOT_OURS: Final = (
    "Host header: not a loopback name, and the metrics listen on loopback only; use localhost or "
    "127.0.0.1, or give --verifier-metrics another address"
)
_JSON: Final = b"application/json"
_READING: Final = frozenset({"GET", "HEAD"})


@dataclass(eq=False)
class VerifierMetricsApp:
    """ASGI application of the metrics."""

    headers: ClassVar[tuple[tuple[bytes, bytes], ...]] = asgi.security_headers(b"attestkit")[:2]
    """Sent with every response, including the listener's own errors."""

    get_stats: Callable[[], counters.Stats]  # returns the counters of the verifiers
    traffic: counters.Traffic = field(default_factory=counters.Traffic)  # counters of this listener
    aggregator: "MetricsAggregator | None" = None  # of a worker pool: the supervisor's numbers
    _: KW_ONLY
    only_local: bool = False  # accept loopback names in the Host header only (DNS rebinding)

    async def __call__(self, scope: asgi.Scope, _: asgi.Receive, send: asgi.Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            raise RuntimeError(f"ASGI scope: unsupported type {scope['type']!r}")
        begin, name = perf_counter(), counters.OTHER
        if self.only_local and not has_loopback_host(scope["headers"]):
            status, media_type, body = 400, _JSON, asgi.encode_error(_NOT_OURS)
        elif scope["raw_path"] == b"/metrics" and scope["method"] in _READING:
            await load("prometheus_client")
            name, status, media_type = "metrics", 200, counters.CONTENT_TYPE
            body = counters.encode_metrics(self._families())
        else:
            status, media_type = 404, _JSON
            body = asgi.encode_error("No such path; use GET /metrics")
        self.traffic.done(name, status, perf_counter() - begin)
        headers = [(b"content-type", media_type), *self.headers]
        await asgi.send_response(scope, send, status, headers, body)

    def _families(self) -> "Iterator[Metric]":
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        yield from counters.traffic_families(self.get_stats())
        if (pool := self.aggregator) is not None:
            yield GaugeMetricFamily("attestkit_workers", "Workers that are ready", pool.workers)
            yield CounterMetricFamily(
                "attestkit_worker_restarts", "Workers that exited and were restarted", pool.restarts
            )
        yield counters.build_info("Version; always 1")


_SECONDS: Final = 1.0  # drain time of the endpoint, after that of the workers
_CONNECTIONS: Final = 64  # so that clients leave descriptors for starting workers


class MetricsAggregator:
    """Sum of the counters of all workers, including former ones.

    A slot is the number of a worker in the pool; its replacement gets the same slot.

    Attributes:
        workers: Number of ready workers, set by the supervisor.
        restarts: Number of restarts, set by the supervisor.
    """

    def __init__(self) -> None:
        self.workers: int = 0
        self.restarts: int = 0
        self._ended = counters.Stats()
        self._last: dict[int, counters.Stats] = {}  # by slot

    def update(self, slot: int, data: bytes) -> None:
        """Store `data`, the encoded counters (`encode_stats`) of the current worker of a slot.

        Raises:
            FormatError: If the message is malformed.
        """
        self._last[slot] = counters.decode_stats(data)

    def retire(self, slot: int) -> None:
        """Add the counters of the worker in `slot`, which has exited, to those of former ones."""
        last = self._last.pop(slot, counters.Stats())
        for traffic in last.traffic.values():
            traffic.connections = 0  # closed by the exit
        self._ended.add(last)

    def total(self) -> counters.Stats:
        """Return the sum of the counters of all workers, as a new object."""
        found = counters.Stats()
        for stats in (self._ended, *self._last.values()):
            found.add(stats)
        return found


def metrics_listener(
    sock: socket,
    aggregator: MetricsAggregator,
    limits: Limits,
    access_log: AccessLog | None,
    *,
    handed_over: bool,
) -> "Listener":
    """Return the listener that serves the metrics of all workers.

    Args:
        sock: Listening socket.
        aggregator: Counters of the workers.
        limits: Limits of the server; the listener gets smaller ones.
        access_log: Log of the requests; None: they are not logged.
        handed_over: Whether the socket was inherited, so that it stays open for the next server.
    """
    from attestkit.serve.http.server import Listener  # lazy: imports uvicorn

    own = counters.Stats()

    def get_stats() -> counters.Stats:
        total = aggregator.total()
        total.traffic[NAME] = own.of(NAME)
        return total

    app = VerifierMetricsApp(get_stats, own.of(NAME), aggregator, only_local=is_loopback(sock))
    limits = limits._replace(
        drain_seconds=min(limits.drain_seconds, _SECONDS),
        connections=min(limits.connections, _CONNECTIONS),
    )
    return Listener(app, sock, limits, NAME, own.of(NAME), access_log, handed_over=handed_over)
