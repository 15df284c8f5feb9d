"""Work in parts comes back whole and in order, from as many threads as there are CPUs."""

import gc
import os
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import suppress

import pytest

from attestkit import _native
from attestkit._native import _python_log as twin
from attestkit._native import _threads
from attestkit._native._threads import cpus, in_parts


def doubled(things: Sequence[int]) -> list[int]:
    """Return twice each thing."""
    return [2 * thing for thing in things]


@pytest.fixture(autouse=True)
def _three_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the work be shared, also on a machine with one CPU."""
    monkeypatch.setattr(_threads, "cpus", lambda: 3)


def test_cpus_are_those_of_this_process() -> None:
    """A process that is confined to some CPUs starts no more threads than these."""
    assert 1 <= cpus() <= (os.cpu_count() or 1)


@pytest.mark.parametrize("share", [1, 4, 10, 100, 10**6])
@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_results_are_in_order(count: int, share: int) -> None:
    """Whatever a part holds, also things that are no work at all."""
    sizes = [thing * 7 % 10 for thing in range(count)]
    assert in_parts(doubled, range(count), sizes, share) == doubled(range(count))


def test_threads_work_at_the_same_time() -> None:
    """Three parts wait for each other, which they only can where each has a thread."""
    together = threading.Barrier(3, timeout=60)

    def meet(things: Sequence[int]) -> list[int]:
        together.wait()
        return doubled(things)

    assert in_parts(meet, range(3), [4, 4, 4], 4) == [0, 2, 4]


@pytest.mark.parametrize("share", [13, 100])
def test_less_work_than_two_shares_starts_no_thread(share: int) -> None:
    """The caller's thread does it all."""
    workers = set()

    def who(things: Sequence[int]) -> list[int]:
        workers.add(threading.get_ident())
        return doubled(things)

    in_parts(who, range(20), [1] * 20, share)
    assert workers == {threading.get_ident()}


@pytest.mark.parametrize("wrong", [0, 31, 59])
def test_first_error_is_the_caller_s(wrong: int) -> None:
    """It is raised once all threads have ended."""

    def work(things: Sequence[int]) -> list[int]:
        if wrong in things:
            raise KeyError(wrong)
        return doubled(things)

    before = threading.active_count()
    with pytest.raises(KeyError, match=str(wrong)):
        in_parts(work, range(60), [1] * 60, 4)
    assert threading.active_count() == before


@pytest.fixture
def _uncollected() -> Iterator[None]:
    """Leave cycles as they are; this file runs where tests/conftest.py is not, too."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_uncollected")
def test_what_failed_is_freed_with_its_error() -> None:
    """Neither what was worked on nor the errors wait for the collector of cycles."""

    class Work:
        def __call__(self, _: Sequence[int]) -> list[int]:
            raise KeyError

    work = Work()
    alive = weakref.ref(work)
    with suppress(KeyError):
        in_parts(work, range(60), [1] * 60, 4)
    del work
    assert alive() is None


def test_without_threads_the_caller_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can be had, because there are too many, the work is done all the same."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert in_parts(doubled, range(100), [1] * 100, 4) == doubled(range(100))


@pytest.fixture
def _no_switching() -> Iterator[None]:
    """Leave the GIL with who has it until they let go of it."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    yield
    sys.setswitchinterval(before)


def test_threads_do_not_write_into_each_other_s_room() -> None:
    """Threads that replay and hash all the time get their own values, however they alternate."""
    logs = [(bytes([n % 4] * 5), bytes([n] * 240)) for n in range(4)]
    wanted = [(twin.replay(*log), twin.sha384(log[1])) for log in logs]
    wrong: list[int] = []

    def run(number: int) -> None:
        log = logs[number]
        wrong.extend(
            number
            for _ in range(2000)
            if (_native.replay(*log), _native.sha384(log[1])) != wanted[number]
        )

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(logs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(before)
    assert wrong == []


@pytest.mark.skipif(_native.CORE != "compiled", reason=_native.CORE_REASON)
@pytest.mark.usefixtures("_no_switching")
@pytest.mark.parametrize("large", [False, True])
def test_only_large_batches_let_others_run(large: bool) -> None:
    """Another thread that wants to run gets to it inside of one, and not inside of a small one."""
    count = _native._MANY_EVENTS if large else _native._MANY_EVENTS // 2
    assert _native._EVENTS_OF_A_THREAD // 4 >= _native._MANY_EVENTS  # as much is done at a time
    batch = [(bytes(count), bytes(48 * count))]
    start, ran = threading.Event(), []

    def other() -> None:
        start.wait()
        ran.append(True)

    thread = threading.Thread(target=other)
    thread.start()
    start.set()
    for _ in range(1000 if large else 3):
        _native.replay_many(batch)
        if ran:
            break
    found = bool(ran)
    thread.join()
    assert found is large
