"""An event loop without sockets, threads or a clock: time passes when it is told to.

So a request takes as long as its Python code, the same input always does the same, and what a
server does after a minute's silence is seen at once.
"""

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final, TypeVar

from attestkit.serve.job_queue import JobThreads
from tests.concurrency.keeping import Keeping

if TYPE_CHECKING:
    from typing_extensions import TypeVarTuple, Unpack  # typing has them from Python 3.11 on

    _Arguments = TypeVarTuple("_Arguments")
    _Result = TypeVar("_Result")

__all__ = ["InlineThreads", "InstantLoop"]

_MOST_TURNS: Final = 100_000  # callbacks in a row; more are a loop that never rests


class InlineExecutor(Executor):
    """Does the work where it is handed over; no thread could be forked along."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """Do it."""
        future: Future[Any] = Future()
        with Keeping() as kept:  # it is the caller's, as from a thread
            future.set_result(fn(*args, **kwargs))
        if kept.error is not None:
            future.set_exception(kept.error)
        return future


class InlineThreads(JobThreads):
    """Runs each job of a queue where it is submitted."""

    def __init__(self) -> None:
        super().__init__(0)

    def submit(self, work: Callable[[], object], /) -> None:
        """Run the job, which never raises."""
        work()


class InstantLoop(asyncio.AbstractEventLoop):
    """As much of a loop as a connection's protocol and its applications use.

    Attributes:
        problems: What callbacks raised and nobody took.
        tasks: All that were made since `forget()`.
    """

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._made = 0  # timers, so that those of one instant keep their order
        self._now = 0.0
        self._executor = InlineExecutor()

    @contextmanager
    def current(self) -> Iterator[None]:
        """Be the running loop of this thread within the block."""
        asyncio._set_running_loop(self)
        try:
            yield
        finally:
            asyncio._set_running_loop(None)

    def forget(self) -> None:
        """Drop all that waits."""
        self._ready.clear()
        self._timers.clear()
        self.tasks.clear()
        self.problems.clear()

    def rest(self) -> None:
        """Call all that is to be called now."""
        for _ in range(_MOST_TURNS):
            if not self._ready:
                return
            handle = self._ready.popleft()
            if not handle.cancelled():
                handle._run()
        self.problems.append("the loop never rests")
        self._ready.clear()

    def skip(self) -> bool:
        """Let time pass until the next timer has been called; tell whether there was one."""
        while self._timers:
            when, _, timer = heapq.heappop(self._timers)
            if not timer.cancelled():
                self._now = max(self._now, when)
                timer._run()
                self.rest()
                return True
        return False

    # -- what asyncio asks of a loop -----------------------------------------------------------

    def time(self) -> float:
        """Return the seconds that have passed."""
        return self._now

    def get_debug(self) -> bool:
        """Be as in production."""
        return False

    def is_running(self) -> bool:
        """Be so."""
        return True

    def is_closed(self) -> bool:
        """Never be so."""
        return False

    def call_soon(
        self,
        callback: "Callable[[Unpack[_Arguments]], object]",
        *args: "Unpack[_Arguments]",
        context: Context | None = None,
    ) -> asyncio.Handle:
        """Call it in this turn."""
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_later(
        self,
        delay: float,
        callback: "Callable[[Unpack[_Arguments]], object]",
        *args: "Unpack[_Arguments]",
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call it when that much time has passed."""
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: "Callable[[Unpack[_Arguments]], object]",
        *args: "Unpack[_Arguments]",
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call it then."""
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        self._made += 1
        heapq.heappush(self._timers, (when, self._made, timer))
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Leave it where it is: it is passed over when its time comes."""

    def create_future(self) -> "asyncio.Future[Any]":
        """Return a future of this loop."""
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, **options: Any) -> "asyncio.Task[Any]":
        """Start a coroutine, and remember it."""
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self, **options)
        self.tasks.append(task)
        return task

    def run_in_executor(
        self,
        executor: Executor | None,
        func: "Callable[[Unpack[_Arguments]], _Result]",
        *args: "Unpack[_Arguments]",
    ) -> "asyncio.Future[_Result]":
        """Do it at once and here, whoever is asked to: threads would do it when they please."""
        del executor
        return asyncio.wrap_future(self._executor.submit(func, *args), loop=self)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Take note of what a callback raised, or of an error that nobody looked at."""
        self.problems.append(f"{context.get('message')}: {context.get('exception')!r}")
