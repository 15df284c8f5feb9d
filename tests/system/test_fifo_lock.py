"""FifoLock serves threads in order of arrival; an interrupted waiter does not affect others."""

import contextlib
import gc
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from attestkit._system.fifo_lock import FifoLock, HookedFifoLock

TIMEOUT = 30.0  # seconds before a test fails instead of hanging


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until a condition set by another thread holds."""
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.0005)


@contextlib.contextmanager
def running_threads(*works: Callable[[], object]) -> Iterator[list[threading.Thread]]:
    """Run threads during the block and join them afterwards."""
    running = [threading.Thread(target=work, daemon=True) for work in works]
    yield running
    for thread in running:
        if thread.ident is not None:
            thread.join(TIMEOUT)
            assert not thread.is_alive(), "a thread did not end"


def _has_waiters(turns: FifoLock, count: int) -> bool:
    return turns.waiting == count


def start_in_order(turns: FifoLock, running: list[threading.Thread]) -> None:
    """Start threads one at a time, each once the previous one waits."""
    for thread in running:
        before = turns.waiting
        thread.start()
        wait_until(partial(_has_waiters, turns, before + 1))


def test_fifo_lock_waiters_are_served_in_order() -> None:
    """Threads acquire the lock in the order in which they requested it."""
    turns, served = FifoLock(), list[int]()

    def work(number: int) -> Callable[[], None]:
        def run() -> None:
            with turns:
                served.append(number)

        return run

    with running_threads(*map(work, range(20))) as running, turns:
        start_in_order(turns, running)
        assert served == []
    assert served == list(range(20))
    assert turns.waiting == 0


def test_fifo_lock_requested_again_queues_behind_waiters() -> None:
    """A thread that requests the lock again after release queues behind all waiters."""
    turns, served = FifoLock(), list[str]()

    def other() -> None:
        for _ in range(50):
            with turns:
                served.append("other")
                wait_until(lambda: turns.waiting == 1 or len(served) >= 98)

    with running_threads(other) as running:
        with turns:
            start_in_order(turns, running)
        for _ in range(50):
            with turns:
                served.append("main")
                wait_until(lambda: turns.waiting == 1 or len(served) >= 98)
    assert served[:98] == ["other", "main"] * 49


def test_fifo_lock_under_contention_is_fair() -> None:
    """Among 8 contending threads each gets the lock at most once between two turns of another."""
    turns, order, worst = FifoLock(), list[int](), list[int]()

    def client() -> None:
        for _ in range(40):
            requested_at = len(order)
            with turns:
                worst.append(len(order) - requested_at)
                order.append(1)
                time.sleep(0.0002)  # duration of a device access, during which other threads run

    with running_threads(*[client] * 8) as running:
        for thread in running:
            thread.start()
    assert len(order) == 320
    # A thread suspended between reading and requesting sees more turns: few may exceed this.
    assert sorted(worst)[int(len(worst) * 0.99)] <= 8 + 7


def test_fifo_lock_reentered_is_released_at_outermost_exit() -> None:
    """The holder may acquire the lock again; waiters enter after the outermost exit only."""
    steps = list[str]()
    turns = HookedFifoLock(lambda: steps.append("enter"), lambda: steps.append("leave"))

    def record(name: str) -> None:
        steps.append(f"{name}: {turns.held}")

    record("before")
    with running_threads(lambda: record("other")) as running:
        with turns:
            with turns, turns:
                record("inner")
            record("outer")
            running[0].start()
            running[0].join(TIMEOUT)
        record("after")
    expected = ["before: False", "enter", "inner: True", "outer: True", "other: False", "leave"]
    assert steps == [*expected, "after: False"]


def test_fifo_lock_failed_enter_hook_releases() -> None:
    """If the enter hook fails, the next waiter acquires the lock."""
    failures = [ValueError("no")]

    def enter() -> None:
        if failures:
            raise failures.pop()

    turns = HookedFifoLock(enter, lambda: None)
    with pytest.raises(ValueError, match="no"):
        turns.__enter__()
    assert not turns.held
    assert turns.waiting == 0
    with turns:
        assert turns.held


def test_fifo_lock_failed_leave_hook_raises_and_releases() -> None:
    """If the leave hook fails, its error is raised and the next waiter acquires the lock."""

    def leave() -> None:
        raise ValueError("no")

    turns, served = HookedFifoLock(lambda: None, leave), list[str]()

    def other() -> None:
        with contextlib.suppress(ValueError), turns:
            served.append("other")

    with running_threads(other) as running, pytest.raises(ValueError, match="no"), turns:
        start_in_order(turns, running)
    assert served == ["other"]
    assert turns.waiting == 0


def test_fifo_lock_error_in_block_releases() -> None:
    """An exception inside the block releases the lock."""
    turns = FifoLock()
    with pytest.raises(KeyError), turns, turns:
        raise KeyError
    assert turns.waiting == 0
    with turns:
        pass


class Interrupted(BaseException):
    """Exception raised by a signal handler, like KeyboardInterrupt."""


@contextlib.contextmanager
def interrupts() -> Iterator[None]:
    """Make SIGUSR1 interrupt the main thread.

    Garbage collection is off: CPython discards exceptions raised in finalizers and GC callbacks
    (hypothesis installs one), so an interrupt there would be lost.
    """

    def interrupt(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, interrupt)
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        signal.signal(signal.SIGUSR1, before)


def test_fifo_lock_interrupted_waiter_leaves_queue() -> None:
    """Threads before and behind an interrupted waiter are served as if it had not queued."""
    turns, go_on, served = FifoLock(), threading.Event(), list[str]()
    taken = threading.Event()
    main = threading.main_thread().ident
    assert main is not None

    def holder() -> None:
        with turns:
            taken.set()
            go_on.wait(TIMEOUT)

    def behind() -> None:
        wait_until(lambda: turns.waiting == 1)
        before = turns.waiting
        last.start()
        wait_until(lambda: turns.waiting == before + 1)
        signal.pthread_kill(main, signal.SIGUSR1)

    def end() -> None:
        with turns:
            served.append("last")

    with interrupts(), running_threads(holder, behind, end) as running:
        last = running[2]
        running[0].start()
        assert taken.wait(TIMEOUT)
        running[1].start()
        with pytest.raises(Interrupted), turns:
            served.append("main")
        assert not turns.held
        assert turns.waiting == 1
        go_on.set()
    assert served == ["last"]
    assert turns.waiting == 0


def test_fifo_lock_interrupted_at_handover_is_not_lost() -> None:
    """A signal at any moment around the hand-over does not lose the lock."""
    turns, stop = FifoLock(), threading.Event()
    struck = 0

    def other() -> None:
        while not stop.is_set():
            with turns:
                time.sleep(0.0002)  # duration of a device access

    with interrupts(), running_threads(other, other) as running:
        before = signal.signal(signal.SIGALRM, signal.getsignal(signal.SIGUSR1))
        try:
            for thread in running:
                thread.start()
            for number in range(300):
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0.00005 + number * 0.000002)
                    with turns:
                        signal.setitimer(signal.ITIMER_REAL, 0)
                except Interrupted:
                    struck += 1
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                    assert not turns.held
        finally:
            stop.set()
            signal.signal(signal.SIGALRM, before)
    assert turns.waiting == 0
    assert struck


def test_fifo_lock_holder_interrupted_at_any_moment_releases() -> None:
    """A signal at any moment while holding or releasing passes the lock to the next waiter."""
    struck = 0
    with interrupts():
        before = signal.signal(signal.SIGALRM, signal.getsignal(signal.SIGUSR1))
        try:
            for number in range(2000):
                turns = FifoLock()
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0.00002 + number % 50 * 0.000002)
                    while True:
                        for _ in range(10_000):
                            with turns:
                                pass
                        # CPython 3.11 may lose the flag of a signal that arrives while it computes
                        # the flag; setting the mask makes it check again.
                        signal.pthread_sigmask(signal.SIG_BLOCK, ())
                except Interrupted:
                    struck += 1
                signal.setitimer(signal.ITIMER_REAL, 0)
                assert not turns.held
                assert turns.waiting == 0
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    assert struck == 2000


def test_fifo_lock_lost_wake_up_is_recovered(monkeypatch: pytest.MonkeyPatch) -> None:
    """If an interrupt discards a wake-up, the waiter finds the free lock by polling."""
    monkeypatch.setattr(FifoLock, "_wake", lambda _: None)
    turns, served = FifoLock(), list[str]()

    def other() -> None:
        with turns:
            served.append("other")

    with running_threads(other) as running, turns:
        start_in_order(turns, running)
    assert served == ["other"]
