"""Clients that send requests in sequence and record the outcome of each.

A request is accepted if connect() and sendall() succeeded on a connection without a `Connection:
close` response. An accepted request without a complete response is lost.
"""

import contextlib
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO, Final

PATIENCE: Final = 60


class LoadClient(threading.Thread):
    """A client with a persistent connection, or a new one for each request.

    Attributes:
        counts: Number of requests `answered`, `lost` and, at connect(), `turned away`.
        losses: Causes of the lost requests.
        after: Number of requests answered after `stopping` was set.
    """

    def __init__(self, place: str, *, keep: bool, stopping: threading.Event) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.losses: list[str] = []
        self.after = 0
        self._enough = False
        self._keep = keep
        self._stopping = stopping
        self._place = place
        connection = "keep-alive" if keep else "close"
        target = "/prpc/Tappd.Version" if place.endswith("tappd.sock") else "/prpc/Worker.Version"
        if place.endswith("dstack.sock"):
            target = "/GetKey"
        body = b'{"path": "a"}'
        self._request = (
            f"POST {target} HTTP/1.1\r\nHost: localhost\r\nConnection: {connection}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode() + body

    def run(self) -> None:
        """Send requests until connections are refused or stop() is called."""
        while not self._enough and (connection := self._connect()) is not None:
            with connection, connection.makefile("rb") as reader:
                while self._exchange(connection, reader) and not self._enough:
                    pass

    def stop(self) -> None:
        """Stop after the current request."""
        self._enough = True

    def _connect(self) -> socket.socket | None:
        host, _, port = self._place.removeprefix("http://").rpartition(":")
        is_path = self._place.startswith("/")
        connection = socket.socket(socket.AF_UNIX if is_path else socket.AF_INET)
        connection.settimeout(PATIENCE)
        try:
            connection.connect(self._place if is_path else (host, int(port)))
        except (ConnectionRefusedError, FileNotFoundError):
            connection.close()
            self.counts["turned away"] += 1
            return None
        return connection

    def _exchange(self, connection: socket.socket, reader: BinaryIO) -> bool:
        """Send a request and read its response; return whether the connection persists."""
        stopping = self._stopping.is_set()
        try:
            connection.sendall(self._request)
        except OSError as error:
            self._lose(f"sendall: {error}")
            return False
        try:
            last = _read(reader)
        except (OSError, ValueError) as error:
            self._lose(str(error))
            return False
        self.counts["answered"] += 1
        self.after += stopping
        return self._keep and not last

    def _lose(self, reason: str) -> None:
        self.counts["lost"] += 1
        self.losses.append(f"{self._place} keep={self._keep}: {reason}")


def _read(reader: BinaryIO) -> bool:
    """Read a complete response; return whether it closes the connection."""
    head = []
    while (line := reader.readline()) not in {b"\r\n", b""}:
        head.append(line)
    if not head or not line:
        raise ValueError(f"no whole head: {head!r}")
    if not head[0].startswith(b"HTTP/1.1 200 "):
        raise ValueError(f"refused: {head[0]!r}")
    length = next(
        int(field.split(b":")[1]) for field in head if field.startswith(b"content-length")
    )
    body = reader.read(length)
    if len(body) != length:
        raise ValueError(f"{len(body)} bytes of a body of {length}")
    return b"connection: close\r\n" in head


@contextlib.contextmanager
def run_clients(
    places: list[str], each: int = 2
) -> Iterator[tuple[list[LoadClient], threading.Event]]:
    """Run clients at every address, `each` with persistent and with new connections."""
    stopping = threading.Event()
    clients = [
        LoadClient(place, keep=keep, stopping=stopping)
        for place in places
        for keep in (True, False)
        for _ in range(each)
    ]
    for client in clients:
        client.start()
    try:
        yield clients, stopping
    finally:
        for client in clients:
            client.join(PATIENCE)
