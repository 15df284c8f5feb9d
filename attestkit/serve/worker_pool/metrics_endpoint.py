"""Metrics endpoint of a worker pool's supervisor."""

from socket import socket
from typing import Final

from attestkit.serve.config.limits import Limits
from attestkit.serve.counters import Stats
from attestkit.serve.http.request_checks import is_loopback
from attestkit.serve.http.server import Listener
from attestkit.serve.server_log.access_log import AccessLog
from attestkit.serve.verifier_service.metrics import NAME, VerifierMetricsApp
from attestkit.serve.worker_pool.metrics_aggregation import MetricsAggregator

_SECONDS: Final = 1.0  # drain time of the endpoint, after that of the workers
_CONNECTIONS: Final = 64  # so that clients leave descriptors for starting workers


def metrics_listener(
    sock: socket,
    aggregator: MetricsAggregator,
    limits: Limits,
    access_log: AccessLog | None,
    *,
    handed_over: bool,
) -> Listener:
    """Return the listener that serves the metrics of all workers.

    Args:
        sock: Listening socket.
        aggregator: Counters of the workers.
        limits: Limits of the server; the listener gets smaller ones.
        access_log: Log of the requests, if it is on.
        handed_over: Whether the socket was inherited, so that it stays open for the next server.
    """
    own = Stats()

    def get_stats() -> Stats:
        total = aggregator.total()
        total.traffic[NAME] = own.of(NAME)
        return total

    app = VerifierMetricsApp(get_stats, own.of(NAME), aggregator, only_local=is_loopback(sock))
    limits = limits._replace(
        drain_seconds=min(limits.drain_seconds, _SECONDS),
        connections=min(limits.connections, _CONNECTIONS),
    )
    return Listener(app, sock, limits, NAME, own.of(NAME), access_log, handed_over=handed_over)
