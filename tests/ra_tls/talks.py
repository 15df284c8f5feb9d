"""Two applications that send over TLS as early as possible, and the data each received."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

import uvloop

TIMEOUT: Final = 30  # seconds; a loaded machine may need them
SERVER_DATA: Final = b"data from the server"
CLIENT_DATA: Final = b"data from the client"
_SIZE: Final = 20
_Got = TypeVar("_Got")
assert len(SERVER_DATA) == len(CLIENT_DATA) == _SIZE


class Endpoint(NamedTuple):
    """Data that an application received, and the exception that ended it."""

    received: bytes
    error: Exception | None


class Exchange(NamedTuple):
    """Both endpoints of a connection. A server on asyncio is not notified of a failed handshake."""

    server: Endpoint
    client: Endpoint


RunExchange: TypeAlias = Callable[[ssl.SSLContext, ssl.SSLContext], Exchange]


def connect_tcp() -> tuple[socket.socket, socket.socket]:
    """Return both ends of a TCP connection; a socket pair has no connection reset."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    for end in (server, client):
        end.settimeout(TIMEOUT)
    return server, client


class MemoryPair:
    """A client and a server connected through memory BIOs."""

    def __init__(self, server: ssl.SSLContext, client: ssl.SSLContext) -> None:
        up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.server = server.wrap_bio(up, down, server_side=True)
        self.client = client.wrap_bio(down, up)

    def handshake(self) -> None:
        """Perform the handshake until both sides are done, or one fails."""
        waiting: list[ssl.SSLObject] = [self.client, self.server]
        while waiting:
            for end in list(waiting):
                try:
                    end.do_handshake()
                except ssl.SSLWantReadError:
                    continue
                waiting.remove(end)


@contextlib.contextmanager
def connected(
    server: ssl.SSLContext, client: ssl.SSLContext, **options: Any
) -> "Iterator[tuple[ssl.SSLSocket, Future[ssl.SSLSocket]]]":
    """Connect over sockets; yield the client's end and the server's as a future; close both."""
    server_socket, client_socket = connect_tcp()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(server.wrap_socket, server_socket, server_side=True)
        try:
            with client.wrap_socket(client_socket, **options) as end:
                yield end, future
        finally:
            if future.exception(TIMEOUT) is None:
                future.result().close()


def exchange_blocking(server: ssl.SSLContext, client: ssl.SSLContext) -> Exchange:
    """Exchange data over blocking sockets."""
    server_socket, client_socket = connect_tcp()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(
            _run_endpoint, lambda: server.wrap_socket(server_socket, server_side=True), SERVER_DATA
        )
        client_end = _run_endpoint(lambda: client.wrap_socket(client_socket), CLIENT_DATA)
        return Exchange(future.result(TIMEOUT), client_end)


def _run_endpoint(connect: Callable[[], ssl.SSLSocket], data: bytes) -> Endpoint:
    received = b""
    try:
        with connect() as connection:
            connection.sendall(data)
            while len(received) < _SIZE and (chunk := connection.recv(_SIZE)):
                received += chunk
    except OSError as error:
        return Endpoint(received, error)
    return Endpoint(received, None if len(received) == _SIZE else EOFError("the other side ended"))


def exchange_on_asyncio(server: ssl.SSLContext, client: ssl.SSLContext) -> Exchange:
    """Exchange data over asyncio streams."""
    return run_on_loop(asyncio.new_event_loop(), _exchange_streams(server, client))


def exchange_on_uvloop(server: ssl.SSLContext, client: ssl.SSLContext) -> Exchange:
    """Exchange data over streams on uvloop."""
    return run_on_loop(uvloop.new_event_loop(), _exchange_streams(server, client))


EXCHANGES: Final[dict[str, RunExchange]] = {
    "blocking": exchange_blocking,
    "asyncio": exchange_on_asyncio,
    "uvloop": exchange_on_uvloop,
}


def run_on_loop(loop: asyncio.AbstractEventLoop, program: Coroutine[Any, Any, _Got]) -> _Got:
    """Run a coroutine on its own loop."""
    try:
        return loop.run_until_complete(asyncio.wait_for(program, TIMEOUT))
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


async def _exchange_streams(server: ssl.SSLContext, client: ssl.SSLContext) -> Exchange:
    called: list[asyncio.Future[Endpoint]] = []

    async def application(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        called.append(asyncio.get_running_loop().create_future())
        called[0].set_result(await _run_stream_endpoint(reader, writer, SERVER_DATA))

    listener = await asyncio.start_server(application, "127.0.0.1", 0, ssl=server)
    async with listener:
        address = listener.sockets[0].getsockname()
        try:
            streams = await asyncio.open_connection(*address, ssl=client)
        except OSError as error:
            client_end = Endpoint(b"", error)
        else:
            client_end = await _run_stream_endpoint(*streams, CLIENT_DATA)
        # A rejected client has received its error by now, so the server was called if at all.
        server_end = await called[0] if called else Endpoint(b"", None)
    return Exchange(server_end, client_end)


async def _run_stream_endpoint(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes
) -> Endpoint:
    try:
        writer.write(data)
        received = await reader.readexactly(_SIZE)
        return Endpoint(received, None)
    except asyncio.IncompleteReadError as error:
        return Endpoint(error.partial, error)
    except OSError as error:
        return Endpoint(b"", error)
    finally:
        writer.close()
        with contextlib.suppress(OSError):  # if already closed
            await writer.wait_closed()
