"""Whether some order of the calls explains what all callers saw: linearizability of a TD's log.

A call takes effect at one moment between its begin and its end. So an order of all calls is looked
for in which each comes after those that had ended before it began, and in which a small TD, the
names of the events since its boot, gives the same answers (Herlihy and Wing 1990; the search is
Wing and Gong's, 1993, with Lowe's memory of what was tried).
"""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, TypeAlias

__all__ = ["NEVER", "Call", "Log", "boot", "emit", "explain", "saw", "unexplained"]

Log: TypeAlias = "tuple[str, ...]"
NEVER: Final = 1 << 62  # the end of a call that was not answered and may still take effect


class Call(NamedTuple):
    """What a client asked, when, and what came of it."""

    what: str  # "emit", "saw" or "boot"
    begin: int
    end: int
    names: Log  # the one event that was emitted; or all that were seen, also after a boot
    done: bool | None = True  # False: refused; None: nobody knows

    def outcomes(self, log: Log) -> Iterator[Log]:
        """Yield the log once this call has taken effect; nothing if it cannot now."""
        if self.what == "boot":
            yield self.names
        elif self.what == "saw":
            if log == self.names:
                yield log
        else:
            yield log + self.names


def emit(begin: int, end: int, name: str, *, done: bool | None = True) -> Call:
    """Return a call that emits one event: done, refused, or nobody knows (None)."""
    return Call("emit", begin, end, (name,), done)


def saw(begin: int, end: int, names: Log) -> Call:
    """Return a call that was answered with the log, of which a quote is the proof."""
    return Call("saw", begin, end, names)


def boot(begin: int, end: int, names: Log = ()) -> Call:
    """Return a reboot, after which the log is this."""
    return Call("boot", begin, end, names)


def explain(calls: Sequence[Call], log: Log = ()) -> list[Call] | None:
    """Return an order of the calls that explains them, from `log` on; None if there is none.

    Emits that were refused, and those of unknown fate that did not take effect, are left out of it.
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
                if step not in tried and _can_go_on(after, others):
                    tried.add(step)
                    ways.append((*step, (*order, index)))
    return None


def _next(calls: Sequence[Call], done: int, needed: int) -> list[int]:
    """Return which calls can take effect now, the one that is tried first at the end."""
    left = [index for index in range(len(calls)) if not done >> index & 1]
    first_end = min(calls[index].end for index in left if needed >> index & 1)
    latest = max(
        (calls[index].begin for index in range(len(calls)) if done >> index & 1), default=-1
    )
    return [
        index
        for index in reversed(left)
        if calls[index].begin <= first_end and calls[index].end >= latest
    ]


def _can_go_on(log: Log, left: Sequence[Call]) -> bool:
    """Tell whether the log can still become what is seen later: without a boot it only grows."""
    if any(call.what == "boot" for call in left):
        return True
    return all(call.names[: len(log)] == log for call in left if call.what == "saw")


def unexplained(calls: Sequence[Call], log: Log = ()) -> list[Call]:
    """Return the calls up to the first answer that nothing explains; none if all are explained.

    What was answered later is as if it never was.
    """
    for moment in sorted({call.end for call in calls if call.end < NEVER}):
        known = [
            call if call.end <= moment else call._replace(end=NEVER, done=None)
            for call in calls
            if call.end <= moment or (call.what == "emit" and call.begin <= moment)
        ]
        if explain(known, log) is None:
            return known
    return []
