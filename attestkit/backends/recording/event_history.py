"""Runtime events as a recording has them: each answer builds on the one before.

A journal gives all its events every time. Kept so, the answers of a file would take the square of
its size; here an answer is what it adds, and how much of the one before it keeps.
"""

from typing import NamedTuple

from attestkit.event_log.event import Event

__all__ = ["History"]


class _Part(NamedTuple):
    """The first `keep` events of another, and those added behind them."""

    before: "_Part | None"
    keep: int
    added: tuple[Event, ...]


class _Given:
    """What was given last, of all answers: to remember the tuple of each is the square again."""

    last: "tuple[History | None, tuple[Event, ...]]" = None, ()  # in one, for threads


class History:
    """The events of one answer; without arguments the first, which has none.

    Of the parts that it is made of, each but the last gives at least one event, so `events` takes
    time and space by the events that it returns, whatever else the file has.
    """

    __slots__ = ("_given", "_part", "size")

    def __init__(self, part: _Part | None = None, given: _Given | None = None) -> None:
        self._part = part = part or _Part(None, 0, ())
        self._given = given or _Given()
        self.size: int = part.keep + len(part.added)

    def then(self, keep: int, added: tuple[Event, ...]) -> "History":
        """Return the answer after this one, of which it keeps so many events, and adds others.

        That is this one if it is the same: a journal gives the same tuple until it has more.
        """
        if not added and keep == self.size:
            return self
        before: _Part | None = self._part
        while before is not None and keep <= before.keep:
            before = before.before  # nothing of its own is kept
        return History(_Part(before, keep, added), self._given)

    def events(self) -> tuple[Event, ...]:
        """Return the events; the same tuple again, unless another answer was given in between."""
        of, found = self._given.last
        if of is not self:
            end, part, parts = self.size, self._part, []
            while True:
                parts.append(part.added[: end - part.keep])
                end = part.keep
                if part.before is None:
                    break
                part = part.before
            found = tuple(event for own in reversed(parts) for event in own)
            self._given.last = self, found
        return found
