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

If the socket is inherited, only this process's copy is closed, and connections are not refused:
they wait in the socket's backlog for the next server, as long as the service manager holds the
socket.
"""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Final

from attestkit.serve.http.listener_state import has_input
from attestkit.serve.http.protocol import HttpProtocol
from attestkit.serve.http.sockets import HANDSHAKE_SECONDS, ListeningSocket

CLOSE_NOTICE_SECONDS: Final = 0.5

_TICK: Final = 0.02
_TURNS: Final = 5  # of the event loop, until connection, request and task notice the abort
_logger = logging.getLogger("attestkit.serve")


async def drain(
    listening: ListeningSocket,
    connections: set[HttpProtocol],
    tasks: "set[asyncio.Task[None]]",
    *,
    connect: Callable[[socket.socket], Awaitable[object]],
    end_streams: Callable[[], None],
    seconds: float,
) -> int:
    """Stop accepting, finish pending requests, and close.

    Args:
        listening: The listening socket; it is closed.
        connections: The listener's connections, a set that the listener keeps up to date. The
            caller has called `announce_close` on each.
        tasks: The listener's pending requests, a set that the listener keeps up to date.
        connect: Creates a connection for an accepted socket.
        end_streams: Ends endless responses. Called repeatedly, because new ones may start.
        seconds: Time limit. With 0, connections are aborted at once.

    Returns:
        The number of connections that were aborted.
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


def _close_idle(connections: set[HttpProtocol]) -> None:
    """Close the idle connections for which the kernel has no data."""
    for connection in tuple(connections):
        transport = connection.transport
        if connection.is_idle() and not (transport.is_closing() or has_input(transport)):
            transport.close()


async def _cut_off(
    connections: set[HttpProtocol], tasks: "set[asyncio.Task[None]]", seconds: float
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
