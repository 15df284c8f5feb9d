"""Objects renew their locks in forked processes."""

import gc

import pytest

from attestkit._system import fork_safety
from attestkit._system.bounded_calls import BoundedCalls, CallHangsError
from attestkit._system.fork_safety import call_now_and_after_fork
from tests.processes import in_child


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
