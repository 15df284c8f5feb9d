"""A request is sent in one write, and its answer is read even if sending failed."""

import socket
import threading
import time
from http.client import HTTPException

import pytest

from attestkit._system.bounded_http import (
    RawResponse,
    ResponseLimits,
    TooLargeError,
    connect_tcp,
    exchange_at_once,
)

REQUEST = b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}"
ANSWER = b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno"


def limits(body: int = 100, seconds: float = 20.0) -> ResponseLimits:
    """Return limits that end after some seconds."""
    deadline = time.monotonic() + seconds
    return ResponseLimits(10_000, body, lambda: deadline - time.monotonic())


def test_answer_of_closed_connection_is_read() -> None:
    """A server that answered and closed before the request has its answer read."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            theirs.sendall(ANSWER)
        with pytest.raises(BrokenPipeError):
            ours.sendall(b"x")
        found = exchange_at_once(ours, limits(), REQUEST)
    assert (found.status, found.body) == (404, b"no")


def test_request_is_one_write() -> None:
    """Head and body arrive together, so that no later write of the body can fail."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    found: list[RawResponse] = []
    with ours, theirs:
        client = threading.Thread(
            target=lambda: found.append(exchange_at_once(ours, limits(), REQUEST))
        )
        client.start()
        assert theirs.recv(1000) == REQUEST
        theirs.sendall(ANSWER)
        client.join(20)
    assert [one.status for one in found] == [404]


def test_failed_send_without_answer_is_its_error() -> None:
    """Without an answer the error is that of sending; a reset is one, too."""
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours, pytest.raises(BrokenPipeError) as caught:
        exchange_at_once(ours, limits(), REQUEST)
    assert caught.value.__cause__ is not caught.value


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (ANSWER[:-1], HTTPException),
        (b"", HTTPException),
        (b"x\r\n\r\n", HTTPException),
        (ANSWER.replace(b": 2", b": 101"), TooLargeError),
        (b"HTTP/1.1 200 OK\r\n" + 3000 * b"a: b\r\n", TooLargeError),
    ],
    ids=["truncated", "nothing", "no HTTP", "large body", "large head"],
)
def test_malformed_or_large_answer_is_refused(answer: bytes, error: type[Exception]) -> None:
    """Truncated, malformed and too large answers are errors."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            theirs.sendall(answer)
        with pytest.raises((error, ConnectionError)) as caught:
            exchange_at_once(ours, limits(), REQUEST)
    assert caught.value.__cause__ is not caught.value


def test_silent_server_times_out() -> None:
    """No answer until the limit is a timeout."""
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(TimeoutError):
        exchange_at_once(ours, limits(seconds=0.05), REQUEST)
    with ours, theirs, pytest.raises(TimeoutError):
        exchange_at_once(ours, limits(seconds=-1), REQUEST)


def test_all_addresses_share_the_time_that_is_left() -> None:
    """A name with many addresses that do not answer takes no more than the whole limit."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        connect_tcp("localhost", port, 5.0, lambda: 5.0).close()
        with pytest.raises(TimeoutError):
            connect_tcp("localhost", port, 5.0, lambda: 0.0)
    with pytest.raises(ConnectionRefusedError):
        connect_tcp("127.0.0.1", port, 5.0, lambda: 5.0)
