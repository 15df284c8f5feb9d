"""A bounded cache of facts: results that follow from their key alone, whatever the time.

A signature is valid for a key and bytes, or it is not; neither the time nor a CRL changes that.
Validity periods and revocation are therefore never cached, but checked for each quote
(dcap-verification.md, section 10).
"""

from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

_Key = TypeVar("_Key", bound=Hashable)
_Fact = TypeVar("_Fact")


class FactCache(Generic[_Key, _Fact]):
    """Facts by all the bytes they follow from; the oldest is removed first. Thread-safe."""

    __slots__ = ("_facts", "_lock", "_size")

    def __init__(self, size: int) -> None:
        """Set the maximum number of facts."""
        self._size = size
        self._facts: dict[_Key, _Fact] = {}
        self._lock = Lock()

    def find(self, key: _Key) -> _Fact | None:
        """Return the fact of `key`; None if it is missing."""
        return self._facts.get(key)

    def get(self, key: _Key, compute: Callable[[], _Fact], *, store: bool = True) -> _Fact:
        """Return the fact of `key`; compute it if it is missing, and add it if `store` is true.

        Exceptions are not cached: the same bytes may be valid with other collateral, and untrusted
        input could otherwise fill the cache. Two threads may compute a fact at once.
        """
        fact = self._facts.get(key)
        if fact is None:
            fact = compute()
            if store:
                self._add(key, fact)
        return fact

    def _add(self, key: _Key, fact: _Fact) -> None:
        with self._lock:
            self._facts[key] = fact
            if len(self._facts) > self._size:
                del self._facts[next(iter(self._facts))]

    def __len__(self) -> int:
        return len(self._facts)
