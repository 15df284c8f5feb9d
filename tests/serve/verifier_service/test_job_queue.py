"""Jobs of the event loop in threads: limits, time, and jobs that take long."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from operator import floordiv

import pytest

from attestkit.serve.verifier_service.job_queue import JobQueue, JobRefusedError, JobThreads

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


def test_threads_run_short_jobs_in_one_thread() -> None:
    """Jobs wait for a running thread; only `relieve` wakes or starts another, up to the limit."""
    go, begun = threading.Event(), threading.Semaphore(0)
    used: set[int] = set()

    def work() -> None:
        used.add(threading.get_ident())
        begun.release()
        assert go.wait(PATIENCE)

    with JobThreads(2) as threads:
        for _ in range(10):
            threads.submit(work)
        assert begun.acquire(timeout=PATIENCE)
        threads.relieve()  # a job has begun since the start
        assert len(used) == 1
        for _ in range(5):
            threads.relieve()
        assert begun.acquire(timeout=PATIENCE)
        assert len(used) == 2
        go.set()
        for _ in range(8):
            assert begun.acquire(timeout=PATIENCE)
        assert len(used) == 2
