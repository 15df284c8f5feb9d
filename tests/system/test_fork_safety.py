"""Objects renew their locks in forked processes."""

import fcntl
import gc
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import attestkit
from attestkit._system import fork_safety
from attestkit._system.bounded_calls import BoundedCalls, CallHangsError
from attestkit._system.fork_safety import (
    call_now_and_after_fork,
    unlock_and_close,
    unlocked_property,
)
from tests.processes import in_child, opened_in_child


class Renewed:
    """Counts the calls of its method."""

    def __init__(self) -> None:
        self.calls = 0
        call_now_and_after_fork(self.renew)

    def renew(self) -> None:
        """Count."""
        self.calls += 1


def test_method_is_called_now_and_in_every_child() -> None:
    """Once by the registration, and once more by the fork of each generation."""
    one, other = Renewed(), Renewed()

    def grandchild() -> None:
        assert (one.calls, other.calls) == (3, 3)

    def child() -> None:
        assert (one.calls, other.calls) == (2, 2)
        assert in_child(grandchild)

    assert in_child(child)
    assert (one.calls, other.calls) == (1, 1)


def test_object_is_not_kept_alive() -> None:
    """Its registration ends with it."""
    gc.collect()
    before = len(fork_safety._methods)
    kept, dropped = Renewed(), Renewed()
    assert len(fork_safety._methods) == before + 2
    del dropped
    gc.collect()
    assert len(fork_safety._methods) == before + 1
    assert kept.calls == 1


def test_calls_that_hang_in_the_parent_do_not_count_in_a_child() -> None:
    """The child has none of the parent's threads; neither their number nor the lock remains."""
    calls = BoundedCalls(2)
    calls.hanging = 2
    with pytest.raises(CallHangsError):
        calls.call("sum", 30, sum, [1])

    def child() -> None:
        assert calls.call("sum", 30, sum, [1]) == 1

    with calls._lock:
        assert in_child(child)


class Computing:
    """Has a value that takes a while."""

    def __init__(self, compute: Callable[[], int]) -> None:
        self._compute = compute

    @unlocked_property
    def value(self) -> int:
        """Result of the function."""
        return self._compute()


def test_property_that_a_thread_computes_does_not_block_a_child() -> None:
    """The value of an object is computed once, and that of another one by the child itself."""
    started, proceed = threading.Event(), threading.Event()

    def wait() -> int:
        started.set()
        assert proceed.wait(60)
        return 1

    one, other = Computing(wait), Computing(lambda: 2)

    def child() -> None:
        assert other.value == 2

    with ThreadPoolExecutor(1) as pool:
        value = pool.submit(lambda: one.value)
        assert started.wait(60)
        is_done = in_child(child)
        proceed.set()
        assert value.result(60) == 1
    assert is_done
    one._compute = lambda: 3
    assert one.value == 1


@pytest.mark.parametrize("module", ["gpu", "verifier"])
def test_verifiers_have_no_property_with_a_lock(module: str) -> None:
    """A child would wait for a lock of a cached_property forever."""
    folder = Path(attestkit.__file__).parent / module
    texts = [path.read_text() for path in folder.rglob("*.py")]
    assert any("unlocked_property" in text for text in texts)
    assert not any("cached_property" in text for text in texts)


def test_file_lock_ends_although_a_child_has_the_file_open(tmp_path: Path) -> None:
    """Closing alone would leave it to the child."""
    path = tmp_path / "lock"
    handle = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with opened_in_child():
        unlock_and_close(handle)
        with path.open() as again:
            fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
