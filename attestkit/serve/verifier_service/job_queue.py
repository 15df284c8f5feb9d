"""Queue of jobs of the event loop, and the threads that run them.

Waking a thread costs up to a tenth of a verification, and one that waits for the GIL is woken in
vain each time that a verification releases it. So one thread runs the jobs as long as each takes
less than `RELIEF_SECONDS`, and results that follow each other closely go to the event loop in one
call.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any, Final, TypeVar

from typing_extensions import Self

RELIEF_SECONDS: Final = 0.01
"""Time after which another thread takes over the jobs that wait for a long one."""

_HOLD_SECONDS: Final = 0.005  # for which a result may wait for the next
_NO_HOLD: Final = float("-inf")
T = TypeVar("T")


class JobRefusedError(Exception):
    """The queue does not accept the job; the text gives the reason."""


class JobThreads:
    """At most `most` threads, which are started on demand."""

    def __init__(self, most: int, name: str = "job") -> None:
        self._most, self._name = most, name
        self._lock = threading.Lock()  # of all attributes below
        self._waiting: deque[Callable[[], None]] = deque()
        self._idle: list[threading.Lock] = []  # one of each idle thread; release wakes it
        self._threads: list[threading.Thread] = []
        self._begun = self._begun_before = 0  # jobs, now and at the last call of `relieve`
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    @property
    def has_waiting(self) -> bool:
        """Whether jobs wait for a thread."""
        return bool(self._waiting)

    def submit(self, work: Callable[[], None], /) -> None:
        """Run `work`, which never raises, in a thread: an idle one, or once one is done.

        Raises:
            RuntimeError: After shutdown, or if no thread can be started.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError("threads: shut down")
            is_first = len(self._idle) == len(self._threads)
            if is_first and not self._threads:
                self._start()
            self._waiting.append(work)
            if is_first:
                self._wake()

    def relieve(self) -> None:
        """Wake or start another thread if no job has begun since the last call, and some wait."""
        with self._lock:
            if self._waiting and self._begun == self._begun_before:
                if not self._idle and len(self._threads) < self._most:
                    with suppress(RuntimeError):  # out of threads: try again
                        self._start()
                self._wake()
            self._begun_before = self._begun

    def shutdown(self) -> None:
        """Drop the jobs that wait, and wait for those that run."""
        with self._lock:
            self._closed = True
            self._waiting.clear()
            while self._idle:
                self._wake()
        for thread in self._threads:
            thread.join()

    def _wake(self) -> None:
        if self._idle:
            self._idle.pop().release()  # the last: its data may still be in a cache

    def _start(self) -> None:
        name = f"{self._name}_{len(self._threads)}"
        # A verification that never ends must not keep the process from ending.
        thread = threading.Thread(target=self._run, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _run(self) -> None:
        wake = threading.Lock()
        wake.acquire()
        while (work := self._next(wake)) is not None:
            work()
            del work  # an idle thread must not hold the body of a request

    def _next(self, wake: threading.Lock) -> Callable[[], None] | None:
        """Wait for the next job; None after shutdown."""
        while True:
            with self._lock:
                if self._closed:
                    return None
                if self._waiting:
                    self._begun += 1
                    return self._waiting.popleft()
                self._idle.append(wake)
            wake.acquire()


class JobQueue:
    """Queue with a limit of running and waiting jobs; to be used in the event loop.

    A job is in the queue until its thread is done, even if its time is over. If the time is over
    before a thread has begun, the job leaves the queue, and is never run.
    """

    def __init__(self, threads: JobThreads, limit: int, full: str) -> None:
        """Create an empty queue.

        Args:
            threads: Threads that run the jobs; not shut down by the queue.
            limit: Limit of running and waiting jobs.
            full: Text of the error for a job over the limit.
        """
        self._threads, self._free, self._full = threads, limit, full
        self._limit = limit
        self._done: deque[Callable[[], None]] = deque()  # each sets the result of a job
        self._is_notified = False  # the event loop will call _deliver()
        self._held_since = _NO_HOLD
        self._deadlines: dict[asyncio.Future[Any], float] = {}  # a timer for each would cost more
        self._checked_by: asyncio.AbstractEventLoop | None = None  # the event loop, while busy

    async def run(self, work: Callable[[], T], deadline: float) -> T:
        """Return the result of `work`, run in a thread.

        Args:
            work: The job; its exception is raised here.
            deadline: End of its time, by the clock of the event loop; checked every 10 ms.

        Raises:
            JobRefusedError: If the queue is full, or its threads are shut down.
            asyncio.TimeoutError: If there is no result by `deadline`.
        """
        if self._free <= 0:
            raise JobRefusedError(self._full)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        unclaimed = [work]  # empty once a thread has begun, or the job has left the queue
        self._free -= 1
        try:
            self._threads.submit(partial(self._run, unclaimed, loop, future))
        except RuntimeError as error:
            self._leave(unclaimed)
            raise JobRefusedError("server: shutting down") from error
        if self._checked_by is not loop:
            self._checked_by = loop
            loop.call_later(RELIEF_SECONDS, self._check, loop)
        self._deadlines[future] = deadline
        try:
            return await future
        finally:
            del self._deadlines[future]
            self._leave(unclaimed)

    def _check(self, loop: asyncio.AbstractEventLoop) -> None:
        """Deliver results, end jobs at their deadlines, and relieve a thread with a long job."""
        self._deliver()
        self._threads.relieve()
        now = loop.time()
        for future, deadline in self._deadlines.items():
            if deadline <= now:
                _set_exception(future, asyncio.TimeoutError())
        if self._free < self._limit:
            loop.call_later(RELIEF_SECONDS, self._check, loop)
        else:
            self._checked_by = None

    def _leave(self, unclaimed: list[Callable[[], T]]) -> None:
        """Remove a job for which no thread has begun."""
        if unclaimed and _claim(unclaimed) is not None:
            self._free += 1

    def _run(
        self,
        unclaimed: list[Callable[[], T]],
        loop: asyncio.AbstractEventLoop,
        future: "asyncio.Future[T]",
    ) -> None:
        """Run a job in its thread, unless it has left the queue."""
        if (work := _claim(unclaimed)) is not None:
            try:
                self._done.append(partial(_set_result, future, work()))
            except BaseException as error:  # noqa: BLE001 - raised in the event loop
                self._done.append(partial(_set_exception, future, error))
        if self._done and not self._is_notified and not self._may_hold():
            self._is_notified = True
            with suppress(RuntimeError):  # the event loop has ended
                loop.call_soon_threadsafe(self._deliver)

    def _may_hold(self) -> bool:
        """Return whether the results may wait for that of the next job."""
        if not self._threads.has_waiting:
            return False
        now = monotonic()
        if self._held_since == _NO_HOLD:
            self._held_since = now
        return now - self._held_since < _HOLD_SECONDS

    def _deliver(self) -> None:
        """Set the results of all jobs that are done."""
        self._is_notified, self._held_since = False, _NO_HOLD
        while self._done:
            self._free += 1
            self._done.popleft()()


def _set_result(future: "asyncio.Future[T]", result: T) -> None:
    if not future.done():  # cancelled, or its time is over
        future.set_result(result)


def _set_exception(future: "asyncio.Future[T]", error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)


def _claim(unclaimed: list[T]) -> T | None:
    """Take the job of a list, which is atomic; None if it was taken before."""
    try:
        return unclaimed.pop()
    except IndexError:
        return None
