"""A cache has a limit of entries and of their age."""

import pytest

from attestkit._system.bounded_cache import BoundedCache


def test_oldest_entry_is_removed_first() -> None:
    """Over the limit the entry that was stored first is removed; storing again makes it newer."""
    cache: BoundedCache[str, int] = BoundedCache(2)
    cache.put("a", 1)
    cache.put("b", 2)
    cache.put("a", 3)
    cache.put("c", 4)
    assert (cache.find("a"), cache.find("b"), cache.find("c")) == (3, None, 4)
    assert (len(cache), cache.values()) == (2, [3, 4])


def test_entry_ends_at_its_age() -> None:
    """An entry is missing from its maximum age on; others have none."""
    now = [0.0]
    cache: BoundedCache[str, int] = BoundedCache(2, timer=lambda: now[0])
    cache.put("a", 1, 60)
    cache.put("b", 2)
    now[0] = 59.9
    assert cache.values() == [1, 2]
    now[0] = 60.0
    assert (cache.find("a"), cache.find("b"), cache.values()) == (None, 2, [2])
    assert cache.get("a", lambda: 5) == 5
    assert cache.find("a") == 5


def test_errors_and_unstored_values_are_not_kept() -> None:
    """An exception and a value with `store=False` leave no entry; a known value is not computed."""
    cache: BoundedCache[str, int] = BoundedCache(2)
    with pytest.raises(ZeroDivisionError):
        cache.get("a", lambda: 1 // 0)
    assert cache.get("a", lambda: 1, store=False) == 1
    assert cache.find("a") is None
    assert cache.get("a", lambda: 2) == cache.get("a", lambda: 3) == 2
