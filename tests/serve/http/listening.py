"""Listeners in this process: applications on free ports, and connections to them."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeAlias

import uvloop

from attestkit.serve.config.limits import Limits
from attestkit.serve.http import server
from attestkit.serve.http.asgi import App, Receive, Scope, Send
from attestkit.serve.http.server import Listener

Streams: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect: TypeAlias = Callable[[], Awaitable[Streams]]

DEFAULT = Limits()
GET = b"GET /path?query HTTP/1.1\r\nHost: x\r\n\r\n"


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Respond with the target and the length of the body."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message["body"]
        more = message["more_body"]
    text = b"%s %d" % (scope["raw_path"], len(body))
    headers = [(b"content-length", b"%d" % len(text))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": text})


@contextlib.asynccontextmanager
async def serving(
    *apps: App, limits: Limits = DEFAULT, on_stop: Callable[[], None] = lambda: None
) -> AsyncIterator[tuple[list[Connect], "asyncio.Task[int]"]]:
    """Serve applications on free ports; yield connection factories and the server's task."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in apps]
    ports = [sock.getsockname()[1] for sock in sockets]
    ready = asyncio.Event()
    listening = [Listener(app, sock, limits) for app, sock in zip(apps, sockets, strict=True)]
    task = asyncio.create_task(server.run_in_loop(listening, ready.set, on_stop))

    def connector(port: int) -> Connect:
        return lambda: asyncio.open_connection("127.0.0.1", port)

    await asyncio.wait_for(ready.wait(), 30)
    try:
        yield [connector(port) for port in ports], task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def run(
    test: Callable[[Connect], Awaitable[None]], app: App = echo, limits: Limits = DEFAULT
) -> None:
    """Run a test against an application in the server's event loop."""

    async def main() -> None:
        async with serving(app, limits=limits) as ([connect], _):
            await asyncio.wait_for(test(connect), 30)

    uvloop.run(main())


def exchange(
    test: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    app: App = echo,
    limits: Limits = DEFAULT,
) -> None:
    """Run a test on one connection to an application."""

    async def connected(connect: Connect) -> None:
        reader, writer = await connect()
        with contextlib.closing(writer):
            await test(reader, writer)

    run(connected, app, limits)


async def response(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """Read one response."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
    headers = dict(line.split(": ", 1) for line in head[1:-1])
    return (
        int(head[0].split()[1]),
        headers,
        await reader.readexactly(int(headers["content-length"])),
    )


async def refusal(reader: asyncio.StreamReader) -> int:
    """Read a JSON refusal, which closes the connection; return its status."""
    status, headers, body = await response(reader)
    assert headers["content-type"] == "application/json"
    assert headers["connection"] == "close"
    assert list(json.loads(body)) == ["error"]
    assert await reader.read() == b""
    return status
