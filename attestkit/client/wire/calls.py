"""Functions of libraries that block, or have to be awaited: code above is written once for both.

Such code is a coroutine. If its calls block it never waits, so that `finish` runs it to its end
without an event loop.
"""

import asyncio
import concurrent.futures
import contextlib
import contextvars
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Final, NamedTuple, TypeVar

_R = TypeVar("_R")


class Calls(NamedTuple):
    """Kind of calls, blocking or awaited, and the names of functions that exist in both kinds."""

    call: Callable[..., Awaitable[Any]]  # a function of I/O, and its arguments
    run: Callable[[Callable[[], Any]], Awaitable[Any]]  # a function that may take long
    wait: Callable[["Future[Any]", float], Awaitable[Any]]  # for a future, TimeoutError if in vain
    send_name: str
    read_name: str
    close_name: str

    def send(self, pool: object, request: object) -> Awaitable[Any]:
        """Have a pool send a request; return the answer."""
        return self.call(getattr(pool, self.send_name), request)

    def read(self, message: object) -> Awaitable[Any]:
        """Read the whole body of a request or answer."""
        return self.call(getattr(message, self.read_name))

    def close(self, one: object) -> Awaitable[Any]:
        """Close a pool, an answer or a connection."""
        return self.call(getattr(one, self.close_name))


def finish(work: Coroutine[Any, Any, _R]) -> _R:
    """Return the result of a coroutine whose calls block."""
    try:
        work.send(None)
    except StopIteration as end:
        result: _R = end.value
        return result
    work.close()
    raise AssertionError("a call that blocks has waited")


async def in_thread(work: Callable[[], _R]) -> _R:
    """Call a function in a thread of its own, and return its result.

    Not in the loop's executor, whose few threads may all wait for what this function does. If the
    task is cancelled, the function goes on, and its result is dropped.
    """
    future: Future[_R] = Future()
    context = contextvars.copy_context()

    def run() -> None:
        try:
            result = context.run(work)
        except BaseException as error:  # noqa: BLE001 - raised where it is awaited
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run, name="attestkit-client", daemon=True).start()
    await _until_done(future, None)
    return future.result()


async def _call(function: Callable[..., Any], *arguments: object) -> Any:
    return function(*arguments)


async def _wait(future: "Future[Any]", seconds: float) -> Any:
    try:
        return future.result(seconds)
    except concurrent.futures.TimeoutError as error:  # until Python 3.10 a class of its own
        if future.done():  # meanwhile, or the error is the future's
            return future.result()
        raise _in_vain(seconds) from error


async def _call_awaited(function: Callable[..., Awaitable[Any]], *arguments: object) -> Any:
    return await function(*arguments)


async def _wait_on_loop(future: "Future[Any]", seconds: float) -> Any:
    await _until_done(future, seconds)
    if not future.done():
        raise _in_vain(seconds)
    return future.result()


async def _until_done(future: "Future[Any]", seconds: float | None) -> None:
    """Wait until a future is completed, or the time is up; never cancel it, as wrap_future does."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def complete() -> None:
        if not done.done():
            done.set_result(None)

    def notify(_: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(complete)

    future.add_done_callback(notify)
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(done, seconds)


def _in_vain(seconds: float) -> TimeoutError:
    return TimeoutError(f"no proof by another connection within {seconds:g} s")


BLOCKING: Final = Calls(_call, _call, _wait, "handle_request", "read", "close")
"""Functions that block."""

AWAITED: Final = Calls(
    _call_awaited, in_thread, _wait_on_loop, "handle_async_request", "aread", "aclose"
)
"""Functions that are awaited, on asyncio."""
