"""A bounded cache of facts, each with all the input that it follows from as its key.

A signature is valid for a key and data, or it is not; neither the time nor a CRL changes that.
Validity periods and revocation are therefore never cached, but checked for each quote
(dcap-verification.md, section 10).
"""

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

_Key = TypeVar("_Key", bound=Hashable)
_Fact = TypeVar("_Fact")


class FactCache(Generic[_Key, _Fact]):
    """A cache that removes its oldest entry first. Thread-safe, and safe in a forked process."""

    __slots__ = ("_facts", "_size")

    def __init__(self, size: int) -> None:
        """Set the maximum number of entries."""
        self._size = size
        self._facts: dict[_Key, _Fact] = {}

    def find(self, key: _Key) -> _Fact | None:
        """Return the fact of `key`; None if it is missing."""
        return self._facts.get(key)

    def get(self, key: _Key, compute: Callable[[], _Fact], *, store: bool = True) -> _Fact:
        """Return the fact of `key`; compute it if it is missing, and add it if `store` is true.

        Exceptions are not cached: the same input may be valid with other collateral, and untrusted
        input could otherwise fill the cache. Two threads may compute a fact at once.
        """
        fact = self._facts.get(key)
        if fact is None:
            fact = compute()
            if store:
                self._add(key, fact)
        return fact

    def _add(self, key: _Key, fact: _Fact) -> None:
        facts = self._facts
        facts[key] = fact
        while len(facts) > self._size:
            try:
                oldest = next(iter(facts))
            except (StopIteration, RuntimeError):  # another thread has changed it
                continue
            facts.pop(oldest, None)

    def __len__(self) -> int:
        return len(self._facts)
