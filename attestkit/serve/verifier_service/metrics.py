"""`GET /metrics` of a verifier service, on its own listener (`--verifier-metrics`).

Clients of the verifier need not know its load, so the metrics are not on the verifier's listener.
For a worker pool, the supervisor serves the metrics of all workers.
"""

from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

from attestkit.serve.counters import (
    CONTENT_TYPE,
    OTHER,
    Stats,
    Traffic,
    build_info,
    encode_metrics,
    traffic_families,
)
from attestkit.serve.http.asgi import (
    Receive,
    Scope,
    Send,
    encode_error,
    security_headers,
    send_response,
)
from attestkit.serve.http.request_checks import has_loopback_host
from attestkit.serve.lazy_import import load

if TYPE_CHECKING:
    from prometheus_client.core import Metric

NAME: Final = "verifier_metrics"
"""Name of the listener."""

_NOT_OURS: Final = (
    "Host header: not a loopback name, and the metrics listen on loopback only; use localhost or "
    "127.0.0.1, or give --verifier-metrics another address"
)
_JSON: Final = b"application/json"
_READING: Final = frozenset({"GET", "HEAD"})


class Processes(Protocol):
    """Numbers of a worker pool, which only its supervisor knows."""

    workers: int
    """Number of workers that accept connections."""
    restarts: int
    """Number of restarts of workers."""


@dataclass(eq=False)
class VerifierMetricsApp:
    """ASGI application of the metrics."""

    headers: ClassVar[tuple[tuple[bytes, bytes], ...]] = security_headers(b"attestkit")[:2]
    """Sent with every response, including the listener's own errors."""

    get_stats: Callable[[], Stats]  # returns the counters of the verifiers
    traffic: Traffic = field(default_factory=Traffic)  # counters of this listener
    aggregator: Processes | None = None  # of a worker pool: the supervisor's numbers
    _: KW_ONLY
    only_local: bool = False  # accept loopback names in the Host header only (DNS rebinding)

    async def __call__(self, scope: Scope, _: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            raise RuntimeError(f"ASGI scope: unsupported type {scope['type']!r}")
        begin, name = perf_counter(), OTHER
        if self.only_local and not has_loopback_host(scope["headers"]):
            status, media_type, body = 400, _JSON, encode_error(_NOT_OURS)
        elif scope["raw_path"] == b"/metrics" and scope["method"] in _READING:
            await load("prometheus_client")
            name, status, media_type = "metrics", 200, CONTENT_TYPE
            body = encode_metrics(self._families())
        else:
            status, media_type = 404, _JSON
            body = encode_error("No such path; use GET /metrics")
        self.traffic.done(name, status, perf_counter() - begin)
        headers = [(b"content-type", media_type), *self.headers]
        await send_response(scope, send, status, headers, body)

    def _families(self) -> "Iterator[Metric]":
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        yield from traffic_families(self.get_stats())
        if (pool := self.aggregator) is not None:
            yield GaugeMetricFamily("attestkit_workers", "Workers that are ready", pool.workers)
            yield CounterMetricFamily(
                "attestkit_worker_restarts", "Workers that exited and were restarted", pool.restarts
            )
        yield build_info("Version; always 1")
