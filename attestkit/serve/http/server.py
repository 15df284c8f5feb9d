"""Serve ASGI applications on sockets that are already bound, each with its bounds."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias, cast

import uvicorn
import uvloop

from attestkit.serve.config.limits import Limits
from attestkit.serve.counters import Traffic
from attestkit.serve.http.absolute_target import TargetProtocol
from attestkit.serve.http.asgi import App
from attestkit.serve.http.graceful_shutdown import Connection, Door, drain
from attestkit.serve.http.listener_state import Shared
from attestkit.serve.http.protocol import HttpProtocol, ListenerConfig
from attestkit.serve.http.signals import until_signalled
from attestkit.serve.server_log.access_log import AccessLog

__all__ = ["Listener", "beside", "run", "run_in_loop"]

Work: TypeAlias = Callable[[], Coroutine[Any, Any, None]]

_logger = logging.getLogger("attestkit.serve")


class Listener(NamedTuple):
    """An application, and the listening socket that leads to it.

    An application may have a method `stop` that ends answers which would go on for ever, and
    `headers` that go with every response: then they go with what the listener itself refuses. A
    socket that was handed over is not ours to turn people away from.
    """

    app: App
    socket: socket.socket
    limits: Limits = Limits()
    name: str = ""
    traffic: Traffic | None = None
    access_log: AccessLog | None = None
    handed_over: bool = False


def run(
    listeners: Sequence[Listener],
    on_ready: Callable[[], None],
    on_stop: Callable[[], None] = lambda: None,
    background: Sequence[Work] = (),
) -> int:
    """Serve until a signal says to stop (see signals), then end (see graceful_shutdown).

    Args:
        listeners: What is served; their sockets are closed at the end.
        on_ready: Called once, when every listener accepts.
        on_stop: Called once, before the first listener stops to accept.
        background: Coroutines that run from then on in the same event loop, and end with it.

    Returns:
        How many connections had to be cut off, because the time to finish was over.
    """
    return uvloop.run(run_in_loop(listeners, on_ready, on_stop, background))


async def run_in_loop(
    listeners: Sequence[Listener],
    on_ready: Callable[[], None],
    on_stop: Callable[[], None] = lambda: None,
    background: Sequence[Work] = (),
) -> int:
    """Do what `run` does in the running event loop; to be cancelled stops it in good order too."""
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
                        task.result()  # raises what kept it from starting
                await asyncio.sleep(0)
            on_ready()
            helpers += [asyncio.create_task(_tell(work)) for work in background]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:  # stopped, cancelled, or one failed: all end in good order
            stop()
            await asyncio.wait((*tasks, *helpers))
    for task in tasks:
        task.result()
    return sum(server.cut_off for server in servers)


@contextlib.asynccontextmanager
async def beside(listener: Listener, on_end: Callable[[], None]) -> AsyncIterator[None]:
    """Serve beside other work of the running event loop; it stops in good order with the block.

    Should it fail the log has why, and `on_end` is called, as it is at the end of the block.
    """
    server = _Server(listener)

    async def serve() -> None:
        await server.serve(sockets=[listener.socket])

    task = asyncio.create_task(_tell(serve))
    task.add_done_callback(lambda _: on_end())
    try:
        yield
    finally:
        server.stop()
        await task


async def _tell(work: Work) -> None:
    """Do work in the background; if it fails the log has it, and the server goes on."""
    try:
        await work()
    except Exception:
        _logger.exception("work in the background ended")


def _config(listener: Listener) -> ListenerConfig:
    shared = Shared.of(
        listener.name, listener.limits, listener.traffic or Traffic(), listener.access_log
    )
    config = ListenerConfig(listener.app, shared)
    config.http = TargetProtocol  # what uvicorn makes of a connection, see its Config
    return config


class _Server(uvicorn.Server):
    """One of several servers in a process: signals are not its business, idle it sleeps."""

    def __init__(self, listener: Listener) -> None:
        self._shared = _config(listener)
        super().__init__(self._shared)
        self.cut_off = 0
        self._listener = listener
        self._stopped = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to run(), which tells all servers."""
        yield

    def stop(self) -> None:
        """Accept no more, finish what is in flight."""
        self.should_exit = True
        for connection in self.server_state.connections:
            cast("HttpProtocol", connection).last_call()
        self._stopped.set()

    async def main_loop(self) -> None:
        """Keep the Date header fresh until stop(); the inherited loop wakes ten times a second."""
        while not await self.on_tick(0):
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), 1.0)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the listening socket; answer those who are in."""
        sock = self._listener.socket
        door = Door(sock.dup(), ours=not self._listener.handed_over)
        for server in self.servers:
            server.close()
        for each in sockets or ():
            each.close()
        self.cut_off = await drain(
            door,
            cast("set[Connection]", self.server_state.connections),
            self.server_state.tasks,
            connect=self._connect,
            end_streams=getattr(self._listener.app, "stop", lambda: None),
            seconds=self._listener.limits.drain_seconds,
        )

    async def _connect(self, accepted: socket.socket) -> None:
        """Serve a connection that was accepted outside of the event loop."""

        def protocol() -> HttpProtocol:
            return TargetProtocol(self._shared, self.server_state, self.lifespan.state)

        await asyncio.get_running_loop().connect_accepted_socket(protocol, accepted)
