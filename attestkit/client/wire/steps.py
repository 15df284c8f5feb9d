"""Verification of a server's attestation over a new connection, independent of how I/O is done.

It is a generator of steps: `Send`, `Receive`, `Run` and `Wait`. Its driver performs each one on the
connection, and sends the result, or throws the error, into the generator, which ends when the
server's evidence is accepted. A driver always ends the generator, so that it can let other
connections go on: by `close` if the driver itself is interrupted, for example because its task is
cancelled.

Functions of libraries either block or are awaited (`Calls`). The code that calls them is written
once, as coroutines. With blocking calls such a coroutine never suspends, so `finish` runs it
without an event loop.
"""

import asyncio
import concurrent.futures
import contextlib
import contextvars
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from attestkit.client.wire.observed_peer import ObservedPeer

_R = TypeVar("_R")


class Calls(NamedTuple):
    """Functions and method names of one kind of I/O: blocking, or awaited on asyncio."""

    call: Callable[..., Awaitable[Any]]  # a function of I/O, and its arguments
    run: Callable[[Callable[[], Any]], Awaitable[Any]]  # a function that may take long
    wait: Callable[["Future[Any]", float], Awaitable[Any]]  # for a future, TimeoutError if in vain
    send_name: str
    read_name: str
    close_name: str

    def send(self, pool: object, request: object) -> Awaitable[Any]:
        """Send `request` on a connection of `pool`; return an awaitable of the answer."""
        return self.call(getattr(pool, self.send_name), request)

    def read(self, message: object) -> Awaitable[Any]:
        """Read the whole body of `message`, a request or answer of an HTTP library."""
        return self.call(getattr(message, self.read_name))

    def close(self, one: object) -> Awaitable[Any]:
        """Close `one`: a pool, an answer or a connection."""
        return self.call(getattr(one, self.close_name))


def finish(work: Coroutine[Any, Any, _R]) -> _R:
    """Run a coroutine without an event loop, and return its result.

    Args:
        work: The coroutine; all of its calls block, so that it is never suspended.
    """
    try:
        work.send(None)
    except StopIteration as end:
        result: _R = end.value
        return result
    work.close()
    raise AssertionError("a coroutine of blocking calls was suspended")


async def in_thread(work: Callable[[], _R]) -> _R:
    """Call `work` in a thread of its own, and return its result.

    The threads of the loop's executor are not used: all of them may be waiting for the result of
    this function. If the task is cancelled, the function continues and its result is dropped.
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


async def _call_blocking(function: Callable[..., Any], *arguments: object) -> Any:
    return function(*arguments)


async def _wait_blocking(future: "Future[Any]", seconds: float) -> Any:
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
    """Wait until a future is completed, or the time is up; unlike wrap_future, never cancel it.

    Args:
        future: The future, which another thread completes.
        seconds: Time limit; None: no limit.
    """
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
    return TimeoutError(f"server not verified by another connection within {seconds:g} s")


BLOCKING: Final = Calls(
    _call_blocking, _call_blocking, _wait_blocking, "handle_request", "read", "close"
)
"""Functions that block."""

AWAITED: Final = Calls(
    _call_awaited, in_thread, _wait_on_loop, "handle_async_request", "aread", "aclose"
)
"""Functions that are awaited, on asyncio."""


class Send(NamedTuple):
    """Step of a verification: send bytes over TLS; there is no result."""

    data: bytes


class Receive(NamedTuple):
    """Step of a verification: receive 1 to `limit` bytes; none at the end of the stream."""

    limit: int
    seconds: float  # after which the driver throws TimeoutError


class Run(NamedTuple):
    """Step of a verification: call a function that may block; an event loop uses a thread."""

    work: Callable[[], Any]


class Wait(NamedTuple):
    """Step of a verification: wait for a future that another verification completes."""

    future: Future[Any]
    seconds: float  # after which the driver throws TimeoutError


Step = Send | Receive | Run | Wait

Steps = Generator[Step, Any, bool]
"""Generator that verifies a server; its result says whether the connection can carry requests.

It is False if the server closes the connection after its evidence.
"""


class ConnectionVerifier(Protocol):
    """Verifier of the connections to one server, with the keys accepted now; thread-safe."""

    @property
    def host(self) -> str:
        """Name or address of the server, without brackets."""
        ...

    @property
    def port(self) -> int:
        """Port of the server."""
        ...

    @property
    def generation(self) -> int:
        """A number that changes when a verification of the server has expired or was forgotten.

        Connections that were opened when it had a different value carry no new request.
        """
        ...

    def check_open(self) -> None:
        """Check that a connection may be opened.

        Raises:
            UsageError: If the endpoint is closed.
            PeerRefusedError: If the server was refused several times in a row shortly before.
        """

    def steps(self, peer: ObservedPeer) -> Steps:
        """Return the steps that verify the server of a new connection, after its TLS handshake.

        The generator raises PeerRefusedError if the evidence is not accepted, or does not name the
        key of the connection; UsageError if the endpoint is closed, or an argument of `connect` is
        not valid for the service; ConfigError if the file of first-use pins cannot be used.
        """
        ...

    def accepts(self, peer: ObservedPeer) -> bool:
        """Return whether accepted evidence names the peer's key or certificate now.

        No request is sent.
        """
        ...


SEND_SECONDS: Final = 10.0
"""Time limit for sending a request for evidence, which has a few hundred bytes."""


class ReconnectError(ConnectionError):
    """The connection cannot be used for a request; none was sent, so open another connection."""


class Channel(Protocol):
    """The I/O of a connection; errors are OSError, among them TimeoutError.

    On an event loop both methods return awaitables.
    """

    def send(self, data: bytes, seconds: float, /) -> Any:
        """Send all of `data`; TimeoutError if one wait takes over `seconds`."""
        ...

    def receive(self, limit: int, seconds: float, /) -> Any:
        """Receive 1 to `limit` bytes, none at the stream's end; TimeoutError after `seconds`."""
        ...


def drive(steps: Steps, channel: Channel | None = None) -> None:
    """Verify a server over a connection, with blocking I/O: perform steps until they end.

    At any exception the caller has to close the connection.

    Args:
        steps: Generator of `ConnectionVerifier.steps`: it yields bytes to send, numbers of bytes to
            receive, and functions to call, and ends once the server's evidence is accepted.
        channel: The connection; None for steps that neither send nor receive.

    Raises:
        PeerRefusedError: If the evidence is not accepted; no request may be sent.
        ReconnectError: If the evidence is accepted, but the server closes this connection after it:
            open another one for the request.
        OSError: If the connection is lost.
    """
    finish(drive_steps(steps, channel, BLOCKING))


async def drive_steps(
    steps: Steps,
    channel: Channel | None,
    calls: Calls,
    os_errors: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> None:
    """Verify a server as `drive` does, with blocking or awaited I/O.

    Args:
        steps: Generator of `ConnectionVerifier.steps`.
        channel: The connection; None for steps that neither send nor receive.
        calls: `BLOCKING` or `AWAITED`, as the methods of the channel are.
        os_errors: Returns a context manager that raises the channel's errors as OSError.
    """
    try:
        step = next(steps)
        while True:
            try:
                with os_errors():
                    result = await _perform(step, channel, calls)
            except Exception as error:  # noqa: BLE001 - the generator handles it
                step = steps.throw(error)
            else:
                step = steps.send(result)
    except StopIteration as end:
        if end.value is not True:
            message = "connection: the server closes it after its evidence; connect again"
            raise ReconnectError(message) from None
    finally:
        steps.close()


async def _perform(step: Step, channel: Channel | None, calls: Calls) -> Any:
    if isinstance(step, Run):
        return await calls.run(step.work)
    if isinstance(step, Wait):
        return await calls.wait(step.future, step.seconds)
    assert channel is not None
    if isinstance(step, Send):
        return await calls.call(channel.send, step.data, SEND_SECONDS)
    return await calls.call(channel.receive, step.limit, step.seconds)
