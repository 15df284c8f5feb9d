"""One question over HTTP/1.1: whatever the server answers, it is a whole answer or a refusal."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Final, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.client.wire.question import EvidenceReply, request_evidence
from attestkit.client.wire.steps import Receive, Send
from attestkit.errors import AttestKitError, FormatError, ServiceError, UsageError
from tests.raising import raises
from tests.runner.cases import every_case

LIMIT: Final = 1000
SECONDS: Final = 10.0
HEAD: Final = b"HTTP/1.1 200 OK\r\n"


class Asked(NamedTuple):
    """A reply, and what was sent for it."""

    reply: EvidenceReply
    sent: bytes


def answer(*pieces: bytes, clock: Iterator[float] | None = None, host: str = "a.example") -> Asked:
    """Ask, and give the pieces as they are received; then the stream ends."""
    ticks = clock or iter(lambda: 0.0, None)
    steps = request_evidence(
        host, "/x?nonce=00", limit=LIMIT, seconds=SECONDS, clock=lambda: next(ticks)
    )
    step = next(steps)
    assert isinstance(step, Send)
    sent, left = step.data, list(pieces)
    try:
        step = steps.send(None)
        while True:
            assert isinstance(step, Receive)
            assert 0 < step.seconds <= SECONDS
            step = steps.send(left.pop(0) if left else b"")
    except StopIteration as end:
        return Asked(end.value, sent)


def with_length(body: bytes, *headers: bytes) -> bytes:
    """Return an answer with a length."""
    lines = [b"Content-Length: %d" % len(body), *headers]
    return HEAD + b"\r\n".join(lines) + b"\r\n\r\n" + body


def chunked(*chunks: bytes) -> bytes:
    """Return an answer in chunks."""
    parts = [b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in (*chunks, b"")]
    return HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(parts)


def test_request_has_nothing_of_the_users() -> None:
    """A GET with the host, and headers of the library alone."""
    sent = answer(with_length(b"ok")).sent
    assert sent == (
        b"GET /x?nonce=00 HTTP/1.1\r\nHost: a.example\r\nAccept: application/json, */*\r\n"
        b"Accept-Encoding: identity\r\nUser-Agent: attestkit\r\n\r\n"
    )


@pytest.mark.parametrize("whole", [with_length(b"body"), chunked(b"bo", b"dy")])
def test_whole_answers(whole: bytes) -> None:
    """In one piece, and cut into two at every place; the connection can be used again."""
    for at in range(1, len(whole)):
        assert answer(whole[:at], whole[at:]).reply == EvidenceReply(b"body", reusable=True)
    assert answer(*(whole[at : at + 1] for at in range(len(whole)))).reply.body == b"body"


@pytest.mark.parametrize("whole", [with_length(b"body"), chunked(b"bo", b"dy")])
def test_every_cut_is_refused(whole: bytes) -> None:
    """An answer that ends early is refused."""
    for length in range(len(whole)):
        with raises(ServiceError, "connection"):
            answer(whole[:length])


@given(st.binary(max_size=LIMIT), st.lists(st.integers(0, 1200), max_size=5))
def test_bodies_survive(body: bytes, cuts: list[int]) -> None:
    """Any body, in any pieces."""
    for whole in (with_length(body), chunked(*([body] if body else []))):
        places = sorted({0, *(at for at in cuts if at < len(whole)), len(whole)})
        pieces = [whole[start:end] for start, end in pairwise(places)]
        assert answer(*pieces).reply.body == body


@given(st.binary(max_size=200), st.sampled_from([b"", HEAD, with_length(b"body"), chunked(b"b")]))
def test_any_bytes(data: bytes, start: bytes) -> None:
    """They are an answer with status 200, or an error of attestkit."""
    for pieces in ([start, data], [data, start]):
        try:
            found = answer(*(piece for piece in pieces if piece)).reply
        except AttestKitError:
            continue
        assert len(found.body) <= LIMIT


@every_case(
    ("head", "reusable"),
    [
        (with_length(b"", b"Connection: close"), False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", False),
        (HEAD + b"\r\n", False),  # until the end of the stream
        (b"HTTP/1.1 103 Early Hints\r\n\r\n" + with_length(b""), True),
        (with_length(b"", b"Content-Encoding: identity"), True),
    ],
)
def test_connection_afterwards(head: bytes, *, reusable: bool) -> None:
    """It is known whether the connection takes another request."""
    assert answer(head).reply == EvidenceReply(b"", reusable=reusable)


def test_body_until_the_end_of_the_stream() -> None:
    """An answer without length ends with the connection."""
    assert answer(HEAD + b"\r\nbo", b"dy").reply == EvidenceReply(b"body", reusable=False)


@every_case(
    ("data", "kind", "reason"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", ServiceError, "no_attestation"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", ServiceError, "no_attestation"),
        (b"HTTP/1.1 500 Oops\r\n\r\n", ServiceError, "no_attestation"),
        (b"HTTP/1.1 302 Found\r\nLocation: /y\r\n\r\n", ServiceError, "no_attestation"),
        (with_length(b"", b"Content-Encoding: gzip"), FormatError, "unsupported"),
        (with_length(b"x" * (LIMIT + 1)), FormatError, "too_large"),
        (chunked(b"x" * LIMIT, b"x"), FormatError, "too_large"),
        (HEAD + b"\r\n" + b"x" * (LIMIT + 1), FormatError, "too_large"),
        (with_length(b"ok") + b"more", FormatError, "trailing_data"),
        (with_length(b"ok") + with_length(b"ok"), FormatError, "trailing_data"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", FormatError, "syntax"),
        (b"HTTP/2 200\r\n\r\n", FormatError, "syntax"),
        (HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nok", FormatError, "syntax"),
        (HEAD + b"Transfer-Encoding: gzip\r\n\r\n", FormatError, "syntax"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", FormatError, "syntax"),
        (HEAD + b"X: " + b"x" * 70_000, FormatError, "too_large"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", FormatError, "syntax"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 3000, FormatError, "too_large"),
    ],
)
def test_other_answers(data: bytes, kind: type[AttestKitError], reason: str) -> None:
    """Each is refused, in pieces of 64 KiB as they are read."""
    with pytest.raises(kind) as caught:
        answer(*(data[at : at + 65536] for at in range(0, len(data), 65536)))
    assert (type(caught.value), caught.value.reason) == (kind, reason)


def test_slow_answer_is_refused() -> None:
    """The time is for the whole exchange, not for each piece."""
    whole = with_length(b"body")
    pieces = [whole[at : at + 1] for at in range(len(whole))]
    with raises(ServiceError, "timeout"):
        answer(*pieces, clock=iter(range(100)))


def test_text_of_the_server_is_not_shown() -> None:
    """An error names host and path, without the nonce and without what was received."""
    with raises(ServiceError, "no_attestation", start="a.example: /x: ") as caught:
        answer(b"HTTP/1.1 404 \x1b[31mred\r\n\r\n")
    assert "nonce" not in str(caught.value)
    assert "red" not in str(caught.value)


@pytest.mark.parametrize("target", ["/a b", "/ä", "/\r\nHost: b.example"])
def test_target_is_checked(target: str) -> None:
    """Nothing is sent that would be another request."""
    with raises(UsageError, "encoding"):
        next(request_evidence("a.example", target, limit=LIMIT, seconds=SECONDS))


def test_headers_are_checked() -> None:
    """A header has one line."""
    headers = (("X-One", "1\r\nX-Two: 2"),)
    with raises(UsageError, "encoding"):
        next(request_evidence("a.example", "/", headers, limit=LIMIT, seconds=SECONDS))
