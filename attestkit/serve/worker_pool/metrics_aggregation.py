"""Aggregation of the counters of a pool's workers.

A worker sends all its counters with each heartbeat, and the last message counts. After its exit its
counters stay in the sum, so that no counter decreases. At a graceful exit it sends them once more;
a killed worker loses what it counted after its last heartbeat.
"""

from attestkit.serve.counters import Stats, decode_stats


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
