"""A cache in memory with a limit of its entries and, optionally, of their age."""

from collections.abc import Callable, Hashable
from time import monotonic
from typing import Generic, TypeVar

_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


class BoundedCache(Generic[_Key, _Value]):
    """A cache that removes its oldest entry first; values are never None.

    Thread-safe, and safe in a forked process: it has no lock, because each of its steps is one
    operation of a dict.
    """

    __slots__ = ("_entries", "_size", "_timer")

    def __init__(self, size: int, *, timer: Callable[[], float] = monotonic) -> None:
        """Create an empty cache.

        Args:
            size: Maximum number of entries.
            timer: Monotonic clock in seconds.
        """
        self._size = size
        self._timer = timer
        self._entries: dict[_Key, tuple[_Value, float | None]] = {}  # until when; oldest first

    def find(self, key: _Key) -> _Value | None:
        """Return the value of `key`; None if it is missing or too old."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        value, until = entry
        return value if until is None or self._timer() < until else None

    def get(self, key: _Key, compute: Callable[[], _Value], *, store: bool = True) -> _Value:
        """Return the value of `key`; compute it if it is missing, and add it if `store` is true.

        Exceptions are not cached: the same input may be valid with other collateral, and untrusted
        input could otherwise fill the cache. Two threads may compute a value at once.
        """
        value = self.find(key)
        if value is None:
            value = compute()
            if store:
                self.put(key, value)
        return value

    def put(self, key: _Key, value: _Value, seconds: float | None = None) -> None:
        """Store a value, as the newest one.

        Args:
            key: The key.
            value: The value.
            seconds: Maximum age; None: no limit.
        """
        entries = self._entries
        entries.pop(key, None)  # so that it moves to the end
        entries[key] = value, None if seconds is None else self._timer() + seconds
        while len(entries) > self._size:
            try:
                oldest = next(iter(entries))
            except (StopIteration, RuntimeError):  # another thread has changed it
                continue
            entries.pop(oldest, None)

    def discard(self, key: _Key) -> None:
        """Remove the value of `key`, if there is one."""
        self._entries.pop(key, None)

    def values(self) -> list[_Value]:
        """Return the values that are not too old, oldest first."""
        now = self._timer()
        return [value for value, until in [*self._entries.values()] if until is None or now < until]

    def __len__(self) -> int:
        return len(self._entries)
