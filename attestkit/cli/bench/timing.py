"""Taking the time of several ways to do one piece of work, in turns within one process.

A machine's speed changes from second to second, so two numbers mean something together only if they
were taken together: in every round each contender has one turn, and what counts is the median over
the rounds of one's time divided by the other's in the same round. Time is what the process had of
all processors: threads save none of it, and what neighbours take of a busy machine, which would
fall upon whoever has the longer turns, is not in it.
"""

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import repeat
from statistics import median
from time import perf_counter_ns, process_time_ns
from typing import Any, Final, NamedTuple

__all__ = ["Call", "Series", "digits", "race", "ratio", "time_text"]

# Nanoseconds of a turn at the least: what the one before has left in the caches, or not left, and
# two looks at the clock must not show.
TURN: Final = 1_000_000
LEAST_ROUNDS: Final = 5


class Call(NamedTuple):
    """A function and its argument: nothing stands between it and the clock but one call."""

    function: Callable[[Any], object]
    argument: Any

    def __call__(self) -> object:
        """Do the work once."""
        return self.function(self.argument)


class Series(NamedTuple):
    """What one contender took: seconds a call, round by round."""

    calls: int  # in a turn
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Seconds a call, half of the turns having been quicker."""
        return median(self.seconds)


def race(contenders: Mapping[str, Call], seconds: float) -> dict[str, Series]:
    """Time the contenders in turns for about so many seconds; their order turns round each time.

    The garbage collector has a pause meanwhile, as in `timeit`: how much it would have to look
    through is no property of the work.
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


def ratio(ours: Series, theirs: Series) -> float:
    """Return how many times as long theirs took: the median over the rounds they raced in."""
    return median(b / a for a, b in zip(ours.seconds, theirs.seconds, strict=True))


def time_text(seconds: float) -> str:
    """Return a time for people, with three digits that count."""
    for unit, factor in (("ns", 1e9), ("µs", 1e6), ("ms", 1e3)):
        if (value := seconds * factor) < 1000:
            return f"{digits(value)} {unit}"
    return f"{digits(seconds)} s"


def digits(value: float) -> str:
    """Return a number with three digits that count, and no zeros behind the point."""
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
    """Return how many calls fill a turn; what has been called so often is warm as well."""
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
