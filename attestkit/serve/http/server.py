"""Run HTTP servers on bound sockets, each with its own application and limits.

At the graceful shutdown of a listener no accepted request is lost.

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
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Any, Final, NamedTuple, TypeAlias, cast

import uvicorn

from attestkit.serve.config.limits import Limits
from attestkit.serve.counters import Traffic
from attestkit.serve.http.asgi import App
from attestkit.serve.http.listener_state import ListenerConfig, ListenerState, has_input
from attestkit.serve.http.protocol import HttpProtocol
from attestkit.serve.http.signals import until_signalled
from attestkit.serve.http.sockets import HANDSHAKE_SECONDS, ListeningSocket
from attestkit.serve.http.tls import TlsAcceptor, TlsConfig, TlsContexts
from attestkit.serve.server_log.access_log import AccessLog

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
    """Stop accepting, drain the backlog, wait for pending handshakes, and close.

    `connect` creates a connection for an accepted socket.
    """
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


Work: TypeAlias = Callable[[], Coroutine[Any, Any, None]]


class Listener(NamedTuple):
    """An application and its listening socket.

    The application may have a method `stop`, which ends endless responses, and `headers`, which
    are also sent with the listener's own error responses. An inherited socket (`handed_over`)
    keeps accepting connections for the next server. With `tls` it serves HTTPS.
    """

    app: App
    socket: socket.socket
    limits: Limits = Limits()
    name: str = ""
    traffic: Traffic | None = None
    access_log: AccessLog | None = None
    handed_over: bool = False
    tls: TlsContexts | None = None


async def run_in_loop(
    listeners: Sequence[Listener],
    on_ready: Callable[[], None],
    on_stop: Callable[[], None] = lambda: None,
    background: Sequence[Work] = (),
) -> int:
    """Serve until a signal arrives or a cancellation, then shut down gracefully.

    Args:
        listeners: Listeners to serve; their sockets are closed at shutdown.
        on_ready: Called once, when all listeners accept connections.
        on_stop: Called once, before the first listener stops accepting.
        background: Coroutine functions that run in the same event loop until shutdown.

    Returns:
        The number of connections that were closed because the time limit (`Limits.drain_seconds`)
        was exceeded.
    """
    servers = [_Server(listener) for listener in listeners]
    helpers: list[asyncio.Task[None]] = []

    def stop() -> None:
        if not any(server.should_exit for server in servers):
            on_stop()
        for helper in helpers:
            helper.cancel()
        for server in servers:
            server.stop()

    with until_signalled(stop):
        tasks = [
            asyncio.create_task(server.serve(sockets=[listener.socket]))
            for server, listener in zip(servers, listeners, strict=True)
        ]
        try:
            while not all(server.started for server in servers):
                for task in tasks:
                    if task.done():
                        task.result()  # raises the error of the startup
                await asyncio.sleep(0)
            on_ready()
            helpers += [asyncio.create_task(_run_logged(work)) for work in background]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:  # after a signal, a cancellation or a failure
            stop()
            await asyncio.wait((*tasks, *helpers))
    for task in tasks:
        task.result()
    return sum(server.cut_off for server in servers)


@contextlib.asynccontextmanager
async def beside(listener: Listener, on_end: Callable[[], None]) -> AsyncIterator[None]:
    """Context manager: serve beside other work of the running event loop, and shut down on exit.

    `on_end` is called when the server has ended: on exit, or after a failure, which is logged.
    """
    server = _Server(listener)

    async def serve() -> None:
        await server.serve(sockets=[listener.socket])

    task = asyncio.create_task(_run_logged(serve))
    task.add_done_callback(lambda _: on_end())
    try:
        yield
    finally:
        server.stop()
        await task


async def _run_logged(work: Work) -> None:
    """Run background work; log a failure instead of raising it."""
    try:
        await work()
    except Exception:
        _logger.exception("background task failed")


class _Server(uvicorn.Server):
    """One of several servers in a process: without signal handlers, and asleep while idle."""

    def __init__(self, listener: Listener) -> None:
        shared = ListenerState.of(
            listener.name, listener.limits, listener.traffic or Traffic(), listener.access_log
        )
        self._make_protocol: Callable[..., asyncio.Protocol] = HttpProtocol
        self._config = ListenerConfig(listener.app, shared, HttpProtocol)
        if listener.tls is not None:
            self._make_protocol = TlsAcceptor
            self._config = TlsConfig(listener.app, shared, listener.tls)
        super().__init__(self._config)
        self.cut_off = 0
        self._listener = listener
        self._stopped = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to run_in_loop(), which stops all servers."""
        yield

    def stop(self) -> None:
        """Begin the graceful shutdown."""
        self.should_exit = True
        for connection in self.server_state.connections:
            cast("HttpProtocol", connection).announce_close()
        self._stopped.set()

    async def main_loop(self) -> None:
        """Update the Date header until stop(); uvicorn's own loop wakes ten times a second."""
        while not await self.on_tick(0):
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), 1.0)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the listening socket and `sockets`, and finish pending requests."""
        sock = self._listener.socket
        listening = ListeningSocket(sock.dup(), ours=not self._listener.handed_over)
        for server in self.servers:
            server.close()
        for each in sockets or ():
            each.close()
        self.cut_off = await drain(
            listening,
            cast("set[HttpProtocol]", self.server_state.connections),
            self.server_state.tasks,
            connect=self._connect,
            end_streams=getattr(self._listener.app, "stop", lambda: None),
            seconds=self._listener.limits.drain_seconds,
        )

    async def _connect(self, accepted: socket.socket) -> None:
        """Serve a connection that was accepted outside the event loop."""

        def protocol() -> asyncio.Protocol:
            return self._make_protocol(
                config=self._config, server_state=self.server_state, app_state=self.lifespan.state
            )

        await asyncio.get_running_loop().connect_accepted_socket(protocol, accepted)
