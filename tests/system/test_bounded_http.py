"""A request is sent in one write, and its answer is read even if sending failed."""

import socket
import threading

import pytest

from attestkit._system.bounded_http import (
    ExchangeError,
    Request,
    Response,
    ResponseLimits,
    connect_tcp,
    exchange,
)

REQUEST = Request("POST", "a", "/", {}, b"{}")
ANSWER = b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno"


def ask(sock: socket.socket, body: int = 100, seconds: float = 20.0) -> Response:
    """Exchange the request on a connected socket, which is closed."""
    return exchange(lambda _time_left: sock, REQUEST, ResponseLimits(10_000, body, seconds))


def test_answer_of_closed_connection_is_read() -> None:
    """A server that answered and closed before the request has its answer read."""
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(ANSWER)
    with pytest.raises(BrokenPipeError):
        ours.sendall(b"x")
    found = ask(ours)
    assert (found.status, found.body) == (404, b"no")
    assert ours.fileno() == -1


def test_request_is_one_write() -> None:
    """Head and body arrive together, so that no later write of the body can fail."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    found: list[Response] = []
    with theirs:
        client = threading.Thread(target=lambda: found.append(ask(ours)))
        client.start()
        assert theirs.recv(1000) == REQUEST.encode()
        theirs.sendall(ANSWER)
        client.join(20)
    assert [one.status for one in found] == [404]


@pytest.mark.parametrize(
    "request_",
    [
        REQUEST._replace(target="/a b"),
        REQUEST._replace(target="/\r\nX: y"),
        REQUEST._replace(host="a\nb"),
        REQUEST._replace(headers={"X": "a\r\nb"}),
        REQUEST._replace(headers={"\xe9": "a"}),
    ],
)
def test_request_with_line_break_is_malformed(request_: Request) -> None:
    """Line breaks, spaces in the target and non-ASCII characters are never sent."""
    with pytest.raises(ExchangeError) as caught:
        exchange(lambda _time_left: pytest.fail("connected"), request_, ResponseLimits(1, 1, 1))
    assert caught.value.kind == "malformed"


def test_failed_send_without_answer_is_its_error() -> None:
    """Without an answer the error is that of sending; a reset is one, too."""
    ours, theirs = socket.socketpair()
    theirs.close()
    with pytest.raises(ExchangeError) as caught:
        ask(ours)
    assert caught.value.kind == "connection"
    assert isinstance(caught.value.__cause__, BrokenPipeError)


def answer_once(server: socket.socket, answer: bytes) -> None:
    """Read the request, answer, and close."""
    server.settimeout(20)
    with server:
        server.recv(1000)
        server.sendall(answer)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (ANSWER[:-1], "truncated"),
        (b"", "connection"),
        (b"x\r\n\r\n", "malformed"),
        (ANSWER.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n"), "malformed"),
        (ANSWER.replace(b": 2", b": 101"), "too_large"),
        (b"HTTP/1.1 200 OK\r\n" + b"a: " + 20_000 * b"b", "too_large"),
    ],
    ids=["truncated", "nothing", "no HTTP", "encoded", "large body", "large head"],
)
def test_malformed_or_large_answer_is_refused(answer: bytes, kind: str) -> None:
    """Truncated, malformed and too large answers are errors, which have no part of the answer."""
    ours, theirs = socket.socketpair()
    with theirs:
        threading.Thread(target=answer_once, args=(theirs, answer)).start()
        with pytest.raises(ExchangeError) as caught:
            ask(ours)
    assert caught.value.kind == kind
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_silent_server_times_out() -> None:
    """No answer until the limit is a timeout."""
    for seconds in (0.05, -1):
        ours, theirs = socket.socketpair()
        with theirs, pytest.raises(ExchangeError) as caught:
            ask(ours, seconds=seconds)
        assert caught.value.kind == "timed_out"


def test_all_addresses_share_the_time_that_is_left() -> None:
    """A name with many addresses that do not answer takes no more than the whole limit."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        connect_tcp("localhost", port, 5.0, lambda: 5.0).close()
        with pytest.raises(TimeoutError):
            connect_tcp("localhost", port, 5.0, lambda: 0.0)
    with pytest.raises(ConnectionRefusedError):
        connect_tcp("127.0.0.1", port, 5.0, lambda: 5.0)
