"""Attempts on the question for evidence: answers of a hostile server, and hostile proxies."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

from attestkit.client.origin import Origin, origin_of_question
from attestkit.client.wire.question import MAX_HEAD, EvidenceReply, request_evidence
from attestkit.client.wire.steps import Receive, Send
from attestkit.client.wire.tls import open_tls, tls_context
from attestkit.errors import FormatError, ServiceError, UsageError
from tests.attacks.attempts import Surfaces

attacks = Surfaces("connect")
LIMIT: Final = 1 << 18
SECONDS: Final = 10.0
HEAD: Final = b"HTTP/1.1 200 OK\r\n"
BODY: Final = b"Content-Length: 2\r\n\r\n{}"
CHUNKED: Final = b"Transfer-Encoding: chunked\r\n\r\n"
PIECE: Final = 1 << 16


class Server:
    """A server that sends pieces, and counts them.

    Attributes:
        taken: Bytes that the client has read.
        clock: Time of the client, which passes with each piece.
    """

    def __init__(self, pieces: Iterator[bytes], *, seconds: float = 0.0) -> None:
        self._pieces, self._seconds = pieces, seconds
        self._rest = b""
        self.taken = 0
        self.clock = 0.0

    def ask(self) -> EvidenceReply:
        """Ask it a question."""
        steps = request_evidence(
            "a.example", "/x", limit=LIMIT, seconds=SECONDS, clock=lambda: self.clock
        )
        assert isinstance(next(steps), Send)
        step = steps.send(None)
        try:
            while True:
                assert isinstance(step, Receive)
                self._rest = self._rest or next(self._pieces, b"")
                piece, self._rest = self._rest[: step.limit], self._rest[step.limit :]
                self.taken += len(piece)
                self.clock += self._seconds
                step = steps.send(piece)
        except StopIteration as end:
            reply: EvidenceReply = end.value
            return reply


def answered(data: bytes) -> EvidenceReply:
    """Read an answer; an ordinary one is accepted."""
    assert Server(iter([HEAD + BODY])).ask() == EvidenceReply(b"{}", reusable=True)
    return Server(iter([data] if data else [])).ask()


_OTHER: Final[dict[str, tuple[str, bytes, type[FormatError | ServiceError], tuple[str, ...]]]] = {
    "two lengths": ("confuse", HEAD + b"Content-Length: 3\r\n" + BODY, FormatError, ("syntax",)),
    "a length and chunks, with a second answer behind": (
        "confuse",
        HEAD + b"Content-Length: 2\r\n" + CHUNKED + b"2\r\n{}\r\n0\r\n\r\n" + HEAD + BODY,
        FormatError,
        ("syntax", "trailing_data"),
    ),
    "a second answer behind it, for the next request": (
        "confuse",
        HEAD + BODY + HEAD + BODY,
        FormatError,
        ("trailing_data",),
    ),
    "a length in hex": (
        "confuse",
        HEAD + b"Content-Length: 0x2\r\n\r\n{}",
        FormatError,
        ("syntax",),
    ),
    "a length with a sign": (
        "confuse",
        HEAD + b"Content-Length: +2\r\n\r\n{}",
        FormatError,
        ("syntax",),
    ),
    "a length of 40 digits": (
        "exhaust",
        HEAD + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n{}",
        FormatError,
        ("syntax", "too_large"),
    ),
    "chunks inside of gzip": (
        "confuse",
        HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        FormatError,
        ("syntax",),
    ),
    "a chunk of a negative size": (
        "confuse",
        HEAD + CHUNKED + b"-2\r\n{}\r\n0\r\n\r\n",
        FormatError,
        ("syntax",),
    ),
    "a chunk size of 30 digits": (
        "exhaust",
        HEAD + CHUNKED + b"f" * 30 + b"\r\n{}",
        FormatError,
        ("syntax", "too_large"),
    ),
    "a body that claims to be gzip": (
        "confuse",
        HEAD + b"Content-Encoding: gzip\r\n" + BODY,
        FormatError,
        ("unsupported",),
    ),
    "a redirect to another origin": (
        "relay",
        b"HTTP/1.1 307 T\r\nLocation: https://evil.example/\r\n" + BODY,
        ServiceError,
        ("no_attestation",),
    ),
    "a redirect with evidence in its body": (
        "confuse",
        b"HTTP/1.1 300 M\r\n" + BODY,
        ServiceError,
        ("no_attestation",),
    ),
    "the status of a part": (
        "confuse",
        b"HTTP/1.1 206 P\r\nContent-Range: bytes 0-1/9\r\n" + BODY,
        ServiceError,
        ("no_attestation",),
    ),
    "the status of a cache": (
        "replay",
        b"HTTP/1.1 203 N\r\nAge: 9\r\n" + BODY,
        ServiceError,
        ("no_attestation",),
    ),
    "a switch of protocols": (
        "confuse",
        b"HTTP/1.1 101 S\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n{}",
        FormatError,
        ("syntax", "trailing_data"),
    ),
    "the preface of HTTP/2": (
        "confuse",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        FormatError,
        ("syntax",),
    ),
    "a NUL in a header": ("confuse", HEAD + b"X: a\0b\r\n" + BODY, FormatError, ("syntax",)),
    "a header of 200 KiB": (
        "exhaust",
        HEAD + b"X: " + b"a" * 200_000 + b"\r\n" + BODY,
        FormatError,
        ("too_large",),
    ),
    "a space before the colon of its length": (
        "confuse",
        HEAD + b"Content-Length : 2\r\n\r\n{}",
        FormatError,
        ("syntax",),
    ),
    "half of its body": (
        "confuse",
        HEAD + b"Content-Length: 9\r\n\r\n{}",
        ServiceError,
        ("connection",),
    ),
    "nothing": ("exhaust", b"", ServiceError, ("connection",)),
}

for _name, (_kind, _data, _error, _reasons) in _OTHER.items():
    attacks.add(
        _kind,  # type: ignore[arg-type] # one of the kinds
        f"answer to the question with {_name}",
        partial(answered, _data),
        _error,
        *_reasons,
    )


def _endless(start: bytes, unit: bytes) -> Iterator[bytes]:
    yield start or unit
    while True:
        yield unit * (PIECE // len(unit))


def _is_bounded(start: bytes, unit: bytes) -> None:
    """Read an endless answer, which takes no more than the limit and some framing."""
    server = Server(_endless(start, unit))
    before = time.process_time()
    try:
        server.ask()
    finally:
        assert server.taken <= LIMIT + MAX_HEAD + 2 * PIECE
        assert time.process_time() - before < 3


_ENDLESS: Final[dict[str, tuple[bytes, bytes]]] = {
    "interim answers": (b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"),
    "headers": (HEAD, b"X-A: b\r\n"),
    "a header without a line feed": (HEAD + b"X: ", b"a" * 64),
    "spaces before the status": (b"", b" "),
    "line feeds before the status": (b"", b"\r\n"),
    "one byte for each chunk": (HEAD + CHUNKED, b"1\r\n{\r\n" * 64),
    "extensions of a chunk": (HEAD + CHUNKED + b"1;", b"a=b;"),
    "a large chunk": (HEAD + CHUNKED + b"fffffff\r\n", b" "),
    "headers behind the chunks": (HEAD + CHUNKED + b"0\r\n", b"X-A: b\r\n"),
    "a body without a length": (HEAD + b"\r\n", b"[]"),
}

for _name, (_start, _unit) in _ENDLESS.items():
    attacks.add(
        "exhaust",
        f"answer to the question of endless {_name}",
        partial(_is_bounded, _start, _unit),
        FormatError,
        "too_large",
        "syntax",
    )


@attacks.attempt("exhaust", ServiceError, "timeout")
def answer_that_drips() -> None:
    """Each byte comes in time; the answer as a whole does not."""
    answered(HEAD + BODY)
    server = Server(iter(b"%c" % byte for byte in HEAD + BODY), seconds=0.5)
    try:
        server.ask()
    finally:
        assert server.clock <= SECONDS + 0.5


# -- URLs ------------------------------------------------------------------------------------------

for _name, _url, _reasons in (
    ("a user that looks like the host", "https://bank.example@evil.example/", ("wrong_value",)),
    ("a backslash before the host", "https:\\\\bank.example/", ("encoding",)),
    ("a backslash behind the host", "https://bank.example\\@evil.example", ("wrong_value",)),
    ("letters of another script", "https://b\u0430nk.example/", ("encoding",)),
    ("a dot of another script", "https://bank\u3002example/", ("encoding",)),
    ("a percent sign in the host", "https://bank%2eexample/", ("wrong_value",)),
    ("a line feed", "https://bank.example/\r\nHost: evil", ("encoding",)),
    ("a tab inside", "https://bank.exa\tmple/", ("encoding",)),
    ("a scheme in another case, plain", "HTTP://bank.example/", ("plain_http",)),
    ("another scheme", "wss://bank.example/", ("wrong_value",)),
    ("no slashes", "https:bank.example", ("wrong_value",)),
    ("three slashes", "https:///bank.example", ("wrong_value",)),
    ("a port of another script", "https://bank.example:\u0664", ("encoding",)),
    ("a port with a sign", "https://bank.example:+443", ("wrong_value",)),
    ("a port over all", "https://bank.example:65979", ("wrong_value",)),
    ("the port 0", "https://bank.example:0", ("wrong_value",)),
    ("a fragment that hides the rest", "https://bank.example#.evil.example", ("wrong_value",)),
    ("a query that hides the rest", "https://bank.example?.evil.example", ("wrong_value",)),
    ("an address in brackets with a zone", "https://[fe80::1%25eth0]/", ("wrong_value",)),
    ("a name in brackets", "https://[bank.example]/", ("wrong_value",)),
    ("two final dots", "https://bank.example../", ("wrong_value",)),
):
    attacks.add("confuse", f"URL with {_name}", partial(Origin.of, _url), UsageError, *_reasons)


@attacks.attempt("confuse", UsageError, "wrong_value")
def question_for_another_port_that_names_another_host() -> None:
    """The port of a service's question cannot end the host before it."""
    own = Origin.of("https://bank.example")
    assert origin_of_question(":29343", own) == own._replace(port=29343)
    origin_of_question(":443@evil.example", own)


# -- proxies ---------------------------------------------------------------------------------------


@contextmanager
def _proxy(start: bytes, unit: bytes, pause: float) -> Iterator[str]:
    """Run a proxy whose answer to CONNECT, or whose handshake, does not end."""
    done = threading.Event()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            try:
                connection.sendall(start)
                while not done.wait(pause):
                    connection.sendall(unit)
            except OSError:
                return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            done.set()
            thread.join(10)


def _through(start: bytes, unit: bytes, pause: float) -> None:
    """Open a connection through a proxy; it fails in time."""
    seconds = 0.3
    with _proxy(start, unit, pause) as url:
        before = time.monotonic()
        try:
            open_tls("a.example", 443, tls_context(), proxy=url, seconds=seconds).close()
        finally:
            assert time.monotonic() - before < seconds + 1


for _name, _start, _unit, _pause in (
    ("headers that drip", b"HTTP/1.1 200 OK\r\n", b"X: a\r\n", 0.05),
    ("a status that drips", b"HTTP/1.1 200 ", b"a", 0.05),
    ("one header that drips", b"HTTP/1.1 200 OK\r\nX: ", b"a", 0.05),
    (
        "a tunnel in which the handshake drips",
        b"HTTP/1.1 200 OK\r\n\r\n\x16\x03\x03\x10\x00",
        b"\2",
        0.05,
    ),
):
    attacks.add(
        "exhaust",
        f"proxy with {_name}",
        partial(_through, _start, _unit, _pause),
        ServiceError,
        "timeout",
        "connection",
    )
for _name, _start, _unit in (
    ("endless headers", b"HTTP/1.1 200 OK\r\n", b"X: a\r\n" * 1000),
    ("an endless status", b"HTTP/1.1 200 ", b"a" * 4096),
):
    attacks.add(
        "exhaust",
        f"proxy with {_name}",
        partial(_through, _start, _unit, 0.0),
        ServiceError,
        "timeout",
        "connection",
    )
