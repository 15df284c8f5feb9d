"""Interleaved timing of several implementations of one task, within one process.

The speed of a machine changes from second to second, so contenders are measured alternately: each
has one turn per round. The result is the median, over all rounds, of the ratio of two times in the
same round. Times are process CPU time, which includes all threads and excludes other processes.
"""

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import repeat
from statistics import median
from time import perf_counter_ns, process_time_ns
from typing import Any, Final, NamedTuple

__all__ = ["Call", "Series", "digits", "race", "ratio", "time_text"]

# Minimum nanoseconds of a turn, so that the state of the caches and the clock's overhead do not
# matter.
TURN: Final = 1_000_000
LEAST_ROUNDS: Final = 5


class Call(NamedTuple):
    """A function and its argument, so that the timed code is one call without a wrapper."""

    function: Callable[[Any], object]
    argument: Any

    def __call__(self) -> object:
        """Call the function once."""
        return self.function(self.argument)


class Series(NamedTuple):
    """The times of one contender: seconds per call, by round."""

    calls: int  # per turn
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median seconds per call."""
        return median(self.seconds)


def race(contenders: Mapping[str, Call], seconds: float) -> dict[str, Series]:
    """Time the contenders alternately for about `seconds`; the order is reversed each round.

    The garbage collector is disabled, as in `timeit`: its work depends on unrelated objects.
    """
    with _no_collector():
        calls = {name: _calls(call) for name, call in contenders.items()}
        order = [(name, calls[name], call) for name, call in contenders.items()]
        taken: dict[str, list[float]] = {name: [] for name in contenders}
        end = perf_counter_ns() + int(seconds * 1e9)
        rounds = 0
        while rounds < LEAST_ROUNDS or perf_counter_ns() < end:
            for name, count, call in order:
                taken[name].append(_turn(call, count) / count / 1e9)
            order.reverse()
            rounds += 1
    return {name: Series(calls[name], tuple(times)) for name, times in taken.items()}


def ratio(ours: Series, peer: Series) -> float:
    """Return the median, over the rounds, of the peer's time divided by attestkit's."""
    return median(b / a for a, b in zip(ours.seconds, peer.seconds, strict=True))


def time_text(seconds: float) -> str:
    """Format a time with its unit and three significant digits."""
    for unit, factor in (("ns", 1e9), ("µs", 1e6), ("ms", 1e3)):
        if (value := seconds * factor) < 1000:
            return f"{digits(value)} {unit}"
    return f"{digits(seconds)} s"


def digits(value: float) -> str:
    """Format a number with three significant digits, without trailing zeros."""
    if value >= 100:
        return f"{value:.0f}"
    text = f"{value:.1f}" if value >= 10 else f"{value:.2f}"
    return text.rstrip("0").rstrip(".")


def _turn(call: Call, count: int) -> int:
    """Return the nanoseconds of `count` calls."""
    function, argument = call
    begin = process_time_ns()
    for _ in repeat(None, count):
        function(argument)
    return process_time_ns() - begin


def _calls(call: Call) -> int:
    """Return the number of calls per turn; this also warms up the caches."""
    call()
    count = 1
    while _turn(call, count) < TURN:
        count *= 2
    return count


@contextmanager
def _no_collector() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
