"""A load generator: requests over keep-alive connections to a socket, as fast as they go.

It looks for nothing but the end of a response, so that the server is what is measured.
"""

import select
import socket
import time
from pathlib import Path
from typing import NamedTuple

__all__ = ["Address", "Contestant", "Load", "generate", "post"]

Address = str | tuple[str, int]
"""Path of a unix socket, or host and port."""


class Load(NamedTuple):
    """What came of it."""

    requests: int
    seconds: float
    size: int  # bytes of one response, head and body


def post(path: str, body: bytes) -> bytes:
    """Return the bytes of a request."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Contestant(NamedTuple):
    """A server: its socket and its process."""

    address: Address
    process: int

    def measure(self, request: bytes, seconds: float, connections: int = 16) -> tuple[float, float]:
        """Return its processor's seconds per request, and the share of the time that it had."""
        before, begin = self.worked(), time.perf_counter()
        load = generate(self.address, request, connections=connections, seconds=seconds)
        worked = self.worked() - before
        return worked / load.requests, worked / (time.perf_counter() - begin)

    def worked(self) -> float:
        """Return the seconds of processor time that its threads have used."""
        threads = Path(f"/proc/{self.process}/task").glob("*/schedstat")
        return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


def generate(
    address: Address, request: bytes, *, connections: int = 16, seconds: float = 1.0
) -> Load:
    """Send `request` over and over on `connections` connections; count for `seconds`.

    Every response must be a 200 and of the same size as the first.
    """
    clients = [_connect(address) for _ in range(connections)]
    size = _one(clients[0], request)
    epoll = select.epoll()
    by_number = {}
    for client in clients:
        epoll.register(client.fileno(), select.EPOLLIN)
        by_number[client.fileno()] = (client.recv_into, client.sendall)
    missing = dict.fromkeys(by_number, size)
    buffer = bytearray(1 << 18)
    for client in clients:
        client.sendall(request)
    done, begin = 0, time.perf_counter()
    end = begin + seconds
    while (now := time.perf_counter()) < end:
        for number, _ in epoll.poll(5):
            receive, send = by_number[number]
            missing[number] -= receive(buffer)
            if missing[number] <= 0:
                assert missing[number] == 0, "a response of another size"
                missing[number] = size
                done += 1
                send(request)
    epoll.close()
    for client in clients:
        client.close()
    return Load(done, now - begin, size)


def _connect(address: Address) -> socket.socket:
    if not isinstance(address, str):
        return socket.create_connection(address)
    client = socket.socket(socket.AF_UNIX)
    client.connect(address)
    return client


def _one(client: socket.socket, request: bytes) -> int:
    """Send one request; return the size of its response."""
    client.sendall(request)
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += client.recv(1 << 16)
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    assert lines[0].startswith(b"http/1.1 200"), answer
    [length] = (int(line[15:]) for line in lines if line.startswith(b"content-length:"))
    missing = length - len(body)
    while missing:
        missing -= len(client.recv(min(missing, 1 << 16)))
    return len(head) + 4 + length
