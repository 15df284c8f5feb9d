"""A request is sent in one write, and its answer is read even if sending failed."""

import gc
import socket
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from attestkit._system import bounded_http
from attestkit._system.bounded_http import (
    ExchangeError,
    Request,
    Response,
    ResponseLimits,
    connect_tcp,
    exchange,
)
from tests.runner.cases import every_case

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


@every_case(
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


@every_case(
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


class Held:
    """An object of which a weak reference can be made."""


def after_refused_address(monkeypatch: pytest.MonkeyPatch) -> "weakref.ref[Held]":
    """Connect to the second address of a name; return what a caller held."""
    held = Held()
    real = socket.getaddrinfo
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        refused = (socket.AF_INET, socket.SOCK_STREAM, 6, "", closed.getsockname())
        monkeypatch.setattr(socket, "getaddrinfo", lambda *name: [refused, *real(*name)])
        connect_tcp("127.0.0.1", listener.getsockname()[1], 5.0, lambda: 5.0).close()
    return weakref.ref(held)


def after_failed_write(_monkeypatch: pytest.MonkeyPatch) -> "weakref.ref[Held]":
    """Read the answer of a closed connection; return what a caller held."""
    held = Held()
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(ANSWER)
    assert ask(ours).status == 404
    return weakref.ref(held)


@every_case("succeed", [after_refused_address, after_failed_write])
def test_success_after_an_error_leaves_no_frame(
    succeed: Callable[[pytest.MonkeyPatch], "weakref.ref[Held]"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variables of callers, which may have keys, are freed without the garbage collector."""
    gc.disable()
    try:
        assert succeed(monkeypatch)() is None
    finally:
        gc.enable()


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Make look-ups wait until the test ends; return the names."""
    names, ended = [], threading.Event()
    real = socket.getaddrinfo

    def look_up(host: str, port: int, *arguments: int) -> Any:
        if arguments[-1] != socket.AI_NUMERICHOST:
            names.append(host)
            assert ended.wait(60)
        return real(host, port, *arguments)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    yield names
    ended.set()
    for thread in resolvers():
        thread.join(60)
        assert not thread.is_alive()
    assert bounded_http._look_ups.hanging == 0


def resolvers() -> list[threading.Thread]:
    """Return the threads of look-ups."""
    return [one for one in threading.enumerate() if one.name == "attestkit-resolver"]


def connect_to(host: str, seconds: float = 0.01) -> None:
    """Request a document of a host within a time."""
    limits = ResponseLimits(100, 100, seconds)
    exchange(lambda left: connect_tcp(host, 1, 5.0, left), REQUEST, limits)


def test_name_resolution_shares_the_time_that_is_left(stuck: list[str]) -> None:
    """A resolver without an answer is a timeout; addresses are not looked up."""
    with pytest.raises(ExchangeError) as caught:
        connect_to("localhost")
    assert caught.value.kind == "timed_out"
    for host in ("127.0.0.1", "::1"):
        with pytest.raises(ExchangeError) as caught:
            connect_to(host, 20)
        assert caught.value.kind == "connection"
    assert stuck == ["localhost"]


def test_threads_of_name_resolution_are_bounded(stuck: list[str]) -> None:
    """Look-ups that hang are at most 32; others fail at once, and succeed when these have ended."""
    for _ in range(bounded_http._LOOK_UPS + 3):
        with pytest.raises(ExchangeError) as caught:
            connect_to("localhost")
        assert caught.value.kind == "timed_out"
    assert len(stuck) == len(resolvers()) == bounded_http._LOOK_UPS


def test_failed_name_resolution_is_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The resolver's error is raised; also that of a machine without threads."""
    with pytest.raises(socket.gaierror):
        connect_tcp("attestkit.invalid", 1, 5.0, lambda: 60.0)
    with pytest.raises(UnicodeError):
        connect_tcp("a..b", 1, 5.0, lambda: 60.0)

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(ExchangeError) as caught:
        connect_to("localhost")
    assert caught.value.kind == "connection"
