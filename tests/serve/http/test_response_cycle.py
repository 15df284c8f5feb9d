"""Responses are complete and in order, and end when the client disconnects."""

import asyncio
import socket
import struct
from asyncio import StreamReader, StreamWriter

import pytest

from attestkit.serve.http.asgi import Receive, Scope, Send
from attestkit.serve.http.views import ENDLESS
from tests.serve.http.listening import GET, Connect, echo, exchange, response, run


@pytest.mark.parametrize(
    "second",
    [
        b"POST /b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"nonsense\r\n\r\n",
    ],
)
@pytest.mark.parametrize("between", [0, 2])
def test_malformed_request_waits_for_earlier_responses(second: bytes, between: int) -> None:
    """Earlier requests are answered before a malformed one ends the connection."""

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.05)
        await echo(scope, receive, send)

    async def test(reader: StreamReader, writer: StreamWriter) -> None:
        writer.write(GET * (1 + between) + second)
        for _ in range(1 + between):
            assert (await response(reader))[::2] == (200, b"/path 0")
        assert await reader.read() == b""

    exchange(test, slow)


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("behind", [b"", GET])
@pytest.mark.parametrize("reset", [False, True])
def test_endless_response_ends_with_client(*, begun: bool, behind: bytes, reset: bool) -> None:
    """An endless response ends when its client closes or resets the connection."""
    ended = asyncio.Event()
    started = asyncio.Event()

    async def endless(_scope: Scope, receive: Receive, send: Send) -> None:
        started.set()
        if not begun:
            await asyncio.sleep(0.1)  # the client goes before the answer begins
        start = {"type": "http.response.start", "status": 200, "headers": [], ENDLESS: True}
        await send(start)
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        ended.set()

    async def test(connect: Connect) -> None:
        reader, writer = await connect()
        writer.write(GET + behind)
        await started.wait()
        if begun:
            await reader.readuntil(b"\r\n\r\n")
        if reset:
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort() if reset else writer.close()
        await ended.wait()

    run(test, endless)
