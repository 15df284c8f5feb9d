"""JSON codec of messages: bytes as hex, all fields in order, ASCII only.

Requests are strict where a mistake could hide (wrong types, `null`, repeated fields) and lenient
where clients differ (unknown fields, letter case of hex, `0x`). Responses are compact and ASCII,
because one official client counts characters instead of bytes.
"""

import json
import sys
from binascii import hexlify, unhexlify
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from json.encoder import encode_basestring_ascii
from typing import Any, Final, Generic, NamedTuple, TypeVar

import msgspec

from attestkit._formats.strict_json import MAX_DEPTH, check_depth
from attestkit.errors import FormatError
from attestkit.serve.rpc.messages import Field, defaults_of, fields_of

__all__ = ["PreparedResponse", "decode", "encode", "encode_members", "escape", "hex_bytes"]

M = TypeVar("M", bound=NamedTuple)

MAX_UINT64 = 2**64 - 1
_ABSENT = object()
_NAMES = {str: "a string", bool: "a boolean", int: "a number", bytes: "a string of hex digits"}
_SMALL = 64 * 1024  # bytes of a body that may be decoded completely
_USUAL_RECURSION = 5000
_parse = msgspec.json.Decoder().decode
_parse_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_parse_strings = msgspec.json.Decoder(list[str]).decode


class PreparedResponse(Generic[M]):
    """A response that is already encoded as JSON.

    Attributes:
        json: JSON in pieces.
        protobuf: Binary encoding, once it was requested.
    """

    __slots__ = ("_make", "json", "protobuf")

    def __init__(self, json: Sequence[bytes], make: Callable[[], M]) -> None:
        """Store the JSON of a response; `make` returns the message."""
        self.json: Sequence[bytes] = json
        self.protobuf: Sequence[bytes] | None = None
        self._make = make

    @property
    def message(self) -> M:
        """The message, created on each access."""
        return self._make()


def decode(message: type[M], body: bytes) -> M:
    """Return the message in a JSON `body`; an empty body is a message of defaults.

    Raises:
        FormatError: If the body is not a JSON object, or a field is repeated or of a wrong type.
    """
    if not body:
        return defaults_of(message)
    try:
        if len(body) > MAX_DEPTH and not _is_bounded(body):  # shorter bodies cannot nest deeper
            check_depth(body)
        found = _parse(body) if len(body) <= _SMALL else _large_members(message, body)
        # Each member has a colon: an equal number of colons means that no name is repeated.
        if len(body) <= _SMALL and type(found) is dict and body.count(b":") != len(found):
            _refuse_repeated(message, json.loads(body, object_pairs_hook=list))
    except FormatError:
        raise
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise FormatError("request body: not valid JSON", reason="syntax") from error
    if type(found) is not dict:
        raise FormatError("request body: not a JSON object", reason="wrong_type")
    get = found.get
    values = []
    for name, convert, default in _decoders(message):
        value = get(name, _ABSENT)
        values.append(default if value is _ABSENT else convert(name, value))
    return message._make(values)


def _is_bounded(body: bytes) -> bool:
    """Return whether the parser's own limit of nesting suffices for a large body.

    Counting the brackets of ten megabytes takes milliseconds, and two seconds without the C core.
    The parser stops at the interpreter's recursion limit, which is safe unless a library has raised
    it.
    """
    return len(body) > _SMALL and sys.getrecursionlimit() <= _USUAL_RECURSION


def _refuse_repeated(message: type[M], members: list[tuple[str, object]]) -> None:
    names = [name for name, _ in members]
    for field in fields_of(message):
        if names.count(field.name) > 1:
            raise FormatError(f"{field.name}: given more than once", reason="duplicate")


def _large_members(message: type[M], body: bytes) -> dict[str, object]:
    """Return the known members of a large object, without decoding the others.

    Decoding ten megabytes of `[],[],[],...` would block the event loop for seconds.
    """
    if body.lstrip(b" \t\r\n")[:1] != b"{":
        raise FormatError("request body: not a JSON object", reason="wrong_type")
    if not body.isascii():
        body.decode()  # the parser does not validate strings that it skips
    raw = {name: bytes(value) for name, value in _parse_members(body).items()}
    inside = sum(value.count(b":") for value in raw.values())
    in_names = sum(name.count(":") for name in raw)
    # An escaped colon in a name is not counted in the body, and could hide a repeated name.
    hidden = in_names and (b"\\u003a" in body or b"\\u003A" in body)
    if hidden or body.count(b":") != len(raw) + inside + in_names:
        raise FormatError(
            "request body: in a large body, a name given more than once or with an escaped colon",
            reason="duplicate",
        )
    fields = {field.name: field for field in fields_of(message)}
    return {
        name: _large_value(fields[name], value) for name, value in raw.items() if name in fields
    }


def _large_value(field: Field, raw: bytes) -> object:
    if raw[:1] in {b"[", b"{"}:
        if not (field.repeated and raw[:1] == b"["):
            return {}  # a value of the wrong type
        return _parse_strings(raw)
    return _parse(raw)


@cache
def _decoders(message: type[M]) -> tuple[tuple[str, Callable[[str, object], Any], Any], ...]:
    return tuple((f.name, _decoder(f), f.default) for f in fields_of(message))


def _decoder(field: Field) -> Callable[[str, object], Any]:
    one = _READERS[field.kind]
    if field.repeated:

        def several(name: str, value: object) -> tuple[Any, ...]:
            if type(value) is not list:
                raise FormatError(f"{name}: must be an array", reason="wrong_type")
            return tuple([one(name, item) for item in value])

        return several
    if field.optional:
        return lambda name, value: None if value is None else one(name, value)
    return one


def _wrong(name: str, kind: type) -> FormatError:
    return FormatError(f"{name}: must be {_NAMES[kind]}", reason="wrong_type")


def _string(name: str, value: object) -> str:
    if type(value) is str:
        return value
    raise _wrong(name, str)


def _boolean(name: str, value: object) -> bool:
    if type(value) is bool:
        return value
    raise _wrong(name, bool)


def _number(name: str, value: object) -> int:
    if type(value) is not int:
        raise _wrong(name, int)
    if not 0 <= value <= MAX_UINT64:
        raise FormatError(f"{name}: must be 0 to 2^64 - 1", reason="wrong_value")
    return value


def _bytes(name: str, value: object) -> bytes:
    if type(value) is str:
        return hex_bytes(name, value)
    raise _wrong(name, bytes)


_READERS: dict[type, Callable[[str, object], Any]] = {
    str: _string,
    bool: _boolean,
    int: _number,
    bytes: _bytes,
}


def hex_bytes(name: str, text: str) -> bytes:
    """Return the bytes of hex `text` in the field `name`; a leading `0x` is allowed.

    Raises:
        FormatError: If the number of digits is odd, or a character is not a hex digit.
    """
    try:
        return unhexlify(text.removeprefix("0x"))
    except ValueError as error:
        raise FormatError(f"{name}: not valid hex", reason="encoding") from error


def encode(message: "NamedTuple | PreparedResponse[Any] | None") -> Sequence[bytes]:
    """Return the JSON of a response in pieces: compact ASCII; `null` for an empty message."""
    if message is None:
        return (b"null",)
    if isinstance(message, PreparedResponse):
        return message.json
    parts: list[bytes] = []
    for _, start, value in encode_members(message):
        parts += start, value
    parts[0] = b"{" + parts[0][1:]  # replace the comma
    parts.append(b"}")
    return parts


def encode_members(message: NamedTuple) -> Iterator[tuple[str, bytes, bytes]]:
    """Yield each member of a response: its name, its comma and key in JSON, its value in JSON."""
    for (name, start, write, omit), value in zip(_encoders(type(message)), message, strict=True):
        if value or not omit:
            yield name, start, write(value)


@cache
def _encoders(message: type[M]) -> tuple[tuple[str, bytes, Callable[[Any], bytes], bool], ...]:
    return tuple(
        (f.name, f',"{f.name}":'.encode("ascii"), _encoder(f), f.omit_empty)
        for f in fields_of(message)
    )


def _encoder(field: Field) -> Callable[[Any], bytes]:
    one = _WRITERS[field.kind]
    if field.repeated:
        return lambda values: b"[" + b",".join([one(value) for value in values]) + b"]"
    if field.optional:
        return lambda value: b"null" if value is None else one(value)
    return one


def _write_string(value: str) -> bytes:
    return encode_basestring_ascii(value).encode("ascii")


def escape(text: str) -> bytes:
    """Return a text in JSON, without its quotes."""
    return _write_string(text)[1:-1]


_write_boolean: Final[Callable[[bool], bytes]] = {False: b"false", True: b"true"}.__getitem__


def _write_number(value: int) -> bytes:
    return b"%d" % value


def _write_bytes(value: bytes) -> bytes:
    return b'"%b"' % hexlify(value)


_WRITERS: dict[type, Callable[[Any], bytes]] = {
    str: _write_string,
    bool: _write_boolean,
    int: _write_number,
    bytes: _write_bytes,
}
