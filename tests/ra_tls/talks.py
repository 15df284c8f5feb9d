"""Two applications that talk over TLS as soon as they can, and what each of them got to see."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

import uvloop

PATIENCE: Final = 30  # seconds that a loaded machine may take for milliseconds
SERVER_SAYS: Final = b"a word of the server"
CLIENT_SAYS: Final = b"a word of the client"
_SIZE: Final = 20
_Got = TypeVar("_Got")
assert len(SERVER_SAYS) == len(CLIENT_SAYS) == _SIZE


class Side(NamedTuple):
    """What an application saw, and the exception that ended it, if one did."""

    saw: bytes
    error: Exception | None


class Talk(NamedTuple):
    """Both sides of one connection. Asyncio does not tell a server about a failed handshake."""

    server: Side
    client: Side


Talker: TypeAlias = Callable[[ssl.SSLContext, ssl.SSLContext], Talk]


def connected() -> tuple[socket.socket, socket.socket]:
    """Return both ends of a TCP connection: a reset is nothing that other sockets know."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    for end in (server, client):
        end.settimeout(PATIENCE)
    return server, client


def blocking(server: ssl.SSLContext, client: ssl.SSLContext) -> Talk:
    """Talk over blocking sockets."""
    there, here = connected()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(
            _side, lambda: server.wrap_socket(there, server_side=True), SERVER_SAYS
        )
        ours = _side(lambda: client.wrap_socket(here), CLIENT_SAYS)
        return Talk(future.result(PATIENCE), ours)


def _side(connect: Callable[[], ssl.SSLSocket], says: bytes) -> Side:
    saw = b""
    try:
        with connect() as connection:
            connection.sendall(says)
            while len(saw) < _SIZE and (chunk := connection.recv(_SIZE)):
                saw += chunk
    except OSError as error:
        return Side(saw, error)
    return Side(saw, None if len(saw) == _SIZE else EOFError("the other side ended"))


def on_asyncio(server: ssl.SSLContext, client: ssl.SSLContext) -> Talk:
    """Talk over asyncio's streams."""
    return run(asyncio.new_event_loop(), _streams(server, client))


def on_uvloop(server: ssl.SSLContext, client: ssl.SSLContext) -> Talk:
    """Talk over streams on uvloop."""
    return run(uvloop.new_event_loop(), _streams(server, client))


TALKERS: Final[dict[str, Talker]] = {
    "blocking": blocking,
    "asyncio": on_asyncio,
    "uvloop": on_uvloop,
}


def run(loop: asyncio.AbstractEventLoop, program: Coroutine[Any, Any, _Got]) -> _Got:
    """Run a program on a loop of its own."""
    try:
        return loop.run_until_complete(asyncio.wait_for(program, PATIENCE))
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


async def _streams(server: ssl.SSLContext, client: ssl.SSLContext) -> Talk:
    called: list[asyncio.Future[Side]] = []

    async def application(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        called.append(asyncio.get_running_loop().create_future())
        called[0].set_result(await _stream_side(reader, writer, SERVER_SAYS))

    listener = await asyncio.start_server(application, "127.0.0.1", 0, ssl=server)
    async with listener:
        address = listener.sockets[0].getsockname()
        try:
            streams = await asyncio.open_connection(*address, ssl=client)
        except OSError as error:
            ours = Side(b"", error)
        else:
            ours = await _stream_side(*streams, CLIENT_SAYS)
        # A refused client has got its error by now: if the server was to be called, it has been.
        theirs = await called[0] if called else Side(b"", None)
    return Talk(theirs, ours)


async def _stream_side(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, says: bytes
) -> Side:
    try:
        writer.write(says)
        saw = await reader.readexactly(_SIZE)
        return Side(saw, None)
    except asyncio.IncompleteReadError as error:
        return Side(error.partial, error)
    except OSError as error:
        return Side(b"", error)
    finally:
        writer.close()
        with contextlib.suppress(OSError):  # where it was gone already
            await writer.wait_closed()
