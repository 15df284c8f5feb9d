"""Linearizability checker for a TD's event log.

A call takes effect at one moment between its begin and its end. The checker searches for an order
of all calls in which each follows those that ended before it began, and in which a model of a TD,
the names of the events since its boot, gives the same responses (Herlihy and Wing 1990; the search
is that of Wing and Gong, 1993, with Lowe's cache of visited states).
"""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, TypeAlias

Log: TypeAlias = "tuple[str, ...]"
NEVER: Final = 1 << 62  # the end of a call without response, which may still take effect


class Call(NamedTuple):
    """A request of a client with its times and outcome."""

    what: str  # "emit", "saw" or "boot"
    begin: int
    end: int
    names: Log  # the emitted event; or all events that were observed, or exist after a boot
    done: bool | None = True  # False: rejected; None: unknown

    def outcomes(self, log: Log) -> Iterator[Log]:
        """Yield the possible logs after this call; nothing if it cannot take effect now."""
        if self.what == "boot":
            yield self.names
        elif self.what == "saw":
            if log == self.names:
                yield log
        else:
            yield log + self.names


def emit(begin: int, end: int, name: str, *, done: bool | None = True) -> Call:
    """Return a call that emits one event: done, rejected, or unknown (None)."""
    return Call("emit", begin, end, (name,), done)


def saw(begin: int, end: int, names: Log) -> Call:
    """Return a call whose response had this log, proved by a quote."""
    return Call("saw", begin, end, names)


def boot(begin: int, end: int, names: Log = ()) -> Call:
    """Return a reboot, after which the log has these events."""
    return Call("boot", begin, end, names)


def explain(calls: Sequence[Call], log: Log = ()) -> list[Call] | None:
    """Return an order of the calls that explains them, starting with `log`, or None.

    Rejected emits, and unknown ones that did not take effect, are omitted.
    """
    calls = sorted((call for call in calls if call.done is not False), key=lambda call: call.begin)
    needed = sum(1 << index for index, call in enumerate(calls) if call.done)
    tried = {(0, log)}
    ways: list[tuple[int, Log, tuple[int, ...]]] = [(0, log, ())]
    while ways:
        done, log, order = ways.pop()
        if not needed & ~done:
            return [calls[index] for index in order]
        for index in _next(calls, done, needed):
            others = [call for at, call in enumerate(calls) if not (done | 1 << index) >> at & 1]
            for after in calls[index].outcomes(log):
                step = (done | 1 << index, after)
                if step not in tried and _is_extensible(after, others):
                    tried.add(step)
                    ways.append((*step, (*order, index)))
    return None


def _next(calls: Sequence[Call], done: int, needed: int) -> list[int]:
    """Return the calls that can take effect next, the preferred one last."""
    remaining = [index for index in range(len(calls)) if not done >> index & 1]
    first_end = min(calls[index].end for index in remaining if needed >> index & 1)
    latest = max(
        (calls[index].begin for index in range(len(calls)) if done >> index & 1), default=-1
    )
    return [
        index
        for index in reversed(remaining)
        if calls[index].begin <= first_end and calls[index].end >= latest
    ]


def _is_extensible(log: Log, remaining: Sequence[Call]) -> bool:
    """Return whether the log can become what later calls observed: without a boot it only grows."""
    if any(call.what == "boot" for call in remaining):
        return True
    return all(call.names[: len(log)] == log for call in remaining if call.what == "saw")
