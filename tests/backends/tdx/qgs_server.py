"""Quote generation service for tests, on a UNIX socket or vsock, with injectable faults.

A behaviour is a function that handles one connection. The server runs in a thread, accepts one
connection after another, and counts them.
"""

import contextlib
import itertools
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

QUOTE: Final = bytes(range(256)) * 20  # as long as a quote, but not a valid one
KEY_ID: Final = bytes.fromhex("e86c046e8cc44d958173fc43c1fa4f3f")

Behaviour = Callable[["QgsServer", socket.socket], None]


def response(
    quote: bytes = QUOTE,
    *,
    key_id: bytes = b"",
    major: int = 1,
    minor: int = 1,
    kind: int = 1,
    size: int | None = None,
    code: int = 0,
    id_size: int | None = None,
    quote_size: int | None = None,
) -> bytes:
    """Return a GET_QUOTE_RESP; a size that is not given is correct."""
    sizes = (
        len(key_id) if id_size is None else id_size,
        len(quote) if quote_size is None else quote_size,
    )
    whole = 24 + len(key_id) + len(quote) if size is None else size
    return struct.pack("<HHIIIII", major, minor, kind, whole, code, *sizes) + key_id + quote


def framed(message: bytes, length: int | None = None) -> bytes:
    """Return a message after its length prefix, or after another number."""
    return struct.pack(">I", len(message) if length is None else length) + message


# -- behaviours --------------------------------------------------------------------------------


def answering(reply: bytes, *, piece: int = 1 << 20) -> Behaviour:
    """Read the request, and send this reply in pieces."""

    def behave(server: "QgsServer", client: socket.socket) -> None:
        server.take(client)
        for at in range(0, len(reply), piece):
            client.sendall(reply[at : at + piece])

    return behave


def closing(server: "QgsServer", client: socket.socket) -> None:
    """Read the request, and close the connection."""
    server.take(client)


def closing_early(server: "QgsServer", client: socket.socket) -> None:
    """Reset the connection before reading."""
    del server
    linger = struct.pack("ii", 1, 0)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


def silent(server: "QgsServer", client: socket.socket) -> None:
    """Read the request, and send nothing."""
    server.take(client)
    client.recv(1)


def dripping(server: "QgsServer", client: socket.socket) -> None:
    """Send a response byte by byte without an end, each byte before the read timeout."""
    server.take(client)
    with contextlib.suppress(OSError):
        for byte in itertools.chain(framed(b"", 1 << 20), itertools.repeat(0)):
            client.sendall(bytes([byte]))
            if server.stopped.wait(0.01):
                return


class QgsServer:
    """The service; `requests` are the received messages without their length prefixes."""

    def __init__(self, listener: socket.socket, behave: Behaviour) -> None:
        self.address = listener.getsockname()
        self.requests: list[bytes] = []
        self.connections = 0
        self.stopped = threading.Event()
        self._listener = listener
        self._behave = behave
        self._thread = threading.Thread(target=self._run)

    def take(self, client: socket.socket) -> None:
        """Read one framed request."""
        (length,) = struct.unpack(">I", self._exactly(client, 4))
        self.requests.append(self._exactly(client, length))

    @staticmethod
    def _exactly(client: socket.socket, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = client.recv(size - len(data))
            assert piece, "request truncated"
            data += piece
        return data

    def _run(self) -> None:
        while True:
            client, _ = self._listener.accept()
            with client:
                if self.stopped.is_set():
                    return
                self.connections += 1
                with contextlib.suppress(ConnectionError):
                    self._behave(self, client)

    @contextlib.contextmanager
    def running(self) -> "Iterator[QgsServer]":
        """Serve until the end of the block."""
        self._thread.start()
        try:
            yield self
        finally:
            self.stopped.set()
            with socket.socket(self._listener.family, socket.SOCK_STREAM) as last:
                last.connect(self.address)  # wakes the thread
            self._thread.join()
            self._listener.close()


@contextlib.contextmanager
def qgs_server(address: Path | tuple[int, int], behave: Behaviour) -> Iterator[QgsServer]:
    """Run a service on a socket path, or on a CID and port of vsock."""
    family = socket.AF_UNIX if isinstance(address, Path) else socket.AF_VSOCK
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.bind(str(address) if isinstance(address, Path) else address)
    listener.listen()
    with QgsServer(listener, behave).running() as server:
        yield server
