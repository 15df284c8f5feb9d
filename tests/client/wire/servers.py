"""Servers on loopback that log each byte which they get over TLS, honest ones and others.

They are made of plain sockets and threads: what a server does between two bytes is under test.
"""

import contextlib
import hashlib
import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from tests.client.wire.authority import Identity, identity

PATH: Final = "/.well-known/proof"
TIMEOUT: Final = 20


@dataclass
class Connection:
    """One connection, and what came over it."""

    handshake: bool = False  # whether it was completed
    questions: int = 0
    received: bytearray = field(default_factory=bytearray)  # without the questions
    requests: list[bytes] = field(default_factory=list)  # their targets
    ended: threading.Event = field(default_factory=threading.Event)


class WireServer:
    """A server of TLS; attributes may be changed while it runs.

    Attributes:
        identity: Its key and certificate, for new connections.
        claimed: Key that its document is about; None: its own.
        close_after_document: How many connections it closes after the document.
        hang: Whether it never answers the question.
        cut: Whether it resets the connection when it has got the question.
        extra: Bytes that it sends after the document, in the same record.
        first: Bytes that it sends before it has received any.
        answer: Answers requests, instead of an echo: called with the connection, head and body.
    """

    def __init__(self, name: str = "a", **changes: Any) -> None:
        self.identity: Identity = identity(name)
        self.claimed: bytes | None = None
        self.close_after_document = 0
        self.hang = self.cut = False
        self.extra = self.first = b""
        self.answer: Callable[[ssl.SSLSocket, bytes, bytes], None] = echo
        self.connections: list[Connection] = []
        self.tls_context = self.identity.context()
        for key, value in changes.items():
            assert hasattr(self, key)
            setattr(self, key, value)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads: list[threading.Thread] = []
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Its URL, without a path."""
        return f"https://127.0.0.1:{self.port}"

    @property
    def received(self) -> bytes:
        """All bytes that are not of questions."""
        return b"".join(bytes(one.received) for one in self.connections)

    @property
    def questions(self) -> int:
        """The number of questions for evidence."""
        return sum(one.questions for one in self.connections)

    @property
    def requests(self) -> list[bytes]:
        """The targets of all requests."""
        return [target for one in self.connections for target in one.requests]

    def use(self, name: str) -> None:
        """Use another key from the next connection on."""
        self.identity = identity(name)
        self.tls_context = self.identity.context()

    def close(self) -> None:
        """Close all connections, and wait for the threads."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(TIMEOUT)
        with self._lock:
            for one in self._open:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(TIMEOUT)
            assert not thread.is_alive()

    def _accept(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            plain.setsockopt(
                socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
            )  # else each answer waits 40 ms
            connection = Connection()
            self.connections.append(connection)
            with self._lock:
                self._open.add(plain)
            thread = threading.Thread(target=self._serve, args=(plain, connection), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, plain: socket.socket, connection: Connection) -> None:
        try:
            with plain, contextlib.suppress(OSError):
                context = self.tls_context
                with context.wrap_socket(plain, server_side=True) as secured:
                    with self._lock:
                        self._open.add(secured)
                    connection.handshake = True
                    if self.first:
                        secured.sendall(self.first)
                    self._talk(secured, connection)
        finally:
            connection.ended.set()
            with self._lock:
                self._open = {one for one in self._open if one.fileno() >= 0}

    def _talk(self, secured: ssl.SSLSocket, connection: Connection) -> None:
        buffer = b""
        while True:
            while b"\r\n\r\n" not in buffer:
                data = secured.recv(65536)
                if not data:
                    return
                buffer += data
                if not buffer.startswith(f"GET {PATH}"[: len(buffer)].encode()):
                    connection.received += data
            head, _, buffer = buffer.partition(b"\r\n\r\n")
            if head.startswith(f"GET {PATH}".encode()):
                connection.questions += 1
                if not self._give_document(secured, head):
                    return
                continue
            connection.requests.append(head.split(b" ")[1])
            body, buffer = read_body(secured, head, buffer, connection.received)
            self.answer(secured, head, body)

    def _give_document(self, secured: ssl.SSLSocket, head: bytes) -> bool:
        if self.hang:
            secured.recv(1)  # until the client closes
            return False
        if self.cut:
            secured.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        nonce = head.split(b"nonce=")[1].split(b" ")[0].decode()
        claimed = self.identity.spki_sha256 if self.claimed is None else self.claimed
        document = json.dumps({"nonce": nonce, "key": claimed.hex()}).encode()
        if self.close_after_document:
            self.close_after_document -= 1
            secured.sendall(http_answer(document, "Connection: close"))
            return False
        secured.sendall(http_answer(document) + self.extra)
        return True


class WireServerLike(WireServer):
    """A server that is not started."""

    def __init__(self) -> None:
        self.port = 1
        self.connections: list[Connection] = []


def http_answer(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    """Return an answer with a body of known length."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def echo(secured: ssl.SSLSocket, head: bytes, body: bytes) -> None:
    """Answer with the target and the hash of the body."""
    target = head.split(b" ")[1].decode()
    content = {"target": target, "body": body.decode("latin-1"), "head": head.decode("latin-1")}
    content["sha256"] = hashlib.sha256(body).hexdigest()
    secured.sendall(http_answer(json.dumps(content).encode()))


def read_body(
    secured: ssl.SSLSocket, head: bytes, buffer: bytes, log: bytearray
) -> tuple[bytes, bytes]:
    """Read the body of a request; return it and what follows."""

    def more() -> None:
        nonlocal buffer
        data = secured.recv(65536)
        if not data:
            raise ConnectionError
        log.extend(data)
        buffer += data

    lower = head.lower()
    if b"content-length: " in lower:
        size = int(lower.split(b"content-length: ")[1].split(b"\r\n")[0])
        while len(buffer) < size:
            more()
        return buffer[:size], buffer[size:]
    body = b""
    if b"transfer-encoding: chunked" in lower:
        size = -1
        while size:
            while b"\r\n" not in buffer:
                more()
            line, _, buffer = buffer.partition(b"\r\n")
            size = int(line, 16)
            while len(buffer) < size + 2:
                more()
            body, buffer = body + buffer[:size], buffer[size + 2 :]
    return body, buffer


class Proxy:
    """A proxy that tunnels, and logs where to; or that answers itself.

    Attributes:
        to: Port to which it connects, whatever it is asked for; None: as asked for.
        targets: What it was asked for, by the first line of each connection.
        heads: First line and headers of each connection.
        answer: What it answers instead of tunnelling.
        name: Name of its key, if it is asked over TLS.
    """

    def __init__(self, to: int | None = None, answer: bytes = b"", name: str = "") -> None:
        self.to, self.answer = to, answer
        self._context = identity(name).context() if name else None
        self.targets: list[bytes] = []
        self.heads: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._open: list[socket.socket] = []
        self._threads[0].start()

    @property
    def url(self) -> str:
        """Its URL."""
        return f"http{'s' if self._context else ''}://127.0.0.1:{self.port}"

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(client)
            thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            if self._context is not None:
                client = self._context.wrap_socket(client, server_side=True)
                self._open.append(client)
            self._tunnel(client)

    def _tunnel(self, client: socket.socket) -> None:
        with client:
            head = b""
            while b"\r\n\r\n" not in head:
                data = client.recv(4096)
                if not data:
                    return
                head += data
            line = head.split(b"\r\n")[0]
            self.heads.append(head)
            self.targets.append(line)
            if self.answer:
                client.sendall(self.answer)
                return
            port = self.to or int(line.split(b" ")[1].split(b":")[1])
            with socket.create_connection(("127.0.0.1", port)) as server:
                self._open.append(server)
                client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                back = threading.Thread(target=_copy, args=(server, client), daemon=True)
                back.start()
                _copy(client, server)
                back.join(TIMEOUT)

    def close(self) -> None:
        """Close all connections, and wait for the threads."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(TIMEOUT)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for one in (source, target):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def serving(name: str = "a", **changes: Any) -> Iterator[WireServer]:
    """Run a server."""
    server = WireServer(name, **changes)
    try:
        yield server
    finally:
        server.close()


@contextlib.contextmanager
def proxying(to: int | None = None, answer: bytes = b"", name: str = "") -> Iterator[Proxy]:
    """Run a proxy."""
    proxy = Proxy(to, answer, name)
    try:
        yield proxy
    finally:
        proxy.close()
