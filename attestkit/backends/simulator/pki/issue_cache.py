"""The last few things that were issued for a seed and a scenario, so as not to issue them again."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from attestkit._crypto.hashes import sha256
from attestkit.backends.simulator.scenarios.config import Scenario

__all__ = ["IssueCache"]

_T = TypeVar("_T")
_KEPT: Final = 4  # they hold secrets


class IssueCache(Generic[_T]):
    """A function of seed and scenario that keeps its last few results; threads may share it.

    It knows seeds by their hashes. What it keeps can sign, and so has a seed or keys of it, until
    others take its place or the process ends.
    """

    def __init__(self, make: Callable[[bytes, Scenario], _T]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[bytes, Scenario], _T] = OrderedDict()

    def __call__(self, seed: bytes, scenario: Scenario, *, keep: bool) -> _T:
        """Return what follows from both.

        Args:
            seed: 32 bytes.
            scenario: Of the platform that this issues for.
            keep: Whether `seed` may come again. A random one never does, and nothing of it stays.
        """
        if not keep:
            return self._make(seed, scenario)
        key = sha256(seed), scenario
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = self._make(seed, scenario)  # without the lock: threads need not wait for others
        with self._lock:
            self._kept[key] = made
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return made

    def __len__(self) -> int:
        return len(self._kept)

    def clear(self) -> None:
        """Keep nothing of what was made."""
        with self._lock:
            self._kept.clear()
