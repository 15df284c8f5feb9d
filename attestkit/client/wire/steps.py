"""Steps by which a new connection is proven, independent of how its I/O is done.

A prover is a generator of steps. Its driver performs each one on the connection, and sends the
result, or throws the error, into the generator, which ends when the peer is proven. A driver always
ends the generator, so that it can let other connections go on: by `close` if the driver itself is
interrupted, such as by the cancellation of a task.
"""

from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, NamedTuple, Protocol

from attestkit.client.wire.calls import AWAITED, BLOCKING, Calls, finish
from attestkit.client.wire.observed_peer import ObservedPeer


class Send(NamedTuple):
    """Send bytes over TLS; no result."""

    data: bytes


class Receive(NamedTuple):
    """Receive 1 to `limit` bytes; the result is empty at the end of the stream."""

    limit: int
    seconds: float  # after which the driver throws TimeoutError


class Run(NamedTuple):
    """Call a function that may take long or do I/O; an event loop calls it in a thread."""

    work: Callable[[], Any]


class Wait(NamedTuple):
    """Wait for a future, which another connection completes."""

    future: Future[Any]
    seconds: float  # after which the driver throws TimeoutError


Step = Send | Receive | Run | Wait

Steps = Generator[Step, Any, bool]
"""The result says whether the connection can carry requests: False if the server closes it."""


class ConnectionProver(Protocol):
    """Prover of the connections to one server; thread-safe."""

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
        """A number that changes when a proof has ended.

        Connections that were opened under another number carry no new request.
        """
        ...

    def check_open(self) -> None:
        """Check that a connection may be tried, before it is opened.

        Raises:
            UsageError: If the endpoint is closed.
            PeerRefusedError: If the server was refused several times in a row, lately.
        """
        ...

    def steps(self, peer: ObservedPeer) -> Steps:
        """Return the steps that prove a new connection, after its TLS handshake.

        The generator raises PeerRefusedError if the server is refused.
        """
        ...

    def accepts(self, spki_sha256: bytes) -> bool:
        """Return whether a key is proven now, for connections that cannot run steps."""
        ...


SEND_SECONDS: Final = 10.0
"""Time in which a peer must take a question; questions have a few hundred bytes."""


class ReconnectError(ConnectionError):
    """A connection can carry no request; none was sent, and another connection can be opened."""


class Channel(Protocol):
    """The I/O of a connection; errors are OSError, among them TimeoutError.

    Of an event loop, both methods have to be awaited.
    """

    def send(self, data: bytes, seconds: float, /) -> Any:  # noqa: ANN401 - None, once awaited
        """Send all of the bytes."""
        ...

    def receive(self, limit: int, seconds: float, /) -> Any:  # noqa: ANN401 - bytes, once awaited
        """Receive 1 to `limit` bytes; nothing at the end of the stream."""
        ...


def drive(steps: Steps, channel: Channel | None = None) -> None:
    """Perform steps until the peer is proven; the caller closes the connection at an exception.

    Args:
        steps: The steps.
        channel: The connection; None for steps that neither send nor receive.

    Raises:
        PeerRefusedError: If the peer is refused.
        ReconnectError: If the server closes the connection after its answer.
    """
    finish(drive_steps(steps, channel, BLOCKING))


async def drive_async(steps: Steps, channel: Channel) -> None:
    """Perform steps as `drive` does, on asyncio."""
    await drive_steps(steps, channel, AWAITED)


async def drive_steps(
    steps: Steps,
    channel: Channel | None,
    calls: Calls,
    os_errors: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> None:
    """Perform steps as `drive` does.

    Args:
        steps: The steps.
        channel: The connection.
        calls: How functions of the channel are called.
        os_errors: Returns a context in which errors of the channel are raised as OSError.
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
            message = "server closes the connection after its evidence; connect again"
            raise ReconnectError(message) from None
    finally:
        steps.close()


async def _perform(step: Step, channel: Channel | None, calls: Calls) -> Any:  # noqa: ANN401 - of the step
    if isinstance(step, Run):
        return await calls.run(step.work)
    if isinstance(step, Wait):
        return await calls.wait(step.future, step.seconds)
    assert channel is not None
    if isinstance(step, Send):
        return await calls.call(channel.send, step.data, SEND_SECONDS)
    return await calls.call(channel.receive, step.limit, step.seconds)
