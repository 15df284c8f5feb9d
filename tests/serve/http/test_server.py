"""Listeners: routing to applications, limits, timeouts and shutdown."""

import asyncio
import contextlib
import re
import socket
import struct
from asyncio import StreamReader, StreamWriter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import uvloop

from attestkit.serve.config.limits import Limits
from attestkit.serve.http import server
from attestkit.serve.http.asgi import App, Receive, Scope, Send
from attestkit.serve.http.server import Listener
from attestkit.serve.http.views import ENDLESS
from tests.runner.cases import every_case
from tests.serve import client
from tests.serve.http.listening import GET, Connect, echo, exchange, refusal, response, run, serving
from tests.serve.server import ROOT, Server


def test_each_listener_serves_its_application() -> None:
    """Several applications in one event loop are separate."""

    def app(name: bytes) -> App:
        async def answer(_scope: Scope, _receive: Receive, send: Send) -> None:
            headers = [(b"content-length", b"1")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": name})

        return answer

    async def main() -> None:
        async with serving(app(b"a"), app(b"b"), app(b"c")) as (connects, _):
            found = b""
            for connect in connects:
                reader, writer = await connect()
                writer.write(GET)
                found += (await response(reader))[2]
                writer.close()
            assert found == b"abc"

    uvloop.run(main())


@every_case("step", [1 << 20, 1000])
@every_case("end", [b"", b"\r\n\r\n"])
@every_case("start", [b"GET /", b"GET / HTTP/1.1\r\nX: ", b"GET / HTTP/1.1\r\n"])
def test_oversized_head_is_431(start: bytes, end: bytes, step: int) -> None:
    """A request line, header or header section over the limit is a 431."""
    filler = b"x: y\r\n" if start.endswith(b"\n") else b"x"
    head = start + filler * (Limits().head // len(filler) + 1) + end

    async def test(reader: StreamReader, writer: StreamWriter) -> None:
        for at in range(0, len(head), step):
            writer.write(head[at : at + step])
            await asyncio.sleep(0)
        assert await refusal(reader) == 431

    exchange(test)


def test_head_limit_excludes_body() -> None:
    """The limit applies to the head only, even if the body arrives with it."""

    async def test(reader: StreamReader, writer: StreamWriter) -> None:
        for _ in range(2):
            padding = b"x" * (Limits().head - 200)
            writer.write(
                b"POST /p HTTP/1.1\r\nX: %s\r\nContent-Length: 300000\r\n\r\n" % padding
                + bytes(300_000)
            )
            assert (await response(reader))[2] == b"/p 300000"

    exchange(test)


def test_slow_head_is_408() -> None:
    """The timeout starts with the first byte and is not reset by later ones."""
    limits = Limits(head_seconds=0.2)

    async def test(reader: StreamReader, writer: StreamWriter) -> None:

        async def dribble() -> None:
            for byte in GET * 100:
                writer.write(bytes([byte]))
                await asyncio.sleep(0.01)

        dribbling = asyncio.create_task(dribble())
        assert await refusal(reader) == 408
        dribbling.cancel()

    exchange(test, limits=limits)


def test_slow_second_head_is_408() -> None:
    """The timeout applies to later requests of a connection."""

    async def test(reader: StreamReader, writer: StreamWriter) -> None:
        writer.write(GET + GET[:10])
        await response(reader)
        assert await refusal(reader) == 408

    exchange(test, limits=Limits(head_seconds=0.1))


def test_idle_connection_is_closed() -> None:
    """A persistent connection is closed after the idle timeout."""
    limits = Limits(idle_seconds=0)

    async def test(reader: StreamReader, writer: StreamWriter) -> None:
        writer.write(GET)
        await response(reader)
        assert await reader.read() == b""

    exchange(test, limits=limits)


def test_stalled_body_is_408() -> None:
    """A stalled body is a 408, and the application sees a disconnect."""
    limits = Limits(body_seconds=0.1)
    seen: list[str] = []

    async def app(_scope: Scope, receive: Receive, _send: Send) -> None:
        while (message := await receive())["type"] != "http.disconnect":
            seen.append(message["body"])
        seen.append("gone")

    async def test(reader: StreamReader, writer: StreamWriter) -> None:
        writer.write(b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc")
        assert await refusal(reader) == 408
        assert seen == [b"abc", "gone"]

    exchange(test, app, limits)


def test_slow_body_resets_timeout() -> None:
    """Each piece of a body restarts the timeout."""
    limits = Limits(body_seconds=0.3)

    async def test(reader: StreamReader, writer: StreamWriter) -> None:
        writer.write(b"POST /p HTTP/1.1\r\nContent-Length: 10\r\n\r\n")
        for _ in range(10):
            await asyncio.sleep(0.05)
            writer.write(b"x")
        assert (await response(reader))[2] == b"/p 10"

    exchange(test, limits=limits)


def test_connection_limit_is_503() -> None:
    """Over the limit is a 503, far over it a close; others are served."""
    limits = Limits(connections=2)

    async def test(connect: Connect) -> None:
        good = [await connect() for _ in range(2)]
        for reader, writer in good:
            writer.write(GET)
            assert (await response(reader))[0] == 200
        over = [await connect() for _ in range(2)]
        for _, writer in over:
            writer.write(GET)
        reader, writer = await connect()
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()
        assert [await refusal(reader) for reader, _ in over] == [503, 503]
        for reader, writer in good:
            writer.write(GET)
            assert (await response(reader))[0] == 200
        for _, writer in (*good, *over):
            writer.close()

    run(test, limits=limits)


def test_early_response_reaches_sending_client() -> None:
    """A response before the end of the body reaches the client."""

    async def hasty(_scope: Scope, _receive: Receive, send: Send) -> None:
        headers = [(b"content-length", b"3"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 400, "headers": headers})
        await send({"type": "http.response.body", "body": b"no\n"})

    async def test(reader: StreamReader, writer: StreamWriter) -> None:
        writer.write(b"POST /p HTTP/1.1\r\nContent-Length: 3000000\r\n\r\n")
        for _ in range(3):
            writer.write(bytes(1_000_000))
            await writer.drain()
        assert (await response(reader))[2] == b"no\n"
        assert await reader.read() == b""

    exchange(test, hasty)


def test_failing_listener_stops_server(tmp_path: Path) -> None:
    """If one listener fails to start, the server stops."""
    broken = socket.socket(socket.AF_UNIX)
    broken.bind(str(tmp_path / "socket"))
    broken.close()

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as good:
            pair = [Listener(echo, good), Listener(echo, broken)]
            with pytest.raises((OSError, ValueError)):
                await server.run_in_loop(pair, lambda: pytest.fail("was not ready"))

    uvloop.run(main())


@pytest.mark.parametrize("error", [RuntimeError("secret"), asyncio.CancelledError("secret")])
def test_application_error_is_logged_not_returned(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """An application error, even a cancellation, is a 500 without text; the log contains it."""

    async def broken(*_: Any) -> None:
        raise error

    async def test(reader: StreamReader, writer: StreamWriter) -> None:
        writer.write(GET)
        status, _, body = await response(reader)
        assert status == 500
        assert b"secret" not in body

    exchange(test, broken)
    assert "secret" in caplog.text
    # asyncio's debug mode also logs slow callbacks
    logged = [(each.name, each.levelname) for each in caplog.records if each.name != "asyncio"]
    assert logged == [("uvicorn.error", "ERROR")]


# -- responses -----------------------------------------------------------------------------------


@every_case(
    "second",
    [
        b"POST /b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"nonsense\r\n\r\n",
    ],
)
@every_case("between", [0, 2])
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


@every_case("begun", [False, True])
@every_case("behind", [b"", GET])
@every_case("reset", [False, True])
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


# -- uvicorn ---------------------------------------------------------------------------------------


def test_uvicorn_honours_connection_close(dev_server: Server) -> None:
    """The response to `Connection: close` closes the connection in every supported version."""
    with client.connect(dev_server.url) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        head, _, _ = connection.makefile("rb").read().partition(b"\r\n\r\n")
    assert b"connection: close" in head.split(b"\r\n")


def test_uvicorn_minimum_version() -> None:
    """The minimum version is at least 0.53 and at most the installed one."""
    [least] = re.findall(r'"uvicorn>=([0-9.]+)"', (ROOT / "pyproject.toml").read_text())
    numbers = [tuple(map(int, text.split("."))) for text in (least, version("uvicorn"))]
    assert (0, 53) <= numbers[0] <= numbers[1]
