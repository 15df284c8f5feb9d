"""Work split into parts is complete and in order, on at most one thread per CPU."""

import gc
import os
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import suppress

import pytest

from attestkit import _native
from attestkit._native import _python_log as python_core
from attestkit._native import _threads
from attestkit._native._threads import cpus, in_parts
from tests.runner.cases import every_case


def double_all(things: Sequence[int]) -> list[int]:
    """Return each number doubled."""
    return [2 * thing for thing in things]


@pytest.fixture(autouse=True)
def _three_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Split the work even on a machine with one CPU."""
    monkeypatch.setattr(_threads, "cpus", lambda: 3)


def test_cpus_respects_affinity() -> None:
    """A process starts at most one thread per CPU of its affinity mask."""
    assert 1 <= cpus() <= (os.cpu_count() or 1)


@every_case("share", [1, 4, 10, 100, 10**6])
@every_case("count", [0, 1, 2, 50])
def test_in_parts_returns_results_in_order(count: int, share: int) -> None:
    """Results are in order for any sizes, including zero."""
    sizes = [thing * 7 % 10 for thing in range(count)]
    assert in_parts(double_all, range(count), sizes, share) == double_all(range(count))


def test_in_parts_runs_parts_concurrently() -> None:
    """Three parts wait for each other, so each needs its own thread."""
    together = threading.Barrier(3, timeout=60)

    def wait_for_others(things: Sequence[int]) -> list[int]:
        together.wait()
        return double_all(things)

    assert in_parts(wait_for_others, range(3), [4, 4, 4], 4) == [0, 2, 4]


@pytest.mark.parametrize("share", [13, 100])
def test_in_parts_of_little_work_uses_calling_thread(share: int) -> None:
    """Less work than two shares runs in the caller's thread."""
    workers = set()

    def record_thread(things: Sequence[int]) -> list[int]:
        workers.add(threading.get_ident())
        return double_all(things)

    in_parts(record_thread, range(20), [1] * 20, share)
    assert workers == {threading.get_ident()}


@pytest.mark.parametrize("wrong", [0, 31, 59])
def test_in_parts_raises_first_error_after_all_threads(wrong: int) -> None:
    """The error is raised once all threads have ended."""

    def work(things: Sequence[int]) -> list[int]:
        if wrong in things:
            raise KeyError(wrong)
        return double_all(things)

    before = threading.active_count()
    with pytest.raises(KeyError, match=str(wrong)):
        in_parts(work, range(60), [1] * 60, 4)
    assert threading.active_count() == before


@pytest.fixture
def _without_collector() -> Iterator[None]:
    """Disable the garbage collector; this file also runs without tests/conftest.py."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_without_collector")
def test_in_parts_error_leaves_no_reference_cycle() -> None:
    """After an error, work and exception are released without the garbage collector."""

    class Work:
        def __call__(self, _: Sequence[int]) -> list[int]:
            raise KeyError

    work = Work()
    alive = weakref.ref(work)
    with suppress(KeyError):
        in_parts(work, range(60), [1] * 60, 4)
    del work
    assert alive() is None


def test_in_parts_without_threads_uses_calling_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """If no thread can be started, the caller's thread does the work."""

    def fail_to_start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail_to_start)
    assert in_parts(double_all, range(100), [1] * 100, 4) == double_all(range(100))


@pytest.fixture
def _no_switching() -> Iterator[None]:
    """Switch threads only where the GIL is released."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    yield
    sys.setswitchinterval(before)


def test_threads_have_separate_buffers() -> None:
    """Concurrent replays and hashes have their own results."""
    logs = [(bytes([n % 4] * 5), bytes([n] * 240)) for n in range(4)]
    expected = [(python_core.replay(*log), python_core.sha384(log[1])) for log in logs]
    wrong: list[int] = []

    def run(number: int) -> None:
        log = logs[number]
        wrong.extend(
            number
            for _ in range(2000)
            if (_native.replay(*log), _native.sha384(log[1])) != expected[number]
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
def test_replay_many_releases_gil_for_large_batches_only(large: bool) -> None:
    """Another thread runs during a large batch, and not during a small one."""
    count = _native._MANY_EVENTS if large else _native._MANY_EVENTS // 2
    assert _native._EVENTS_PER_THREAD // 4 >= _native._MANY_EVENTS  # size of one part
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
