"""Clients that send or read slowly cannot make the server hold more than its limits say."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.serve.client import Connection, call
from tests.serve.server import Server, running_server

MIB = 1 << 20
BODY = 8 * MIB
SENDERS = 24
HELD = 16  # MiB of bodies that may be held
SLACK = 24  # MiB: buffers of the loop, and what the allocator keeps


@pytest.fixture
def server() -> Iterator[Server]:
    """A server that holds few bodies, and gives up on nobody meanwhile."""
    with running_server("--limit", f"bodies={HELD}MiB") as server:
        call(server.dstack, "Info")
        yield server
        server.check_log()


def memory(server: Server) -> int:
    """Return the largest resident memory that the server ever had, in MiB."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) // 1024


def connect(server: Server) -> socket.socket:
    """Connect to dstack.sock."""
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(60)
    client.connect(server.dstack)
    return client


def send_most(client: socket.socket) -> bytes:
    """Send a large request but for its last byte; return what comes back, if anything does."""
    client.sendall(
        b"POST /Version HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n" % BODY
    )
    try:
        client.sendall(bytes(BODY - 1))
        client.settimeout(0.01)
        return client.recv(4096)
    except TimeoutError:
        return b""
    except ConnectionError:  # refused while we were sending; the answer is there all the same
        return client.recv(4096)


def test_large_bodies_that_do_not_end(server: Server) -> None:
    """Some are held, the others are refused with 503, and small requests are served as ever."""
    before = memory(server)
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(server)) for _ in range(SENDERS)]
        answers = [send_most(client) for client in clients]
        refused = [answer for answer in answers if answer]
        assert all(answer.startswith(b"HTTP/1.1 503 ") for answer in refused)
        assert all(b"too many large requests" in answer for answer in refused)
        assert SENDERS - HELD * MIB // BODY - 1 <= len(refused) < SENDERS
        assert call(server.dstack, "Version").status == 200
        assert memory(server) - before < HELD + SLACK
    connection = Connection(server.dstack)
    whole = connection.send_request("POST", "/Version?json", bytes(BODY))
    connection.close()
    assert whole.status == 200  # what the others held has been given back


def test_answers_that_nobody_takes(server: Server) -> None:
    """Requests for 400 MB of answers in one go: they wait until the client takes some."""
    before = memory(server)
    request = b"GET /Info HTTP/1.1\r\nHost: x\r\n\r\n"
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(server)) for _ in range(4)]
        for client in clients:
            client.settimeout(0)
            sent = 0
            wanted = request * 4000
            while sent < len(wanted):
                try:
                    sent += client.send(wanted[sent:])
                except BlockingIOError:
                    break  # the server takes no more of them either
            assert sent > 100 * len(request)
        assert call(server.dstack, "Version").status == 200
        assert memory(server) - before < SLACK
