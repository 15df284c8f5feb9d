"""Slow clients cannot make the server exceed its memory limits."""

import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest

from tests.serve.client import Connection, call, connect
from tests.serve.server import Server, running_server

MIB = 1 << 20
BODY = 8 * MIB
SENDERS = 24
HELD = 16  # MiB of request bodies in memory
SLACK = 24  # MiB for buffers and the allocator
SECONDS = 30  # limit of the time until all refusals have come


@pytest.fixture
def server() -> Iterator[Server]:
    """Return a server with a low limit for bodies and default timeouts."""
    options = ("--limit", f"bodies={HELD}MiB", "--limit", f"verifier_body={BODY // MIB}MiB")
    with running_server(*options, "--verifier", "127.0.0.1:0") as server:
        call(server.dstack, "Info")
        yield server
        server.check_log()


def read_peak_memory(server: Server) -> int:
    """Return the server's peak resident memory in MiB."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) // 1024


def send_incomplete_request(client: socket.socket, target: bytes) -> None:
    """Send a large request without its last byte, or as much of it as the server reads."""
    client.sendall(
        b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n" % (target, BODY)
    )
    with suppress(ConnectionError):  # refused while sending; the response can still be read
        client.sendall(bytes(BODY - 1))


def read_responses(clients: list[socket.socket], count: int) -> list[bytes]:
    """Wait until `count` clients have a response; return all that have come."""
    deadline = time.monotonic() + SECONDS
    waiting, responses = list(clients), list[bytes]()
    while len(responses) < count and time.monotonic() < deadline:
        readable, _, _ = select.select(waiting, (), (), 1)
        responses += [client.recv(4096) for client in readable]
        waiting = [client for client in waiting if client not in readable]
    return responses


@pytest.mark.parametrize(
    ("listener", "target", "small", "status"),
    [("dstack", "/Version?json", "/Version", 200), ("verifier", "/verify", "/health", 400)],
)
def test_incomplete_large_bodies_are_limited(
    server: Server, listener: str, target: str, small: str, status: int
) -> None:
    """Bodies over the limit are refused with 503; small requests are served."""
    endpoint, before = server.ready[listener], read_peak_memory(server)
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(endpoint)) for _ in range(SENDERS)]
        for client in clients:
            send_incomplete_request(client, target.encode())
        refused = read_responses(clients, SENDERS - HELD * MIB // BODY)
        assert all(answer.startswith(b"HTTP/1.1 503 ") for answer in refused)
        assert all(b"too many large requests" in answer for answer in refused)
        assert SENDERS - HELD * MIB // BODY <= len(refused) < SENDERS
        with closing(Connection(endpoint)) as connection:
            assert connection.send_request("GET", small).status == 200
        assert read_peak_memory(server) - before < HELD + SLACK
    with closing(Connection(endpoint)) as connection:
        whole = connection.send_request("POST", target, bytes(BODY))
    assert whole.status == status  # the memory of the other bodies has been released


def test_unread_responses_are_limited(server: Server) -> None:
    """Requests for 400 MB of responses wait until the client reads."""
    before = read_peak_memory(server)
    request = b"GET /Info HTTP/1.1\r\nHost: x\r\n\r\n"
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(server.dstack)) for _ in range(4)]
        for client in clients:
            client.settimeout(0)
            sent = 0
            wanted = request * 4000
            while sent < len(wanted):
                try:
                    sent += client.send(wanted[sent:])
                except BlockingIOError:
                    break  # the server reads no more requests
            assert sent > 100 * len(request)
        assert call(server.dstack, "Version").status == 200
        assert read_peak_memory(server) - before < SLACK
