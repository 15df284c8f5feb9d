"""Cache of the keys and certificates issued for a seed and a scenario."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from attestkit._crypto.hashes import sha256
from attestkit.backends.simulator.scenarios.config import Scenario

__all__ = ["IssueCache"]

_T = TypeVar("_T")
_MAX_ENTRIES: Final = 4  # few, because they contain secrets


class IssueCache(Generic[_T]):
    """A thread-safe function of seed and scenario that caches its last results.

    Entries are identified by the hash of the seed. They contain keys derived from it, until they
    are evicted or the process ends.
    """

    def __init__(self, make: Callable[[bytes, Scenario], _T]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[bytes, Scenario], _T] = OrderedDict()

    def __call__(self, seed: bytes, scenario: Scenario, *, keep: bool) -> _T:
        """Return the cached or a new result.

        Args:
            seed: 32 bytes.
            scenario: The scenario of the platform.
            keep: Whether to cache the result; a random seed is not used again.
        """
        if not keep:
            return self._make(seed, scenario)
        key = sha256(seed), scenario
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = self._make(seed, scenario)  # without the lock, so that other threads need not wait
        with self._lock:
            self._kept[key] = made
            while len(self._kept) > _MAX_ENTRIES:
                self._kept.popitem(last=False)
        return made

    def __len__(self) -> int:
        return len(self._kept)

    def clear(self) -> None:
        """Remove all entries."""
        with self._lock:
            self._kept.clear()
