"""Jobs of the event loop in threads: limits, time, and jobs that take long."""

import asyncio
import gc
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial
from operator import floordiv
from unittest.mock import Mock
from weakref import ref

import pytest

from attestkit.serve import job_queue
from attestkit.serve.job_queue import (
    RELIEF_SECONDS,
    JobQueue,
    JobRefusedError,
    JobThreads,
)

PATIENCE = 60.0


@pytest.fixture
def threads() -> Iterator[JobThreads]:
    """Return two threads, which end with the test."""
    with JobThreads(2) as found:
        yield found


def run(loop: asyncio.AbstractEventLoop, scenario: Callable[[], Awaitable[None]]) -> None:
    """Run a scenario in the event loop."""
    loop.run_until_complete(asyncio.wait_for(scenario(), PATIENCE))


def start(queue: JobQueue, work: Callable[[], object]) -> "asyncio.Future[object]":
    """Add a job to a queue of the running event loop."""
    deadline = asyncio.get_running_loop().time() + PATIENCE
    return asyncio.ensure_future(queue.run(work, deadline))


def test_run_returns_result_or_raises(loop: asyncio.AbstractEventLoop, threads: JobThreads) -> None:
    """Each job's own result is returned, and its exception is raised."""

    async def scenario() -> None:
        queue = JobQueue(threads, 100, "full")
        jobs = [start(queue, partial(floordiv, 100, number)) for number in range(100)]
        first, *results = await asyncio.gather(*jobs, return_exceptions=True)
        assert isinstance(first, ZeroDivisionError)
        assert results == [100 // number for number in range(1, 100)]

    run(loop, scenario)


def test_run_over_limit_is_refused(loop: asyncio.AbstractEventLoop, threads: JobThreads) -> None:
    """The limit counts running and waiting jobs; a job that ends makes room."""

    async def scenario() -> None:
        go, queue = threading.Event(), JobQueue(threads, 3, "full")
        jobs = [start(queue, go.wait) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(JobRefusedError, match="full"):
            await start(queue, go.wait)
        go.set()
        assert await asyncio.gather(*jobs) == [True] * 3
        assert await start(queue, go.wait) is True

    run(loop, scenario)


def test_run_long_job_does_not_delay_others(
    loop: asyncio.AbstractEventLoop, threads: JobThreads
) -> None:
    """Another thread takes over the jobs that wait for a long one."""

    async def scenario() -> None:
        go, queue = threading.Event(), JobQueue(threads, 10, "full")
        long = start(queue, go.wait)
        assert await asyncio.gather(*(start(queue, lambda: 7) for _ in range(5))) == [7] * 5
        assert not long.done()
        go.set()
        assert await long is True

    run(loop, scenario)


def test_run_result_does_not_wait_for_long_job(loop: asyncio.AbstractEventLoop) -> None:
    """The result of a job is delivered while the next job of its thread still runs."""

    async def scenario(threads: JobThreads) -> None:
        go, both = threading.Event(), threading.Event()
        queue = JobQueue(threads, 10, "full")
        short = start(queue, both.wait)
        long = start(queue, go.wait)
        await asyncio.sleep(0)
        both.set()
        assert await short is True
        assert not long.done()
        go.set()
        assert await long is True

    with JobThreads(1) as one:
        run(loop, partial(scenario, one))


def test_run_cancelled_job_that_waits_is_not_executed(loop: asyncio.AbstractEventLoop) -> None:
    """A job that is cancelled before a thread has begun leaves the queue, and is not executed."""
    executed: list[int] = []

    async def scenario(threads: JobThreads) -> None:
        go, queue = threading.Event(), JobQueue(threads, 2, "full")
        first = start(queue, go.wait)
        for number in range(3):
            job = start(queue, partial(executed.append, number))
            await asyncio.sleep(0)
            job.cancel()
            with pytest.raises(asyncio.CancelledError):
                await job
        go.set()
        assert await first is True

    with JobThreads(1) as one:
        run(loop, partial(scenario, one))
    assert executed == []


def test_run_ends_at_deadline(loop: asyncio.AbstractEventLoop, threads: JobThreads) -> None:
    """A job that runs at its deadline raises, and stays in the queue until its thread is done."""

    async def scenario() -> None:
        go, queue = threading.Event(), JobQueue(threads, 1, "full")
        with pytest.raises(asyncio.TimeoutError):
            await queue.run(go.wait, asyncio.get_running_loop().time())
        with pytest.raises(JobRefusedError, match="full"):
            await start(queue, int)
        go.set()
        while True:
            try:
                assert await start(queue, int) == 0
            except JobRefusedError:  # the thread is not done yet
                continue
            break

    run(loop, scenario)


class Data:
    """Data of a request."""


async def run_over_time(
    queue: JobQueue, work: Callable[[Data], object]
) -> "tuple[ref[Data], ref[Data]]":
    """Run a job until its deadline; return references to its body, and to its request."""
    body, request = Data(), Data()
    with suppress(asyncio.TimeoutError):
        await queue.run(partial(work, body), asyncio.get_running_loop().time())
        pytest.fail("no timeout")
    return ref(body), ref(request)


@pytest.mark.slow
def test_run_job_that_waits_is_released_at_deadline(loop: asyncio.AbstractEventLoop) -> None:
    """While all threads are stuck, a job whose time is over leaves nothing behind."""

    async def scenario(threads: JobThreads) -> None:
        go, queue = threading.Event(), JobQueue(threads, 3, "full")
        stuck = start(queue, go.wait)
        await asyncio.sleep(0)
        for _ in range(5):
            body, request = await run_over_time(queue, id)
            gc.collect()
            assert body() is request() is None
            assert not threads.has_waiting
        go.set()
        assert await stuck is True

    with JobThreads(1) as one:
        run(loop, partial(scenario, one))


def test_run_job_of_stuck_thread_releases_request_at_deadline(
    loop: asyncio.AbstractEventLoop, threads: JobThreads
) -> None:
    """A stuck thread keeps alive what its job refers to, and not the request that awaited it."""

    async def scenario() -> None:
        go, queue = threading.Event(), JobQueue(threads, 3, "full")
        body, request = await run_over_time(queue, lambda _: go.wait(PATIENCE))
        gc.collect()
        assert body() is not None
        assert request() is None
        go.set()

    run(loop, scenario)


def test_run_at_shutdown_waiting_job_ends_at_deadline(loop: asyncio.AbstractEventLoop) -> None:
    """A job that waits at shutdown is never run, and leaves the queue at its deadline."""

    async def scenario() -> None:
        go, begun, threads = threading.Event(), threading.Event(), JobThreads(1)
        executed: list[object] = []
        queue = JobQueue(threads, 2, "full")

        def block() -> bool:
            begun.set()
            return go.wait(PATIENCE)

        running = start(queue, block)
        await asyncio.sleep(0)
        assert begun.wait(PATIENCE)
        waiting = asyncio.ensure_future(run_over_time(queue, executed.append))
        await asyncio.sleep(0)
        threads.shutdown(seconds=0.0)
        await waiting
        go.set()
        assert await running is True
        assert executed == []
        with pytest.raises(JobRefusedError, match="shutting down"):
            await start(queue, int)

    run(loop, scenario)


def add_job_of_closed_loop(queue: JobQueue, work: Callable[[], object]) -> None:
    """Add a job to a queue by an event loop that is closed before the job ends."""
    old = asyncio.new_event_loop()
    old.set_exception_handler(Mock())  # called for the task, which never ends
    task = old.create_task(queue.run(work, 0.0))
    old.run_until_complete(asyncio.sleep(0))
    old.close()
    assert not task.done()


def test_run_after_closed_loop_is_notified(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A result for a closed event loop delays no result for the next one."""
    monkeypatch.setattr(job_queue, "RELIEF_SECONDS", 10 * PATIENCE)  # no check delivers results
    monkeypatch.setattr(job_queue, "_HOLD_SECONDS", 0.0)
    with JobThreads(1) as threads:
        queue = JobQueue(threads, 3, "full")
        go, done = threading.Event(), threading.Event()
        add_job_of_closed_loop(queue, go.wait)
        threads.submit(done.set)
        go.set()
        assert done.wait(PATIENCE)

        async def scenario() -> None:
            assert await start(queue, int) == 0

        run(loop, scenario)


def test_check_after_closed_loop_goes_on(loop: asyncio.AbstractEventLoop) -> None:
    """The deadline of a job of a closed event loop keeps no other from being checked."""
    with JobThreads(2) as threads:
        queue = JobQueue(threads, 3, "full")
        go = threading.Event()
        add_job_of_closed_loop(queue, go.wait)

        async def scenario() -> None:
            for _ in range(2):
                await run_over_time(queue, lambda _: go.wait(PATIENCE))
            go.set()

        run(loop, scenario)


def test_check_that_fails_is_repeated(loop: asyncio.AbstractEventLoop) -> None:
    """An unexpected error in a check is reported, and the next check takes place."""
    errors: list[object] = []

    async def scenario(threads: JobThreads) -> None:
        go, queue = threading.Event(), JobQueue(threads, 3, "full")
        await run_over_time(queue, lambda _: go.wait(PATIENCE))
        go.set()

    loop.set_exception_handler(lambda _, context: errors.append(context["exception"]))
    try:
        with JobThreads(1) as threads, pytest.MonkeyPatch.context() as patch:
            error = ZeroDivisionError()
            patch.setattr(threads, "relieve", Mock(side_effect=[error, *[None] * 10_000]))
            run(loop, partial(scenario, threads))
    finally:
        loop.set_exception_handler(None)
    assert errors == [error]


def test_run_after_shutdown_is_refused(loop: asyncio.AbstractEventLoop) -> None:
    """Threads that are shut down accept no job, and the queue does not fill with refused jobs."""
    threads = JobThreads(1)
    threads.shutdown()

    async def scenario() -> None:
        queue = JobQueue(threads, 1, "full")
        for _ in range(3):
            with pytest.raises(JobRefusedError, match="shutting down"):
                await start(queue, int)

    run(loop, scenario)


def test_run_without_thread_is_refused(
    loop: asyncio.AbstractEventLoop, threads: JobThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If no thread can be started, the error says so, and the next job may start one."""

    async def scenario() -> None:
        queue = JobQueue(threads, 1, "full")
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", Mock(side_effect=RuntimeError("no thread")))
            for _ in range(3):
                with pytest.raises(JobRefusedError, match="cannot start a thread"):
                    await start(queue, int)
        assert await start(queue, int) == 0

    run(loop, scenario)


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Return the time in seconds."""
        return self.now


def test_threads_run_short_jobs_in_one_thread() -> None:
    """Jobs wait for a thread whose job is short; another takes over from a long one."""
    go, begun, clock = threading.Event(), threading.Semaphore(0), Clock()
    used: set[int] = set()

    def work() -> None:
        used.add(threading.get_ident())
        begun.release()
        assert go.wait(PATIENCE)

    with JobThreads(2, clock=clock) as threads:
        for _ in range(10):
            threads.submit(work)
        assert begun.acquire(timeout=PATIENCE)
        clock.now = RELIEF_SECONDS / 2
        threads.relieve()
        assert not begun.acquire(blocking=False)
        assert len(threads._threads) == 1
        for _ in range(3):
            clock.now += 2 * RELIEF_SECONDS
            threads.relieve()
        assert begun.acquire(timeout=PATIENCE)
        assert len(used) == 2
        go.set()
        for _ in range(8):
            assert begun.acquire(timeout=PATIENCE)
        assert len(used) == len(threads._threads) == 2


def test_submit_beside_long_job_does_not_wait_for_relief() -> None:
    """A job begins at once if all busy threads have long ones: its thread is started, or woken."""
    go, done, clock = threading.Event(), threading.Semaphore(0), Clock()

    def block() -> None:
        done.release()
        go.wait(PATIENCE)

    with JobThreads(2, clock=clock) as threads:
        threads.submit(block)
        assert done.acquire(timeout=PATIENCE)
        for _ in range(20):
            clock.now += 2 * RELIEF_SECONDS
            threads.submit(done.release)
            assert done.acquire(timeout=PATIENCE)
        assert len(threads._threads) == 2
        go.set()


def test_shutdown_does_not_wait_longer_than_its_limit() -> None:
    """A job that never ends keeps neither `shutdown` nor, as a daemon, the process from ending."""
    go, begun = threading.Event(), threading.Event()

    def block() -> None:
        begun.set()
        go.wait(PATIENCE)

    threads = JobThreads(1)
    threads.submit(block)
    assert begun.wait(PATIENCE)
    threads.shutdown(seconds=0.0)
    [thread] = threads._threads
    assert thread.is_alive()
    assert thread.daemon
    go.set()
    threads.shutdown(seconds=PATIENCE)
    assert not thread.is_alive()
