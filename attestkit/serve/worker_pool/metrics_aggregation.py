"""What the processes of one verifier service have counted, brought together (see supervisor).

A process sends all that it has counted with each of its signs of life, and the last of it stands
for it. When it ends its counts stay in the sum, so that no counter ever falls. In good order it
tells them once more; one that is killed takes along what it counted after its last sign.
"""

import json
from typing import TYPE_CHECKING, Any, Final

from attestkit._formats.strict_json import decode_strictly
from attestkit.errors import FormatError
from attestkit.serve.counters import BOUNDS, Latency, Stats, Traffic

if TYPE_CHECKING:
    from collections import Counter

__all__ = ["LONGEST", "Tally", "decode", "encode"]

LONGEST: Final = 32_768
"""Bytes of a message. One method and status takes about 30, and there are a few dozen at most."""


_MOST: Final = 2**63


def encode(stats: Stats) -> bytes:
    """Return what a process has counted, as JSON in ASCII."""
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
    """Read what `encode` wrote; the sender is this very program.

    Raises:
        FormatError: It is something else.
    """
    stats = Stats()
    try:
        read: Any = decode_strictly(data)  # refuses what nests deeply
        for name, plain in read["traffic"].items():
            stats.traffic[_name(name)] = _traffic(plain)
        for verdict, step, count in read["verdicts"]:
            stats.verdicts[_name(verdict), _name(step)] = _number(count)
    except FormatError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FormatError(f"no counts: {type(error).__name__} {str(error)[:80]!a}") from error
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
            raise FormatError(f"no latency: {len(buckets)} buckets, {seconds!a:.40} seconds")
        latency = traffic.latencies[_name(method)] = Latency()
        latency.seconds, latency.buckets = float(seconds), [_number(count) for count in buckets]
    return traffic


def _name(value: object) -> str:
    if isinstance(value, str) and value.isascii():
        return value
    raise FormatError(f"{value!a:.40} is no name")


def _number(value: object) -> int:
    if type(value) is int and 0 <= value < _MOST:
        return value
    raise FormatError(f"{value!a:.40} is no count")


class Tally:
    """The counts of all processes, of those that have ended too.

    Attributes:
        workers: How many serve now; whoever starts and reaps them keeps it.
        restarts: How many ended and were to be replaced, likewise.
    """

    def __init__(self) -> None:
        self.workers: int = 0
        self.restarts: int = 0
        self._ended = Stats()
        self._last: dict[int, Stats] = {}  # by place

    def hear(self, place: int, data: bytes) -> None:
        """Take what the process at a place has counted since it started.

        Raises:
            FormatError: It is no message of `encode`.
        """
        self._last[place] = decode(data)

    def lose(self, place: int) -> None:
        """Keep what the process at a place had counted; another may take its place."""
        if (last := self._last.pop(place, None)) is not None:
            for traffic in last.traffic.values():
                traffic.connections = 0  # they ended with it
            _add(self._ended, last)

    def total(self) -> Stats:
        """Return the sum, which is the caller's."""
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
    total.update(more)  # unlike `+`, which drops what is 0
