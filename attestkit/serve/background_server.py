"""A server in a thread of a program that has its own things to do: its tests, say.

    with Served(attester, Places(dstack=folder / "dstack.sock")) as ready:
        client = DstackClient(str(ready.places["dstack"]))

It shares the attester with the program: what one emits, the other has in its quotes.
"""

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeVar, final

from attestkit.errors import UsageError
from attestkit.serve.app_factory import Options, Wired, wire
from attestkit.serve.config.limits import Limits
from attestkit.serve.endpoints import Places, Ready

if TYPE_CHECKING:
    from concurrent.futures import Future

    from attestkit.attester import Attester

__all__ = ["LoopThread", "Served"]

T = TypeVar("T")

_AT_ONCE: Final = Limits(drain_seconds=0)
_SERVER: Final = "attestkit-server"  # the name of a task that serves
_CANCELS: Final = 3  # of a task that goes on when it is cancelled
_CANCEL_SECONDS: Final = 1.0  # for it to end, each time


@final
class LoopThread:
    """An event loop in a thread of its own, for any number of servers one after or beside another.

    The thread begins with the first work that it is given. A context manager.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Return what the coroutine returns that `work` makes; other threads than this one's ask.

        Whoever is interrupted while waiting cancels it.

        Raises:
            UsageError: The thread has ended, or this process is a fork of the one that has it.
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
            raise UsageError("a server does not survive a fork: begin another in this process")
        with self._lock:
            if self._closed:
                raise UsageError("this thread for servers has ended")
            if self._loop is None:
                import uvloop  # late: with the first server

                self._loop = uvloop.new_event_loop()
                # A daemon: a program that forgets to end it ends all the same.
                self._thread = threading.Thread(
                    target=_run_loop, args=(self._loop,), name="attestkit-serve", daemon=True
                )
                self._thread.start()
            return self._loop

    def close(self) -> None:
        """End the thread, and whatever is still at work there.

        A server whose block has not ended has as long as at its end, `Limits.drain_seconds`; all
        else has three seconds.
        A second call does nothing, nor does one in a fork, which has no such thread.
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

    def __enter__(self) -> "LoopThread":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Run until stopped, then end what is left, as `asyncio.run` does but within a bound."""
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
    """Stop the servers as the end of their blocks does, then cancel what else there is.

    In this order: a request that is cancelled while its connection stands is for uvicorn one that
    failed, which it answers, and with a client that takes nothing that waits for `write_seconds`.
    What lives on when it is cancelled is cancelled again, and at last left behind.
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


class Served:
    """The guest agent API of an attester, served in a thread until the block ends.

    Args:
        attester: Makes the evidence; it stays open, and the program may go on using it.
        places: As for `attestkit.serve.serve`.
        options: The rest of what `serve` takes. By default connections are cut off at the end of
            the block; `Limits.drain_seconds` lets requests in flight have that long.
        thread: Where its event loop is; None: a thread that begins and ends with the block.
    """

    def __init__(
        self,
        attester: "Attester",
        places: Places,
        options: Options | None = None,
        *,
        thread: LoopThread | None = None,
    ) -> None:
        self._attester = attester
        self._places = places
        self._options = options or Options(limits=_AT_ONCE)
        self._thread = thread
        self._process = os.getpid()
        self._stack = ExitStack()

    def __enter__(self) -> Ready:
        """Return once every listener accepts.

        Raises:
            UsageError: A place cannot be, there is none, or nobody says what the app is.
            BackendBusyError: Somebody else listens at one of the places.
            ConfigError: A socket cannot be made.
        """
        with ExitStack() as stack:
            thread = self._thread or stack.enter_context(LoopThread())
            wired = wire(self._attester, self._places, self._options, stack)
            task = thread.run(lambda: _begin(wired))
            stack.callback(thread.run, lambda: _end(task))
            self._process, self._stack = os.getpid(), stack.pop_all()
        return wired.ready

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process == os.getpid():  # else it is a fork, and the server its parent's
            self._stack.close()


async def _begin(wired: Wired) -> "asyncio.Task[int]":
    """Return the task that serves, when all listeners accept."""
    from attestkit.serve.http import (
        server as listeners,  # uvicorn: for those who serve, not all who import
    )

    ready = asyncio.get_running_loop().create_future()
    serving = listeners.run_in_loop(wired.listeners, lambda: ready.set_result(None), wired.unlink)
    task = asyncio.create_task(serving, name=_SERVER)
    try:
        await asyncio.wait((task, ready), return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:  # whoever waits for it was interrupted
        await _end(task)
        raise
    if not ready.done():
        ready.cancel()
        task.result()  # raises what kept it from starting
    return task


async def _end(task: "asyncio.Task[int]") -> None:
    task.cancel()  # which stops it in good order
    with suppress(asyncio.CancelledError):
        await task
