"""Runtime events of a recording, each result encoded as the difference to the one before.

A journal returns all events every time, so that complete copies would need memory quadratic in the
size of the file.
"""

from typing import NamedTuple

from attestkit.event_log.event import Event


class _Difference(NamedTuple):
    """The first `keep` events of `before`, followed by `added`."""

    before: "_Difference | None"
    keep: int
    added: tuple[Event, ...]


class _Cache:
    """The tuple returned last, by any of the histories of a file."""

    last: "tuple[EventHistory | None, tuple[Event, ...]]" = None, ()  # one tuple, for thread safety


class EventHistory:
    """The events of one result; without arguments an empty history.

    Every difference that it consists of, except the last, contributes at least one event. So
    `events` takes time and memory linear in the events returned.
    """

    __slots__ = ("_cache", "_part", "size")

    def __init__(self, part: _Difference | None = None, cache: _Cache | None = None) -> None:
        self._part = part = part or _Difference(None, 0, ())
        self._cache = cache or _Cache()
        self.size: int = part.keep + len(part.added)

    def then(self, keep: int, added: tuple[Event, ...]) -> "EventHistory":
        """Return the next history: the first `keep` events of this one, followed by `added`.

        If that changes nothing, it is this object, so that `events` returns the same tuple.
        """
        if not added and keep == self.size:
            return self
        before: _Difference | None = self._part
        while before is not None and keep <= before.keep:
            before = before.before  # none of its events is kept
        return EventHistory(_Difference(before, keep, added), self._cache)

    def events(self) -> tuple[Event, ...]:
        """Return the events.

        The histories of a file share a cache of one tuple. Repeated calls return the same tuple
        until `events` of another history is called.
        """
        of, found = self._cache.last
        if of is not self:
            end, part, parts = self.size, self._part, []
            while True:
                parts.append(part.added[: end - part.keep])
                end = part.keep
                if part.before is None:
                    break
                part = part.before
            found = tuple(event for own in reversed(parts) for event in own)
            self._cache.last = self, found
        return found
