"""Aggregation of the counters of a pool's workers.

A worker sends all its counters with each heartbeat, and the last message counts. After its exit its
counters stay in the sum, so that no counter decreases. At a graceful exit it sends them once more;
a killed worker loses what it counted after its last heartbeat.
"""

import json
from typing import TYPE_CHECKING, Any, Final

from attestkit._formats.strict_json import decode_strictly
from attestkit.errors import FormatError
from attestkit.serve.counters import BOUNDS, Latency, Stats, Traffic

if TYPE_CHECKING:
    from collections import Counter

__all__ = ["LONGEST", "MetricsAggregator", "decode", "encode"]

LONGEST: Final = 32_768
"""Limit of a message in bytes. A method and status takes about 30; there are a few dozen."""


_MOST: Final = 2**63


def encode(stats: Stats) -> bytes:
    """Return the counters as ASCII JSON."""
    traffic = {name: _plain(each) for name, each in stats.traffic.items()}
    verdicts = [[*key, count] for key, count in stats.verdicts.items()]
    return json.dumps({"traffic": traffic, "verdicts": verdicts}, separators=(",", ":")).encode()


def _plain(traffic: Traffic) -> dict[str, Any]:
    return {
        "requests": [[*key, count] for key, count in traffic.requests.items()],
        "refusals": list(traffic.refusals.items()),
        "latencies": [[name, at.seconds, *at.buckets] for name, at in traffic.latencies.items()],
        "connections": traffic.connections,
    }


def decode(data: bytes) -> Stats:
    """Return the counters that `encode` has encoded.

    Raises:
        FormatError: If the data are malformed.
    """
    stats = Stats()
    try:
        read: Any = decode_strictly(data)
        for name, plain in read["traffic"].items():
            stats.traffic[_name(name)] = _traffic(plain)
        for verdict, step, count in read["verdicts"]:
            stats.verdicts[_name(verdict), _name(step)] = _number(count)
    except FormatError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FormatError(
            f"worker counters: {type(error).__name__}: {str(error)[:80]!a}", reason="wrong_type"
        ) from error
    return stats


def _traffic(plain: dict[str, Any]) -> Traffic:
    traffic = Traffic()
    traffic.connections = _number(plain["connections"])
    for method, status, count in plain["requests"]:
        traffic.requests[_name(method), _number(status)] = _number(count)
    for status, count in plain["refusals"]:
        traffic.refusals[_number(status)] = _number(count)
    for method, seconds, *buckets in plain["latencies"]:
        if len(buckets) != len(BOUNDS) + 1 or not 0 <= seconds < _MOST:
            raise FormatError(
                f"worker counters: invalid latency: {len(buckets)} buckets, {seconds!a:.40} s",
                reason="wrong_value",
            )
        latency = traffic.latencies[_name(method)] = Latency()
        latency.seconds, latency.buckets = float(seconds), [_number(count) for count in buckets]
    return traffic


def _name(value: object) -> str:
    if isinstance(value, str) and value.isascii():
        return value
    raise FormatError(f"worker counters: invalid name: {value!a:.40}", reason="wrong_value")


def _number(value: object) -> int:
    if type(value) is int and 0 <= value < _MOST:
        return value
    raise FormatError(f"worker counters: invalid count: {value!a:.40}", reason="wrong_value")


class MetricsAggregator:
    """Sum of the counters of all workers, including former ones.

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
        """Store the counters of the worker in a slot.

        Raises:
            FormatError: If the message is malformed.
        """
        self._last[slot] = decode(data)

    def retire(self, slot: int) -> None:
        """Keep the counters of a worker that has exited."""
        if (last := self._last.pop(slot, None)) is not None:
            for traffic in last.traffic.values():
                traffic.connections = 0  # closed by the exit
            _add(self._ended, last)

    def total(self) -> Stats:
        """Return the sum as a new object."""
        found = Stats()
        for stats in (self._ended, *self._last.values()):
            _add(found, stats)
        return found


def _add(total: Stats, more: Stats) -> None:
    _count(total.verdicts, more.verdicts)
    for name, traffic in more.traffic.items():
        here = total.of(name)
        here.connections += traffic.connections
        _count(here.requests, traffic.requests)
        _count(here.refusals, traffic.refusals)
        for method, latency in traffic.latencies.items():
            at = here.latencies.setdefault(method, Latency())
            at.seconds += latency.seconds
            at.buckets = [a + b for a, b in zip(at.buckets, latency.buckets, strict=True)]


def _count(total: "Counter[Any]", more: "Counter[Any]") -> None:
    total.update(more)  # unlike `+`, keeps zero counts
