"""Metrics endpoint of a worker pool's supervisor."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from socket import socket
from typing import Final, NamedTuple

from attestkit.serve.config.limits import Limits
from attestkit.serve.counters import Stats
from attestkit.serve.http.request_checks import is_loopback
from attestkit.serve.server_log.access_log import AccessLog
from attestkit.serve.worker_pool.metrics_aggregation import MetricsAggregator

__all__ = ["MetricsEndpoint", "serve_metrics"]

_SECONDS: Final = 1.0  # drain time of the endpoint, after that of the workers
_CONNECTIONS: Final = 64  # so that clients leave descriptors for starting workers


class MetricsEndpoint(NamedTuple):
    """Socket and limits of the metrics endpoint."""

    socket: socket
    handed_over: bool
    limits: Limits
    access_log: AccessLog | None = None


@asynccontextmanager
async def serve_metrics(
    endpoint: MetricsEndpoint | None, aggregator: MetricsAggregator, on_end: Callable[[], None]
) -> AsyncIterator[None]:
    """Serve the metrics during the block; `on_end` is called when serving ends or fails.

    Without `endpoint`, nothing is served.
    """
    if endpoint is None:
        yield
        return
    from attestkit.serve.http.server import Listener, beside  # lazy: imports uvicorn
    from attestkit.serve.verifier_service.metrics import NAME, VerifierMetricsApp

    own = Stats()

    def get_stats() -> Stats:
        total = aggregator.total()
        total.traffic[NAME] = own.of(NAME)
        return total

    limits = endpoint.limits
    listener = Listener(
        VerifierMetricsApp(
            get_stats, own.of(NAME), aggregator, only_local=is_loopback(endpoint.socket)
        ),
        endpoint.socket,
        limits._replace(
            drain_seconds=min(limits.drain_seconds, _SECONDS),
            connections=min(limits.connections, _CONNECTIONS),
        ),
        NAME,
        own.of(NAME),
        endpoint.access_log,
        handed_over=endpoint.handed_over,
    )
    async with beside(listener, on_end):
        yield
    if endpoint.access_log is not None:
        endpoint.access_log.flush(patience=1.0)
