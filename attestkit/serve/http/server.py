"""Run HTTP servers on bound sockets, each with its own application and limits."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias, cast

import uvicorn

from attestkit.serve.config.limits import Limits
from attestkit.serve.counters import Traffic
from attestkit.serve.http.asgi import App
from attestkit.serve.http.graceful_shutdown import drain
from attestkit.serve.http.listener_state import ListenerConfig, ListenerState
from attestkit.serve.http.protocol import HttpProtocol
from attestkit.serve.http.signals import until_signalled
from attestkit.serve.http.sockets import ListeningSocket
from attestkit.serve.http.tls import TlsAcceptor, TlsConfig, TlsContexts
from attestkit.serve.server_log.access_log import AccessLog

Work: TypeAlias = Callable[[], Coroutine[Any, Any, None]]

_logger = logging.getLogger("attestkit.serve")


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
        listeners: Listeners to serve; their sockets are closed at the end.
        on_ready: Called once, when all listeners accept connections.
        on_stop: Called once, before the first listener stops accepting.
        background: Coroutine functions that run in the same event loop until shutdown.

    Returns:
        The number of connections that were closed because the time limit was exceeded.
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
    """Serve during the block, beside other work of the running event loop.

    `on_end` is called when the server has ended: after the block, or after a failure, which is
    logged.
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
        """Close the listening socket and finish pending requests."""
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
                config=self._config,
                server_state=self.server_state,
                app_state=self.lifespan.state,
            )

        await asyncio.get_running_loop().connect_accepted_socket(protocol, accepted)
