"""A thread with an event loop that runs servers beside another program, such as a test."""

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar, final

from attestkit._argument_checks import needs_extra
from attestkit.errors import UsageError

if TYPE_CHECKING:
    from concurrent.futures import Future

    from attestkit.serve.http.server import Listener, Work

T = TypeVar("T")

_SERVER: Final = "attestkit-server"  # name of a task that serves
_CANCELS: Final = 3  # attempts for a task that suppresses its cancellation
_CANCEL_SECONDS: Final = 1.0  # time for each attempt


@final
class EventLoopThread:
    """A thread with an event loop for any number of servers; a context manager, closed on exit.

    The thread starts with the first call of `run`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run the coroutine `work()` in the event loop, and block until its result; return that.

        An exception while waiting, such as KeyboardInterrupt, cancels the coroutine. Call this from
        other threads only.

        Raises:
            UsageError: If the thread is closed, or belongs to the parent process of a fork, or the
                package uvloop is not installed.
            Exception: The coroutine's own exception, unchanged.
        """
        loop = self._running()
        future: Future[T] = asyncio.run_coroutine_threadsafe(work(), loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._process != os.getpid():
            text = "server thread: started in another process; start a new one after a fork"
            raise UsageError(text, reason="wrong_process")
        with self._lock:
            if self._closed:
                raise UsageError("server thread: closed; start a new one", reason="closed")
            if self._loop is None:
                with needs_extra("server thread", "serve"):
                    import uvloop  # lazy: with the first server

                self._loop = uvloop.new_event_loop()
                # A daemon thread, so that a forgotten close() does not block the exit.
                self._thread = threading.Thread(
                    target=_run_loop, args=(self._loop,), name="attestkit-serve", daemon=True
                )
                self._thread.start()
            return self._loop

    def close(self) -> None:
        """Stop the thread and everything that runs in it.

        A server that still runs gets `Limits.drain_seconds` to finish its requests; other tasks get
        three seconds. A second call, or a call in a forked process, has no effect.
        """
        if self._process != os.getpid():
            return
        with self._lock:
            self._closed = True
            thread, self._thread = self._thread, None
        if thread is None:
            return
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._loop.stop)
        thread.join()

    def __enter__(self) -> "EventLoopThread":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Run the event loop until it is stopped, then end all tasks within a time limit."""
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        loop.run_until_complete(_end_all())
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        asyncio.set_event_loop(None)
        loop.close()


async def _end_all() -> None:
    """Stop the servers gracefully, then cancel the other tasks.

    In this order, because uvicorn takes a request that is cancelled on an open connection for a
    failure, and sends a response, which can take `write_seconds` if the client does not read.
    A task that survives three cancellations is abandoned.
    """
    servers = [task for task in asyncio.all_tasks() if task.get_name() == _SERVER]
    for server in servers:
        server.cancel()
    await asyncio.gather(*servers, return_exceptions=True)
    for _ in range(_CANCELS):
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        if not tasks:
            return
        for task in tasks:
            task.cancel()
        await asyncio.wait(
            {asyncio.gather(*tasks, return_exceptions=True)}, timeout=_CANCEL_SECONDS
        )


async def start_listeners(
    listeners: "Sequence[Listener]",
    on_stop: Callable[[], None] = lambda: None,
    background: "Sequence[Work]" = (),
) -> "asyncio.Task[int]":
    """Start servers; return the task that runs them when all listeners accept connections.

    `on_stop` is called before the first listener stops accepting; `background` are coroutine
    functions that run until then. The result of the task is the number of connections that were
    closed because `Limits.drain_seconds` had passed. An error of the startup is raised here.
    """
    from attestkit.serve.http import server  # lazy: imports uvicorn

    ready = asyncio.get_running_loop().create_future()
    serving = server.run_in_loop(listeners, lambda: ready.set_result(None), on_stop, background)
    task = asyncio.create_task(serving, name=_SERVER)
    try:
        await asyncio.wait((task, ready), return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:  # of an interrupted run()
        await stop_listeners(task)
        raise
    if not ready.done():
        ready.cancel()
        task.result()  # raises the error of the startup
    return task


async def stop_listeners(task: "asyncio.Task[int]") -> None:
    """Shut down gracefully the servers of a task that `start_listeners` has returned."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
