"""Aggregation of the counters of a pool's workers, and the supervisor's endpoint for them.

A worker sends all its counters with each heartbeat, and the last message counts. After its exit its
counters stay in the sum, so that no counter decreases. At a graceful exit it sends them once more;
a killed worker loses what it counted after its last heartbeat.
"""

from socket import socket
from typing import TYPE_CHECKING, Final

from attestkit.serve.config.limits import Limits
from attestkit.serve.counters import Stats, decode_stats
from attestkit.serve.http.request_checks import is_loopback
from attestkit.serve.server_log.access_log import AccessLog
from attestkit.serve.verifier_service.metrics import NAME, VerifierMetricsApp

if TYPE_CHECKING:
    from attestkit.serve.http.server import Listener

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
        self._ended = Stats()
        self._last: dict[int, Stats] = {}  # by slot

    def update(self, slot: int, data: bytes) -> None:
        """Store the encoded counters of the current worker of a slot.

        Raises:
            FormatError: If the message is malformed.
        """
        self._last[slot] = decode_stats(data)

    def retire(self, slot: int) -> None:
        """Keep the counters of the worker of a slot, which has exited."""
        last = self._last.pop(slot, Stats())
        for traffic in last.traffic.values():
            traffic.connections = 0  # closed by the exit
        self._ended.add(last)

    def total(self) -> Stats:
        """Return the sum as a new object."""
        found = Stats()
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
        access_log: Log of the requests, if it is on.
        handed_over: Whether the socket was inherited, so that it stays open for the next server.
    """
    from attestkit.serve.http.server import Listener  # lazy: imports uvicorn

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
