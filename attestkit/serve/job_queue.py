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
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

if TYPE_CHECKING:
    from typing_extensions import Self

RELIEF_SECONDS: Final = 0.01
"""Duration of a job after which another thread takes over the jobs that wait for it."""

SHUTDOWN_SECONDS: Final = 1.0
"""Time that `shutdown` gives running jobs, as a listener gives cancelled requests."""

_HOLD_SECONDS: Final = 0.005  # for which a result may wait for the next
_NEVER: Final = float("-inf")
T = TypeVar("T")


class JobRefusedError(Exception):
    """The queue does not accept the job; the text gives the reason."""


class JobThreads:
    """At most `most` threads, started on demand, that run jobs in order; shut down on exit.

    `name` begins the names of the threads; `clock` returns a time in seconds, by which jobs are
    found that take long.
    """

    def __init__(
        self, most: int, name: str = "job", *, clock: Callable[[], float] = monotonic
    ) -> None:
        self._most, self._name, self._clock = most, name, clock
        self._lock = threading.Lock()  # of all attributes below
        self._waiting: deque[Callable[[], object]] = deque()
        self._idle: list[threading.Lock] = []  # one of each idle thread; release wakes it
        self._busy: dict[threading.Lock, float] = {}  # begin of the job of each busy thread
        self._threads: list[threading.Thread] = []
        self._closed = False

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    @property
    def has_waiting(self) -> bool:
        """Whether jobs wait for a thread."""
        return bool(self._waiting) and not self._closed

    def submit(self, work: Callable[[], object], /) -> None:
        """Run `work`, which never raises, in a thread.

        The job waits for a busy thread if one began its job less than `RELIEF_SECONDS` ago.

        Raises:
            JobRefusedError: After shutdown, or if no thread can be started.
        """
        with self._lock:
            if self._closed:
                raise JobRefusedError("server: shutting down")
            if not self._threads:
                self._start()
            self._waiting.append(work)
            self._relieve()

    def cancel(self, work: Callable[[], object], /) -> bool:
        """Remove the submitted job `work`; return False if a thread has begun it already."""
        with self._lock:
            try:
                self._waiting.remove(work)
            except ValueError:
                return False
            return True

    def relieve(self) -> None:
        """Wake or start another thread if jobs wait, and no thread has begun one recently."""
        with self._lock:
            self._relieve()

    def shutdown(self, seconds: float | None = SHUTDOWN_SECONDS) -> None:
        """Begin no more jobs, and wait up to `seconds` for those that run; None: until they end."""
        with self._lock:
            self._closed = True
            while self._idle:
                self._wake()
        end = None if seconds is None else monotonic() + seconds
        for thread in self._threads:
            thread.join(None if end is None else max(0.0, end - monotonic()))

    def _relieve(self) -> None:
        last = max(self._busy.values(), default=_NEVER)
        if not self.has_waiting or self._clock() - last < RELIEF_SECONDS:
            return
        if self._idle:
            self._wake()
        elif len(self._threads) < self._most:
            with suppress(JobRefusedError):  # `relieve` tries again
                self._start()

    def _wake(self) -> None:
        wake = self._idle.pop()  # the last: its data may still be in a cache
        self._busy[wake] = self._clock()
        wake.release()

    def _start(self) -> None:
        wake = threading.Lock()
        wake.acquire()
        name = f"{self._name}_{len(self._threads)}"
        # A verification that never ends must not keep the process from ending.
        thread = threading.Thread(target=self._run, args=(wake,), name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise JobRefusedError("server: cannot start a thread; retry later") from error
        self._threads.append(thread)
        self._busy[wake] = self._clock()

    def _run(self, wake: threading.Lock) -> None:
        while (work := self._next(wake)) is not None:
            work()
            del work  # an idle thread must not hold the body of a request

    def _next(self, wake: threading.Lock) -> Callable[[], object] | None:
        """Return the next job, waiting for one; None after shutdown.

        `wake` is the lock of the calling thread; its release ends the wait.
        """
        while True:
            with self._lock:
                if self._closed:
                    return None
                if self._waiting:
                    self._busy[wake] = self._clock()
                    return self._waiting.popleft()
                del self._busy[wake]
                self._idle.append(wake)
            wake.acquire()


class _Failure(NamedTuple):
    """Error that `run` raises in place of a result.

    If the future had an exception, its traceback would keep the request alive as long as the thread
    has the future.
    """

    error: BaseException | type[BaseException]


_TIME_OVER: Final = _Failure(asyncio.TimeoutError)


class JobQueue:
    """Queue with a limit of running and waiting jobs; to be used in the event loop.

    A job counts until its thread is done, even after its deadline. If no thread has begun the job
    by its deadline, or when the caller is cancelled, the job is removed and never run.
    """

    def __init__(
        self, threads: JobThreads, limit: int, full: str, *, hold_seconds: float = _HOLD_SECONDS
    ) -> None:
        """Create an empty queue.

        Args:
            threads: Threads that run the jobs; not shut down by the queue.
            limit: Largest number of jobs, running and waiting together.
            full: Text of the error for a job over the limit.
            hold_seconds: Time for which a result may wait for the next.
        """
        self._threads, self._free, self._full = threads, limit, full
        self._limit, self._hold_seconds = limit, hold_seconds
        self._done: deque[tuple[asyncio.Future[Any], object]] = deque()  # with their results
        self._is_notified = False  # the event loop will call _deliver()
        self._held_since = _NEVER
        self._deadlines: dict[asyncio.Future[Any], float] = {}  # a timer for each would cost more
        self._checked_by: asyncio.AbstractEventLoop | None = None  # the event loop, while busy

    @property
    def is_busy(self) -> bool:
        """Whether a job runs or waits, even if its caller was cancelled."""
        return self._free < self._limit

    async def run(self, work: Callable[[], T], deadline: float | None = None) -> T:
        """Return the result of `work`, run in a thread.

        Args:
            work: The job; its exception is raised here.
            deadline: Time until which the result is awaited, by the clock of the event loop
                (`loop.time()`); checked every 10 ms. None: without a limit.

        Raises:
            JobRefusedError: If the queue is full, or its threads are shut down or cannot start.
            asyncio.TimeoutError: If there is no result by `deadline`.
        """
        if self._free <= 0:
            raise JobRefusedError(self._full)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T | _Failure] = loop.create_future()
        job = partial(self._run, work, loop, future)
        self._threads.submit(job)
        self._free -= 1
        if self._checked_by is not loop:
            self._checked_by = loop
            loop.call_later(RELIEF_SECONDS, self._check, loop)
        if deadline is not None:
            self._deadlines[future] = deadline
        try:
            result = await future
        except asyncio.CancelledError:
            self._leave(job)
            raise
        finally:
            self._deadlines.pop(future, None)
        if result is _TIME_OVER:
            self._leave(job)
        if isinstance(result, _Failure):
            raise result.error
        return result

    def _check(self, loop: asyncio.AbstractEventLoop) -> None:
        """Deliver results, end jobs at their deadlines, and relieve a thread with a long job."""
        try:
            self._deliver()
            self._threads.relieve()
            now = loop.time()
            for future, deadline in self._deadlines.items():
                if deadline <= now:
                    _set_result(future, _TIME_OVER)
        finally:
            if self.is_busy:
                loop.call_later(RELIEF_SECONDS, self._check, loop)
            else:
                self._checked_by = None

    def _leave(self, job: Callable[[], None]) -> None:
        """Remove a job from the queue, unless a thread has begun it."""
        if self._threads.cancel(job):
            self._free += 1

    def _run(
        self,
        work: Callable[[], T],
        loop: asyncio.AbstractEventLoop,
        future: "asyncio.Future[T | _Failure]",
    ) -> None:
        """Run a job in its thread, and have its result or error set on `future` in `loop`."""
        result: T | _Failure
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - raised in the event loop
            result = _Failure(error)
        self._done.append((future, result))
        if self._done and not self._is_notified and not self._may_hold():
            self._is_notified = True
            try:
                loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:  # the event loop is closed; the next result may be of another
                self._is_notified = False

    def _may_hold(self) -> bool:
        """Return whether to deliver the results later, together with that of the next job."""
        if not self._threads.has_waiting:
            return False
        now = monotonic()
        if self._held_since == _NEVER:
            self._held_since = now
        return now - self._held_since < self._hold_seconds

    def _deliver(self) -> None:
        """Set the results of all jobs that are done."""
        self._is_notified, self._held_since = False, _NEVER
        while self._done:
            self._free += 1
            _set_result(*self._done.popleft())


def _set_result(future: "asyncio.Future[Any]", result: object) -> None:
    if not future.done():  # cancelled, or its time is over
        with suppress(RuntimeError):  # the event loop of the future is closed
            future.set_result(result)
