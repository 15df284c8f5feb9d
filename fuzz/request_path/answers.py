"""What every answer of every listener must be, whatever was asked."""

import base64
import json
import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

__all__ = ["Answer", "BrokenPromiseError", "check", "read_answers"]

_AGENT: Final = frozenset({200, 400, 404, 408, 413, 431, 500, 503})
STATUSES: Final[Mapping[str, frozenset[int]]] = {
    **dict.fromkeys(("dstack", "tappd", "http", "dev_http"), _AGENT),
    "verifier": _AGENT | {422},
    "pccs": frozenset({200, 400, 404, 405, 408, 431}),
}
"""The documented statuses of each listener."""

_STRANGERS: Final = frozenset({"http", "pccs", "verifier"})  # nobody there gets a private key
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.1 ([1-5][0-9]{2}) [A-Za-z' -]+")
_FIELD: Final = re.compile(rb"([A-Za-z0-9-]+): ([\t\x20-\x7e]*)")
_CHUNK: Final = re.compile(rb"[0-9a-f]{1,8}")
_TRACES: Final = (b"Traceback (most recent", b'File "/', b"site-packages")


class BrokenPromiseError(AssertionError):
    """An answer, or a connection, is not what is promised."""


class Answer(NamedTuple):
    """One response."""

    status: int
    fields: dict[bytes, bytes]
    body: bytes
    is_last: bool  # it says so
    is_cut: bool = False  # its last chunk is missing, which a client sees


def read_answers(sent: bytes, methods: Sequence[bytes], *, ended: bool) -> list[Answer]:
    """Take apart what a server sent.

    Args:
        sent: All of it.
        methods: Of the requests that it has read, or begun to; what is no request has none.
        ended: Whether the server ended the connection; then an answer may end with it.

    Raises:
        BrokenPromiseError: It is not a row of whole responses.
    """
    found: list[Answer] = []
    while sent:
        head, blank, rest = sent.partition(b"\r\n\r\n")
        _expect(bool(blank), "a head without its end", sent)
        status, fields = _read_head(head)
        if status == 100:
            sent = rest
            continue
        _expect(not (found and found[-1].is_last), "an answer behind the last one", sent)
        method = methods[len(found)] if len(found) < len(methods) else b""
        body, left = _read_body(fields, rest, method, ended=ended)
        is_last = fields.get(b"connection") == b"close"
        found.append(Answer(status, fields, body, is_last, is_cut=left is None))
        sent = left or b""
    return found


def _read_head(head: bytes) -> tuple[int, dict[bytes, bytes]]:
    first, *lines = head.split(b"\r\n")
    status = _STATUS_LINE.fullmatch(first)
    fields: dict[bytes, bytes] = {}
    for line in lines:
        field = _FIELD.fullmatch(line)
        _expect(field is not None, "a header that is none", line)
        assert field is not None
        name = field[1].lower()
        _expect(name not in fields, "a header that is there twice", line)
        fields[name] = field[2]
    _expect(status is not None, "a status line that is none", first)
    assert status is not None
    return int(status[1]), fields


def _read_body(
    fields: dict[bytes, bytes], rest: bytes, method: bytes, *, ended: bool
) -> tuple[bytes, bytes | None]:
    """Return a body, and what is behind it; None where the body is cut off."""
    length = fields.get(b"content-length")
    chunked = fields.get(b"transfer-encoding") == b"chunked"
    _expect(not (chunked and length), "both a length and chunks", rest)
    if method == b"HEAD":
        return b"", rest
    if chunked:
        return _read_chunks(rest, ended=ended)
    if length is None:
        _expect(ended, "a body without an end", rest)
        return rest, b""
    _expect(len(rest) >= int(length), "a body shorter than its length", rest)
    return rest[: int(length)], rest[int(length) :]


def _read_chunks(rest: bytes, *, ended: bool) -> tuple[bytes, bytes | None]:
    body = b""
    while True:
        size, line, rest = rest.partition(b"\r\n")
        if not line and ended:
            return body, None
        _expect(_CHUNK.fullmatch(size) is not None, "a chunk without a size", size)
        count = int(size, 16)
        body, end, rest = body + rest[:count], rest[count : count + 2], rest[count + 2 :]
        _expect(end == b"\r\n", "a chunk without its end", rest)
        if not count:
            return body, rest


def check(listener: str, asked: bytes, answers: Sequence[Answer], secrets: Sequence[bytes]) -> None:
    """Check what answers say.

    Args:
        listener: Its name.
        asked: All that the client sent: what it brought itself may come back.
        answers: What came back.
        secrets: What no answer may hold, as bytes, hex or base64.

    Raises:
        BrokenPromiseError: One holds what it must not, or is not of the form it claims.
    """
    known = asked + unquote_to_bytes(asked)
    forbidden = [*_TRACES, *(b"PRIVATE KEY" for _ in range(listener in _STRANGERS))]
    forbidden += [form for secret in secrets for form in _forms(secret)]
    for answer in answers:
        _expect(answer.status in STATUSES[listener], "an unknown status", b"%d" % answer.status)
        for text in forbidden:
            _expect(text not in answer.body or text in known, "what nobody may see", text)
        if answer.fields.get(b"content-type", b"").startswith(b"application/json") and answer.body:
            _check_json(answer)


def _forms(secret: bytes) -> tuple[bytes, ...]:
    digits = secret.hex().encode()
    # Of base64 the middle, which is the same wherever the secret begins at a third byte.
    return secret, digits, digits.upper(), base64.b64encode(secret)[:40]


def _check_json(answer: Answer) -> None:
    try:
        value = json.loads(answer.body)
    except ValueError:
        raise BrokenPromiseError(f"JSON that is none: {answer.body[:200]!r}") from None
    if answer.status >= 400:
        told = isinstance(value, dict) and isinstance(value.get("error"), str)
        _expect(told, "an error without its text", answer.body)


def _expect(holds: object, problem: str, where: bytes) -> None:
    if not holds:
        raise BrokenPromiseError(f"{problem}: {where[:200]!r}")
