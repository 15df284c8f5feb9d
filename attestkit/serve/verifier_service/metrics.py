"""`GET /metrics` of a verifier service, on its own listener (`--verifier-metrics`).

Clients of the verifier need not know its load, so the metrics are not on the verifier's listener.
For a worker pool, the supervisor serves the metrics of all workers.
"""

from collections.abc import Callable, Iterator
from time import perf_counter
from typing import TYPE_CHECKING, Final, Protocol

from attestkit._native import CORE
from attestkit._version import own_version
from attestkit.serve.counters import CONTENT_TYPE, OTHER, Stats, Traffic, traffic_families
from attestkit.serve.http.asgi import Receive, Scope, Send
from attestkit.serve.http.errors import encode_error
from attestkit.serve.http.request_checks import has_loopback_host
from attestkit.serve.lazy_import import load

if TYPE_CHECKING:
    from prometheus_client.core import Metric

__all__ = ["NAME", "VerifierMetricsApp"]

NAME: Final = "verifier_metrics"
"""Name of the listener."""

_NOT_OURS: Final = (
    "Host header: not a loopback name, and the metrics listen on loopback only; use localhost or "
    "127.0.0.1, or give --verifier-metrics another address"
)
_JSON: Final = b"application/json"
_READING: Final = frozenset({"GET", "HEAD"})


class Processes(Protocol):
    """Of a service of several processes, what no one of them knows."""

    workers: int
    """How many serve now."""
    restarts: int
    """How many ended and were to be replaced."""


class VerifierMetricsApp:
    """ASGI application of the metrics.

    Args:
        get_stats: Returns the counters of the verifiers.
        traffic: Counters of this listener.
        tally: Aggregator with the number of workers, in a pool.
        only_local: Accept loopback names in the Host header only (DNS rebinding).
    """

    headers: tuple[tuple[bytes, bytes], ...] = (
        (b"server", b"attestkit"),
        (b"x-content-type-options", b"nosniff"),
    )
    """Sent with every response, including the listener's own errors."""

    def __init__(
        self,
        get_stats: Callable[[], Stats],
        traffic: Traffic | None = None,
        aggregator: Processes | None = None,
        *,
        only_local: bool = False,
    ) -> None:
        self._get_stats = get_stats
        self._traffic = traffic or Traffic()
        self._aggregator = aggregator
        self._only_local = only_local

    async def __call__(self, scope: Scope, _: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            raise RuntimeError(f"cannot serve the scope {scope['type']!r}")
        begin, verb, name = perf_counter(), scope["method"], OTHER
        if self._only_local and not has_loopback_host(scope["headers"]):
            status, media_type, body = 400, _JSON, encode_error(_NOT_OURS)
        elif scope["raw_path"] == b"/metrics" and verb in _READING:
            await load("prometheus_client")
            name, status, media_type, body = "metrics", 200, CONTENT_TYPE, self._show()
        else:
            status, media_type = 404, _JSON
            body = encode_error("No such path; use GET /metrics")
        self._traffic.done(name, status, perf_counter() - begin)
        headers = [
            (b"content-type", media_type),
            (b"content-length", b"%d" % len(body)),
            *self.headers,
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if verb == "HEAD" else body})

    def _show(self) -> bytes:
        from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

        registry = CollectorRegistry()  # the global one belongs to the whole program
        registry.register(_Collector(self._get_stats(), self._aggregator))
        ProcessCollector(registry=registry)
        return generate_latest(registry)


class _Collector:
    """Collector of the counters at one time."""

    def __init__(self, stats: Stats, aggregator: Processes | None) -> None:
        self._stats = stats
        self._aggregator = aggregator

    def collect(self) -> "Iterator[Metric]":
        """Yield the metric families."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        yield from traffic_families(self._stats)
        if self._aggregator is not None:
            yield GaugeMetricFamily(
                "attestkit_workers", "Workers that are ready", self._aggregator.workers
            )
            yield CounterMetricFamily(
                "attestkit_worker_restarts",
                "Workers that exited and were restarted",
                self._aggregator.restarts,
            )
        build = GaugeMetricFamily(
            "attestkit_build_info", "Version; always 1", labels=("version", "core")
        )
        build.add_metric((own_version(), CORE), 1)
        yield build
