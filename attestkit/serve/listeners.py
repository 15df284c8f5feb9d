"""Serve ASGI applications on sockets that are already bound, each with its bounds."""

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import uvicorn
import uvloop

from attestkit.serve.access_log import AccessLog
from attestkit.serve.http_protocol import ListenerConfig, Shared
from attestkit.serve.limits import Limits
from attestkit.serve.rpc import App
from attestkit.serve.stats import Traffic

__all__ = ["Listener", "run"]


class Listener(NamedTuple):
    """An application, and the listening socket that leads to it."""

    app: App
    socket: socket.socket
    limits: Limits = Limits()
    name: str = ""
    traffic: Traffic | None = None
    access_log: AccessLog | None = None


def run(listeners: Sequence[Listener], on_ready: Callable[[], None]) -> None:
    """Serve until SIGTERM or SIGINT, then finish the requests in flight and return.

    Args:
        listeners: What is served; their sockets are closed at the end.
        on_ready: Called once, when every listener accepts.
    """
    uvloop.run(_run(listeners, on_ready))


async def _run(listeners: Sequence[Listener], on_ready: Callable[[], None]) -> None:
    servers = [_Server(_config(listener)) for listener in listeners]
    loop = asyncio.get_running_loop()

    def stop() -> None:
        for server in servers:
            server.stop()

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
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
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:  # stopped, cancelled, or one failed: all end in good order
        stop()
        await asyncio.wait(tasks)
    for task in tasks:
        task.result()


def _config(listener: Listener) -> ListenerConfig:
    shared = Shared(
        listener.name, listener.limits, listener.traffic or Traffic(), listener.access_log
    )
    return ListenerConfig(listener.app, shared)


class _Server(uvicorn.Server):
    """One of several servers in a process: signals are not its business, idle it sleeps."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._stopped = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to run(), which tells all servers."""
        yield

    def stop(self) -> None:
        """Accept no more, finish what is in flight."""
        self.should_exit = True
        self._stopped.set()

    async def main_loop(self) -> None:
        """Keep the Date header fresh until stop(); the inherited loop wakes ten times a second."""
        while not await self.on_tick(0):
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), 1.0)
