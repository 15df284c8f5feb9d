"""Threads are served in the order they came, and an interrupt costs nobody else anything."""

import contextlib
import gc
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from attestkit._system.fifo_lock import SteppedTurns, Turns

PATIENCE = 30.0  # seconds until a test gives up rather than hang


def until(condition: Callable[[], bool]) -> None:
    """Wait until something holds that another thread brings about."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.0005)


@contextlib.contextmanager
def threads(*works: Callable[[], object]) -> Iterator[list[threading.Thread]]:
    """Run threads beside the block; all must end soon after it."""
    running = [threading.Thread(target=work, daemon=True) for work in works]
    yield running
    for thread in running:
        if thread.ident is not None:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a thread waits for ever"


def _waits(turns: Turns, count: int) -> bool:
    return turns.waiting == count


def queue_up(turns: Turns, running: list[threading.Thread]) -> None:
    """Start threads one by one, each once the one before waits."""
    for thread in running:
        before = turns.waiting
        thread.start()
        until(partial(_waits, turns, before + 1))


def test_first_come_first_served() -> None:
    """Whoever came first is served first, whatever the operating system wakes."""
    turns, served = Turns(), list[int]()

    def work(number: int) -> Callable[[], None]:
        def run() -> None:
            with turns:
                served.append(number)

        return run

    with threads(*map(work, range(20))) as running, turns:
        queue_up(turns, running)
        assert served == []
    assert served == list(range(20))
    assert turns.waiting == 0


def test_whoever_releases_does_not_overtake() -> None:
    """A thread that asks again at once comes behind all who wait, each time anew."""
    turns, served = Turns(), list[str]()

    def other() -> None:
        for _ in range(50):
            with turns:
                served.append("other")
                until(lambda: turns.waiting == 1 or len(served) >= 98)

    with threads(other) as running:
        with turns:
            queue_up(turns, running)
        for _ in range(50):
            with turns:
                served.append("main")
                until(lambda: turns.waiting == 1 or len(served) >= 98)
    assert served[:98] == ["other", "main"] * 49


def test_nobody_is_overtaken_by_more_than_all_others() -> None:
    """8 threads that ask in a loop: between asking and turn there is one turn of each other."""
    turns, order, worst = Turns(), list[int](), list[int]()

    def client() -> None:
        for _ in range(40):
            asked = len(order)
            with turns:
                worst.append(len(order) - asked)
                order.append(1)
                time.sleep(0.0002)  # what a device takes, during which the others run

    with threads(*[client] * 8) as running:
        for thread in running:
            thread.start()
    assert len(order) == 320
    # A thread that the machine stops between looking and asking sees some more: not many do.
    assert sorted(worst)[int(len(worst) * 0.99)] <= 8 + 7


def test_it_is_entered_again_within() -> None:
    """What has the turn may ask for it again; others come in only at the outermost end."""
    steps = list[str]()
    turns = SteppedTurns(lambda: steps.append("enter"), lambda: steps.append("leave"))

    def tell(who: str) -> None:
        steps.append(f"{who}: {turns.mine}")

    tell("before")
    with threads(lambda: tell("other")) as running:
        with turns:
            with turns, turns:
                tell("inner")
            tell("outer")
            running[0].start()
            running[0].join(PATIENCE)
        tell("after")
    expected = ["before: False", "enter", "inner: True", "outer: True", "other: False", "leave"]
    assert steps == [*expected, "after: False"]


def test_a_turn_that_cannot_begin_is_over() -> None:
    """If the first step fails, the next in the queue has its turn."""
    failures = [ValueError("no")]

    def enter() -> None:
        if failures:
            raise failures.pop()

    turns = SteppedTurns(enter, lambda: None)
    with pytest.raises(ValueError, match="no"):
        turns.__enter__()
    assert not turns.mine
    assert turns.waiting == 0
    with turns:
        assert turns.mine


def test_a_turn_that_cannot_end_is_over() -> None:
    """If the last step fails, that is told, and the next one has its turn."""

    def leave() -> None:
        raise ValueError("no")

    turns, served = SteppedTurns(lambda: None, leave), list[str]()

    def other() -> None:
        with contextlib.suppress(ValueError), turns:
            served.append("other")

    with threads(other) as running, pytest.raises(ValueError, match="no"), turns:
        queue_up(turns, running)
    assert served == ["other"]
    assert turns.waiting == 0


def test_an_error_inside_ends_the_turn() -> None:
    """As with any lock."""
    turns = Turns()
    with pytest.raises(KeyError), turns, turns:
        raise KeyError
    assert turns.waiting == 0
    with turns:
        pass


class Interrupted(BaseException):
    """What the handler of a signal raises, as Ctrl-C does."""


@contextlib.contextmanager
def interrupts() -> Iterator[None]:
    """Have SIGUSR1 interrupt the main thread.

    No garbage is collected meanwhile: the interpreter swallows what is raised in a finalizer, or in
    a callback of the collector's (hypothesis has one), and so an interrupt that comes there.
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


def test_an_interrupt_while_waiting_gives_the_place_up() -> None:
    """Whoever is before and behind is served as if the interrupted one had never come."""
    turns, go_on, served = Turns(), threading.Event(), list[str]()
    taken = threading.Event()
    main = threading.main_thread().ident
    assert main is not None

    def holder() -> None:
        with turns:
            taken.set()
            go_on.wait(PATIENCE)

    def behind() -> None:
        until(lambda: turns.waiting == 1)
        before = turns.waiting
        last.start()
        until(lambda: turns.waiting == before + 1)
        signal.pthread_kill(main, signal.SIGUSR1)

    def end() -> None:
        with turns:
            served.append("last")

    with interrupts(), threads(holder, behind, end) as running:
        last = running[2]
        running[0].start()
        assert taken.wait(PATIENCE)
        running[1].start()
        with pytest.raises(Interrupted), turns:
            served.append("main")
        assert not turns.mine
        assert turns.waiting == 1
        go_on.set()
    assert served == ["last"]
    assert turns.waiting == 0


def test_interrupts_at_any_moment_of_waiting_lose_no_turn() -> None:
    """Signals strike around the moment of the hand-over: the lock is never lost."""
    turns, stop = Turns(), threading.Event()
    struck = 0

    def other() -> None:
        while not stop.is_set():
            with turns:
                time.sleep(0.0002)  # what a device takes

    with interrupts(), threads(other, other) as running:
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
                    assert not turns.mine
        finally:
            stop.set()
            signal.signal(signal.SIGALRM, before)
    assert turns.waiting == 0
    assert struck


def test_interrupts_at_any_moment_of_a_turn_lose_none() -> None:
    """Ctrl-C wherever it comes, the end of a turn included, and another thread has the next one."""
    struck = 0
    with interrupts():
        before = signal.signal(signal.SIGALRM, signal.getsignal(signal.SIGUSR1))
        try:
            for number in range(2000):
                turns = Turns()
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0.00002 + number % 50 * 0.000002)
                    while True:
                        for _ in range(10_000):
                            with turns:
                                pass
                        # CPython 3.11 can clear the flag of a signal that comes while it computes
                        # the flag: then nobody looks until another one comes, or is asked for.
                        signal.pthread_sigmask(signal.SIG_BLOCK, ())
                except Interrupted:
                    struck += 1
                signal.setitimer(signal.ITIMER_REAL, 0)
                assert not turns.mine
                assert turns.waiting == 0
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    assert struck == 2000


def test_a_wake_up_that_got_lost_is_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Should an interrupt swallow it, the waiter looks for itself."""
    monkeypatch.setattr(Turns, "_wake", lambda _: None)
    turns, served = Turns(), list[str]()

    def other() -> None:
        with turns:
            served.append("other")

    with threads(other) as running, turns:
        queue_up(turns, running)
    assert served == ["other"]
