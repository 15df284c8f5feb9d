"""Stop a listener without losing a request that it has accepted.

What is promised to whoever had connected, that is whose connect() had returned, when we stopped:

* The connection is taken, also where it was still waiting in the listener's queue.
* A request that has begun to arrive is read to its end and answered whole. The answer says
  `Connection: close`: it is the last one, and what was pipelined behind it is not accepted.
* A connection that is idle may send one more request within `LAST_CALL_SECONDS`, and is closed then
  if the kernel has no byte of one. HTTP/1.1 knows no way to close an idle connection that a client
  could not cross with a request at that very moment (RFC 9112, section 9.5); this is as near as it
  gets.

Not promised: a connection over a network whose handshake takes longer than `HANDSHAKE_SECONDS` to
complete; and what is in flight when the time is over, which is cut off and counted.

Of a socket that was handed over only our copy is closed, and nobody is turned away: whoever comes
waits in its queue for the next server, as long as the service manager holds the socket open.
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

__all__ = ["HANDSHAKE_SECONDS", "LAST_CALL_SECONDS", "Connection", "Door", "drain"]

HANDSHAKE_SECONDS: Final = 0.02
LAST_CALL_SECONDS: Final = 0.5

_TICK: Final = 0.02
_TURNS: Final = (
    5  # of the event loop: the connection's end, its request's, that of who waits for it
)
_SO_ATTACH_FILTER: Final = 26  # asm-generic/socket.h; the socket module does not name it
# Classic BPF over the TCP header: load the byte of flags; with SYN drop the packet, else keep it.
_NO_SYN: Final = ((0x30, 0, 0, 13), (0x45, 1, 0, 0x02), (0x06, 0, 0, 0xFFFFFFFF), (0x06, 0, 0, 0))
_logger = logging.getLogger("attestkit.serve")


class Connection(Protocol):
    """What a drain needs of an HTTP connection."""

    transport: asyncio.Transport

    def last_call(self) -> None:
        """Let the request in flight, else the next one, be the last. May be called again."""
        ...

    def is_idle(self) -> bool:
        """Tell whether no request is in flight, not even a part of one."""
        ...


class Door(NamedTuple):
    """A listening socket that the event loop has let go of; `ours` unless it was handed over."""

    listening: socket.socket
    ours: bool

    def turn_away(self) -> None:
        """Let nobody new into the queue; who is in it stays, and who is half way gets in.

        Closing alone would reset those who connect between the last accept() and close().
        """
        if not self.ours:
            return
        if self.listening.family == socket.AF_UNIX:
            # From here on connect() is refused; accept() still gives who is in the queue.
            self.listening.shutdown(socket.SHUT_RD)
            return
        code = array.array("B", b"".join(struct.pack("@HBBI", *step) for step in _NO_SYN))
        program = struct.pack("@HP", len(_NO_SYN), code.buffer_info()[0])
        with contextlib.suppress(OSError):  # a kernel without it: the gap stays, of microseconds
            self.listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)

    def take_queue(self, most: int = 4096) -> list[socket.socket]:
        """Return who is waiting, without blocking; `most` bounds it where others may still come."""
        self.listening.settimeout(0)
        taken = []
        for _ in range(most):
            try:
                taken.append(self.listening.accept()[0])
            except ConnectionAbortedError:  # gone while it waited
                continue
            except OSError:  # nobody left (EAGAIN; EINVAL after shutdown), or no descriptor for it
                break
        return taken


async def drain(
    door: Door,
    connections: "set[Connection]",
    tasks: "set[asyncio.Task[None]]",
    *,
    connect: Callable[[socket.socket], Awaitable[object]],
    end_streams: Callable[[], None],
    seconds: float,
) -> int:
    """Let nobody in, answer everybody who is in, and close; return how many had to be cut off.

    Args:
        door: The listening socket; it is closed.
        connections: Those of the listener, kept up to date by it; their last call was made.
        tasks: Its requests in work, likewise.
        connect: Makes a connection of an accepted socket.
        end_streams: Ends answers that would go on for ever. Called again and again, for one may
            have begun since.
        seconds: For all of it. 0: nobody is waited for, not even who is half way.
    """
    loop = asyncio.get_running_loop()
    begin = loop.time()
    if seconds:
        await _close(door, connect)
    else:
        door.listening.close()
    while connections or tasks:
        for connection in connections:
            connection.last_call()  # some have come since
        end_streams()
        passed = loop.time() - begin
        if passed >= seconds:
            return await _cut_off(connections, tasks, seconds)
        if passed >= min(LAST_CALL_SECONDS, seconds / 2):
            _close_idle(connections)
        await asyncio.sleep(_TICK)
    return 0


async def _close(door: Door, connect: Callable[[socket.socket], Awaitable[object]]) -> None:
    """Turn newcomers away, take the queue, wait for those half way, take them, close."""
    try:
        door.turn_away()
        await asyncio.gather(*map(connect, door.take_queue()))
        await asyncio.sleep(HANDSHAKE_SECONDS)  # also what the event loop itself accepted last
        if door.ours:
            await asyncio.gather(*map(connect, door.take_queue()))
    finally:
        door.listening.close()


def _close_idle(connections: "set[Connection]") -> None:
    """Close whom the kernel, asked once more, has nothing to read from."""
    idle = {
        connection.transport.get_extra_info("socket").fileno(): connection
        for connection in connections
        if connection.is_idle() and not connection.transport.is_closing()
    }
    poll = select.poll()
    for descriptor in idle:
        poll.register(descriptor, select.POLLIN)
    speaking = {descriptor for descriptor, _ in poll.poll(0)}
    for descriptor in idle.keys() - speaking:
        idle[descriptor].transport.close()


async def _cut_off(
    connections: "set[Connection]", tasks: "set[asyncio.Task[None]]", seconds: float
) -> int:
    cut = max(len(connections), len(tasks))  # a task may outlive its connection
    if seconds:  # else it is what was asked for
        _logger.warning("cut off %d connections that were still busy after %g s", cut, seconds)
    for connection in tuple(connections):
        connection.transport.abort()
    for _ in range(_TURNS):  # so that the tasks learn that their clients are gone
        if tasks:
            await asyncio.sleep(0)
    for task in tuple(tasks):
        task.cancel()
    if tasks:
        await asyncio.wait(tuple(tasks), timeout=1.0)
    return cut
