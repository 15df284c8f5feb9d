"""Graceful shutdown of a listener: no accepted request is lost.

Guarantees for a client whose connect() had returned before shutdown:

* Its connection is accepted, even if it was still in the listening socket's backlog.
* A request that has begun to arrive is read and answered completely, with `Connection: close`.
  Requests pipelined behind it are not processed.
* An idle connection may send one more request within `CLOSE_NOTICE_SECONDS`. It is closed then,
  unless the kernel has received data for it. In HTTP/1.1 a request can always cross the close of
  an idle connection (RFC 9112, section 9.5); this keeps the window as small as possible.

Not guaranteed: a connection whose handshake takes longer than `HANDSHAKE_SECONDS`, and requests
that are pending when the time is over. These are closed and counted.

Of an inherited socket only our copy is closed, and connections are not refused: they wait in its
backlog for the next server, as long as the service manager holds the socket.
"""

import array
import asyncio
import contextlib
import logging
import select
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple, Protocol

__all__ = ["CLOSE_NOTICE_SECONDS", "HANDSHAKE_SECONDS", "Connection", "ListeningSocket", "drain"]

HANDSHAKE_SECONDS: Final = 0.02
CLOSE_NOTICE_SECONDS: Final = 0.5

_TICK: Final = 0.02
_TURNS: Final = (
    5  # of the event loop, until connection, request and waiting task have noticed the abort
)
_SO_ATTACH_FILTER: Final = 26  # asm-generic/socket.h; missing in the socket module
# Classic BPF on the TCP header: load the flags; drop the packet if SYN is set, else accept it.
_NO_SYN: Final = ((0x30, 0, 0, 13), (0x45, 1, 0, 0x02), (0x06, 0, 0, 0xFFFFFFFF), (0x06, 0, 0, 0))
_logger = logging.getLogger("attestkit.serve")


class Connection(Protocol):
    """Interface of an HTTP connection for `drain`."""

    transport: asyncio.Transport

    def announce_close(self) -> None:
        """Make the pending request, or else the next one, the last. Idempotent."""
        ...

    def is_idle(self) -> bool:
        """Return whether no request is pending, not even a part of one."""
        ...


class ListeningSocket(NamedTuple):
    """A listening socket outside the event loop; `ours` is False if it was inherited."""

    listening: socket.socket
    ours: bool

    def refuse_new(self) -> None:
        """Stop accepting new connections; those in the backlog or in a handshake stay.

        close() alone would reset connections that arrive after the last accept().
        """
        if not self.ours:
            return
        if self.listening.family == socket.AF_UNIX:
            # connect() now fails, and accept() still returns the backlog.
            self.listening.shutdown(socket.SHUT_RD)
            return
        code = array.array("B", b"".join(struct.pack("@HBBI", *step) for step in _NO_SYN))
        program = struct.pack("@HP", len(_NO_SYN), code.buffer_info()[0])
        with contextlib.suppress(OSError):  # without kernel support, a gap of microseconds remains
            self.listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)

    def accept_queued(self, most: int = 4096) -> list[socket.socket]:
        """Return up to `most` connections from the backlog, without blocking."""
        self.listening.settimeout(0)
        accepted = []
        for _ in range(most):
            try:
                accepted.append(self.listening.accept()[0])
            except ConnectionAbortedError:  # closed by the client
                continue
            except OSError:  # empty (EAGAIN; EINVAL after shutdown), or no free descriptor
                break
        return accepted


async def drain(
    listening: ListeningSocket,
    connections: "set[Connection]",
    tasks: "set[asyncio.Task[None]]",
    *,
    connect: Callable[[socket.socket], Awaitable[object]],
    end_streams: Callable[[], None],
    seconds: float,
) -> int:
    """Stop accepting, finish pending requests, and close; return how many had to be aborted.

    Args:
        listening: The listening socket; it is closed.
        connections: The listener's connections, updated by it; `announce_close` was called.
        tasks: The listener's pending requests, updated by it.
        connect: Creates a connection for an accepted socket.
        end_streams: Ends endless responses. Called repeatedly, because new ones may start.
        seconds: Time limit. With 0, connections are aborted at once.
    """
    loop = asyncio.get_running_loop()
    begin = loop.time()
    if seconds:
        await _close(listening, connect)
    else:
        listening.listening.close()
    while connections or tasks:
        for connection in connections:
            connection.announce_close()  # including new ones
        end_streams()
        passed = loop.time() - begin
        if passed >= seconds:
            return await _cut_off(connections, tasks, seconds)
        if passed >= min(CLOSE_NOTICE_SECONDS, seconds / 2):
            _close_idle(connections)
        await asyncio.sleep(_TICK)
    return 0


async def _close(
    listening: ListeningSocket, connect: Callable[[socket.socket], Awaitable[object]]
) -> None:
    """Stop accepting, drain the backlog, wait for pending handshakes, and close."""
    try:
        listening.refuse_new()
        await asyncio.gather(*map(connect, listening.accept_queued()))
        await asyncio.sleep(HANDSHAKE_SECONDS)  # also for what the event loop accepted last
        if listening.ours:
            await asyncio.gather(*map(connect, listening.accept_queued()))
    finally:
        listening.listening.close()


def _close_idle(connections: "set[Connection]") -> None:
    """Close the idle connections for which the kernel has no data."""
    idle = {
        connection.transport.get_extra_info("socket").fileno(): connection
        for connection in connections
        if connection.is_idle() and not connection.transport.is_closing()
    }
    poll = select.poll()
    for descriptor in idle:
        poll.register(descriptor, select.POLLIN)
    readable = {descriptor for descriptor, _ in poll.poll(0)}
    for descriptor in idle.keys() - readable:
        idle[descriptor].transport.close()


async def _cut_off(
    connections: "set[Connection]", tasks: "set[asyncio.Task[None]]", seconds: float
) -> int:
    cut = max(len(connections), len(tasks))  # a task may outlive its connection
    if seconds:  # 0 aborts on purpose
        _logger.warning("closed %d connections that were still busy after %g s", cut, seconds)
    for connection in tuple(connections):
        connection.transport.abort()
    for _ in range(_TURNS):  # let tasks notice that their clients are gone
        if tasks:
            await asyncio.sleep(0)
    for task in tuple(tasks):
        task.cancel()
    if tasks:
        await asyncio.wait(tuple(tasks), timeout=1.0)
    return cut
