"""A scripted container engine, for behaviour that a real one cannot be made to show."""

import asyncio
import functools
import inspect
import json
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from attestkit.serve.container_logs.view import CHANNELS, Frame

T = TypeVar("T")

ID = "4d0d6b4e1e13" * 5 + "abcd"
VERSION = {"ApiVersion": "1.45"}
NO_RESPONSE = (0, None)
"""The response is never sent."""

Script: TypeAlias = Callable[[asyncio.StreamWriter], Coroutine[Any, Any, None]]


def run_with_timeout(main: Coroutine[Any, Any, T]) -> T:
    """Run a test that must not hang."""
    return asyncio.run(asyncio.wait_for(main, 60))


def with_engine(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a coroutine test, whose first argument is a new engine, with a timeout."""
    engine, *fixtures = inspect.signature(test).parameters.values()
    assert engine.name == "engine"

    @functools.wraps(test)
    def run(**arguments: Any) -> None:
        async def main() -> None:
            async with run_engine() as engine:
                await test(engine, **arguments)

        run_with_timeout(main())

    vars(run)["__signature__"] = inspect.Signature(fixtures)
    return run


def encode_frames(frames: Iterable[Frame]) -> bytes:
    """Return frames in the engine's stream format."""
    return b"".join(
        bytes([CHANNELS.index(channel), 0, 0, 0]) + len(data).to_bytes(4, "big") + data
        for channel, data in frames
    )


class Engine:
    """A scripted container engine.

    Attributes:
        address: The value for `$DOCKER_HOST`.
        answers: The response by path without version: a status and a JSON value or bytes, or a
            script that sends the whole response. If empty, the connection is closed.
        head: The head of the response to a log request.
        log: The script that sends the log.
        asked: The targets of all requests.
        gone: Set when a client has closed the connection of a log.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.answers: dict[str, tuple[int, Any]] = {
            "/version": (200, VERSION),
            "/containers/app/json": (200, {"Id": ID, "Config": {"Tty": False}}),
            "/containers/tty/json": (200, {"Id": ID, "Config": {"Tty": True}}),
        }
        self.head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        self.log: Script = send_chunks()
        self.asked: list[str] = []
        self.gone = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Respond to the requests of one connection."""
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                target = head.split(b" ")[1].decode("ascii")
                self.asked.append(target)
                if not self.answers:
                    return
                path = target.partition("?")[0].removeprefix("/v1.45")
                if path == f"/containers/{ID}/logs" and path not in self.answers:
                    await self._log(reader, writer)
                    return
                if self.answers.get(path) == NO_RESPONSE:
                    await reader.read()  # until the client has closed
                    return
                status, answer = self.answers.get(path, (404, {"message": "No such container"}))
                if callable(answer):
                    await answer(writer)
                    return
                body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                kind = b"text/plain" if isinstance(answer, bytes) else b"application/json"
                writer.write(
                    b"HTTP/1.1 %d Scripted\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s"
                    % (status, kind, len(body), body)
                )
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _log(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(self.head)
        script = asyncio.ensure_future(self.log(writer))
        try:
            await reader.read()  # until the client has closed
        finally:
            self.gone.set()
            script.cancel()
            with suppress(asyncio.CancelledError, ConnectionError):
                await script


def send_chunks(*pieces: bytes, then: str = "end") -> Script:
    """Return a script that sends pieces of a log, each a chunk, then ends, breaks or waits."""

    async def script(writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            await writer.drain()
        if then == "end":
            writer.write(b"0\r\n\r\n")
        elif then == "break":
            writer.transport.abort()
        else:
            assert then == "wait"

    return script


@asynccontextmanager
async def run_engine(*, tcp: bool = False) -> AsyncIterator[Engine]:
    """Run an engine on a socket of its own until the end of the block."""
    with tempfile.TemporaryDirectory(prefix="ak") as folder:
        path = Path(folder) / "docker.sock"
        engine = Engine(f"unix://{path}")
        if tcp:
            server = await asyncio.start_server(engine.serve, "127.0.0.1", 0)
            engine.address = f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        else:
            server = await asyncio.start_unix_server(engine.serve, path)
        try:
            yield engine
        finally:
            server.close()
