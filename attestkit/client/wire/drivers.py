"""Perform the steps of a proof on a connection, from threads and from asyncio.

A driver always ends the generator, so that it can let other connections go on: by `close` if the
driver itself is interrupted, such as by the cancellation of a task.
"""

import asyncio
import concurrent.futures
import contextlib
import contextvars
import threading
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

from attestkit.client.wire.steps import Receive, Run, Send, Step, Steps, Wait

_R = TypeVar("_R")

SEND_SECONDS: Final = 10.0
"""Time in which a peer must take a question; questions have a few hundred bytes."""


class ReconnectError(ConnectionError):
    """A connection can carry no request; none was sent, and another connection can be opened."""


class Channel(Protocol):
    """The I/O of a connection; errors are OSError, among them TimeoutError."""

    def send(self, data: bytes, seconds: float) -> None:
        """Send all of the bytes."""
        ...

    def receive(self, limit: int, seconds: float) -> bytes:
        """Receive 1 to `limit` bytes; nothing at the end of the stream."""
        ...


class AsyncChannel(Protocol):
    """The I/O of a connection of an event loop; errors are OSError, among them TimeoutError."""

    async def send(self, data: bytes, seconds: float) -> None:
        """Send all of the bytes."""
        ...

    async def receive(self, limit: int, seconds: float) -> bytes:
        """Receive 1 to `limit` bytes; nothing at the end of the stream."""
        ...


def drive(steps: Steps, channel: Channel) -> None:
    """Perform steps until the peer is proven; the caller closes the connection at an exception.

    Raises:
        PeerRefusedError: If the peer is refused.
        ReconnectError: If the server closes the connection after its answer.
    """
    try:
        step = next(steps)
        while True:
            try:
                result = _perform(step, channel)
            except Exception as error:  # noqa: BLE001 - the generator handles it
                step = steps.throw(error)
            else:
                step = steps.send(result)
    except StopIteration as end:
        _check_usable(end.value)
    finally:
        steps.close()


async def drive_async(steps: Steps, channel: AsyncChannel) -> None:
    """Perform steps as `drive` does, on asyncio."""
    try:
        step = next(steps)
        while True:
            try:
                result = await _perform_async(step, channel)
            except Exception as error:  # noqa: BLE001 - the generator handles it
                step = steps.throw(error)
            else:
                step = steps.send(result)
    except StopIteration as end:
        _check_usable(end.value)
    finally:
        steps.close()


def _check_usable(result: object) -> None:
    if result is not True:
        message = "server closes the connection after its evidence; connect again"
        raise ReconnectError(message)


def _perform(step: Step, channel: Channel) -> Any:  # noqa: ANN401 - as the step has it
    if isinstance(step, Send):
        return channel.send(step.data, SEND_SECONDS)
    if isinstance(step, Receive):
        return channel.receive(step.limit, step.seconds)
    if isinstance(step, Run):
        return step.work()
    return _result(step)


def _result(step: Wait) -> Any:  # noqa: ANN401 - as the future has it
    try:
        return step.future.result(step.seconds)
    except concurrent.futures.TimeoutError as error:  # until Python 3.10 a class of its own
        if step.future.done():  # meanwhile, or the error is the future's
            return step.future.result()
        raise _no_proof(step) from error


async def _perform_async(step: Step, channel: AsyncChannel) -> Any:  # noqa: ANN401 - see above
    if isinstance(step, Send):
        return await channel.send(step.data, SEND_SECONDS)
    if isinstance(step, Receive):
        return await channel.receive(step.limit, step.seconds)
    if isinstance(step, Run):
        return await in_thread(step.work)
    return await _result_async(step)


async def _result_async(step: Wait) -> Any:  # noqa: ANN401 - see above
    await _until_done(step.future, step.seconds)
    if not step.future.done():
        raise _no_proof(step)
    return step.future.result()


async def in_thread(work: Callable[[], _R]) -> _R:
    """Call a function in a thread of its own, and return its result.

    Not in the loop's executor, whose few threads may all wait for what this function does. If the
    task is cancelled, the function goes on, and its result is dropped.
    """
    future: concurrent.futures.Future[_R] = concurrent.futures.Future()
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


async def _until_done(future: concurrent.futures.Future[Any], seconds: float | None) -> None:
    """Wait until a future is completed, or the time is up; never cancel it, as wrap_future does."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def finish() -> None:
        if not done.done():
            done.set_result(None)

    def notify(_: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(finish)

    future.add_done_callback(notify)
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(done, seconds)


def _no_proof(step: Wait) -> TimeoutError:
    return TimeoutError(f"no proof by another connection within {step.seconds:g} s")
