"""`GET /metrics` of a verifier service, at an address of its own (`--verifier-metrics`).

Whoever may ask for verdicts need not know how many others do, so it is not on the verifier's own
listener. Of several processes it is the foreman that answers, for all of them.
"""

from collections.abc import Callable, Iterator
from time import perf_counter
from typing import TYPE_CHECKING, Final, Protocol

from attestkit._native import CORE
from attestkit._version import own_version
from attestkit.serve.counters import CONTENT_TYPE, OTHER, Stats, Traffic, traffic_families
from attestkit.serve.http.asgi import Receive, Scope, Send
from attestkit.serve.http.errors import encode_error
from attestkit.serve.http.request_checks import is_called_as_ours
from attestkit.serve.lazy_import import load

if TYPE_CHECKING:
    from prometheus_client.core import Metric

__all__ = ["NAME", "VerifierMetricsApp"]

NAME: Final = "verifier_metrics"
"""Of the listener."""

_NOT_OURS: Final = (
    "the Host is refused, for the metrics are on the loopback address alone: use localhost or "
    "127.0.0.1, or have --verifier-metrics listen on another address"
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
    """The ASGI application of the metrics.

    Args:
        counted: Returns what the verifiers have counted.
        traffic: Counts the requests that come here.
        tally: Of several processes: how many there are.
        only_local: Refuse the name of any other machine, as a web page would send whose name was
            rebound to this one.
    """

    headers: tuple[tuple[bytes, bytes], ...] = (
        (b"server", b"attestkit"),
        (b"x-content-type-options", b"nosniff"),
    )
    """Sent with every response, and by a listener with what it refuses itself."""

    def __init__(
        self,
        counted: Callable[[], Stats],
        traffic: Traffic | None = None,
        tally: Processes | None = None,
        *,
        only_local: bool = False,
    ) -> None:
        self._counted = counted
        self._traffic = traffic or Traffic()
        self._tally = tally
        self._only_local = only_local

    async def __call__(self, scope: Scope, _: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            raise RuntimeError(f"cannot serve the scope {scope['type']!r}")
        begin, verb, name = perf_counter(), scope["method"], OTHER
        if self._only_local and not is_called_as_ours(scope["headers"]):
            status, media_type, body = 400, _JSON, encode_error(_NOT_OURS)
        elif scope["raw_path"] == b"/metrics" and verb in _READING:
            await load("prometheus_client")
            name, status, media_type, body = "metrics", 200, CONTENT_TYPE, self._show()
        else:
            status, media_type = 404, _JSON
            body = encode_error("No such path: this is GET /metrics of a verifier")
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

        registry = CollectorRegistry()  # never the global one, which is the whole program's
        registry.register(_Collector(self._counted(), self._tally))
        ProcessCollector(registry=registry)
        return generate_latest(registry)


class _Collector:
    """One look at the counts."""

    def __init__(self, stats: Stats, tally: Processes | None) -> None:
        self._stats = stats
        self._tally = tally

    def collect(self) -> "Iterator[Metric]":
        """Yield the families."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        yield from traffic_families(self._stats)
        if self._tally is not None:
            yield GaugeMetricFamily(
                "attestkit_workers", "Processes that serve", self._tally.workers
            )
            yield CounterMetricFamily(
                "attestkit_worker_restarts",
                "Processes that ended and were to be replaced",
                self._tally.restarts,
            )
        build = GaugeMetricFamily(
            "attestkit_build_info", "What runs here; always 1", labels=("version", "core")
        )
        build.add_metric((own_version(), CORE), 1)
        yield build
