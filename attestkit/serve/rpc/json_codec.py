"""JSON codec of messages: bytes as hex, all fields in order, ASCII only.

Requests are strict where a mistake could hide (wrong types, `null`, repeated fields) and lenient
where clients differ (unknown fields, letter case of hex, `0x`). Responses are compact and ASCII,
because one official client counts characters instead of bytes.
"""

import sys
from binascii import hexlify, unhexlify
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from json.encoder import encode_basestring_ascii
from typing import Any, Final, Generic, NamedTuple, TypeVar

import msgspec

from attestkit._formats.strict_json import MAX_DEPTH, check_depth
from attestkit.errors import FormatError
from attestkit.serve.rpc.message_fields import UNNUMBERED, Field, defaults_of, fields_of

M = TypeVar("M", bound=NamedTuple)

_NAMES = {str: "a string", bool: "a boolean", int: "a number", bytes: "a string of hex digits"}
_NO_OBJECT = "request body: must be a JSON object"
_SMALL = 64 * 1024  # bytes of a body that may be decoded completely
_USUAL_RECURSION = 5000
_parse_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class PreparedResponse(Generic[M]):
    """A response that is already encoded as JSON.

    Attributes:
        json: JSON in pieces.
        protobuf: Binary encoding in pieces; None until it is first requested.
    """

    __slots__ = ("_make", "json", "protobuf")

    def __init__(self, json: Sequence[bytes], make: Callable[[], M]) -> None:
        """Store the JSON of a response; `make` returns the message."""
        self.json: Sequence[bytes] = json
        self.protobuf: Sequence[bytes] | None = None
        self._make = make

    @classmethod
    def of(cls, message: M) -> "PreparedResponse[M]":
        """Return a response that is encoded now."""
        return cls([b"".join(encode(message))], lambda: message)

    @property
    def message(self) -> M:
        """The message, created on each access."""
        return self._make()


def decode(message: type[M], body: bytes) -> M:
    """Return the message in a JSON `body`; an empty body gives a message with default values.

    Unknown members are skipped without decoding, because decoding a large one (such as ten
    megabytes of empty arrays) would block the event loop for seconds.

    Raises:
        FormatError: If the body is not a JSON object or nested too deeply, a name is repeated, or a
            field has a wrong type, invalid hex, or a number that is out of range.
    """
    if not body or body == b"{}":
        return defaults_of(message)
    name = ""
    try:
        members = _members(body)
        values = []
        for name, read, default in _readers(message):
            raw = members.get(name)
            values.append(default if raw is None else read(raw))
    except msgspec.ValidationError as error:
        problem = f"{name}: must be {_expected(message, name)}" if name else _NO_OBJECT
        raise FormatError(problem, reason="wrong_type") from error
    except FormatError:
        raise
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise FormatError("request body: must be valid JSON", reason="syntax") from error
    return message._make(values)


def _members(body: bytes) -> dict[str, msgspec.Raw]:
    """Return the members of the JSON object in `body` by name, not decoded yet.

    Raises:
        FormatError: If it is malformed or nested too deeply, or a name is repeated.
    """
    if len(body) > MAX_DEPTH and not _is_bounded(body):  # shorter bodies cannot nest deeper
        check_depth(body)
    members = _parse_members(body)
    if not body.isascii():
        body.decode()  # the parser does not validate strings that it skips
    # Each member has a colon: an equal number of colons means that no name is repeated.
    if body.count(b":") != len(members):
        inside = sum(bytes(value).count(b":") for value in members.values())
        in_names = sum(name.count(":") for name in members)
        # An escaped colon in a name is not counted in the body, and could hide a repeated name.
        hidden = in_names and (b"\\u003a" in body or b"\\u003A" in body)
        if hidden or body.count(b":") != len(members) + inside + in_names:
            problem = "must not repeat a name, or escape a colon in a name"
            raise FormatError(f"request body: {problem}", reason="duplicate")
    return members


def _is_bounded(body: bytes) -> bool:
    """Return True if the parser's limit of nesting, the recursion limit, suffices for `body`.

    It does for a large body, unless a library has raised the limit: then, and for small bodies, the
    caller counts brackets, which takes two seconds for ten megabytes without the C core.
    """
    return len(body) > _SMALL and sys.getrecursionlimit() <= _USUAL_RECURSION


@cache
def _readers(message: type[M]) -> tuple[tuple[str, Callable[[msgspec.Raw], Any], Any], ...]:
    return tuple((f.name, _reader(f), f.default) for f in fields_of(message))


def _reader(field: Field) -> Callable[[msgspec.Raw], Any]:
    kind: Any = str if field.kind is bytes else field.kind
    if field.repeated:
        kind = tuple[kind, ...]
    elif field.optional:
        kind = kind | None
    read: Callable[[msgspec.Raw], Any] = msgspec.json.Decoder(kind).decode
    if field.kind is int:
        return lambda raw: _checked(field, read(raw))
    if field.kind is bytes:  # never repeated in a request
        return lambda raw: hex_bytes(field.name, read(raw))
    return read


def _checked(field: Field, value: int | None) -> int | None:
    return None if value is None else checked_number(field, value)


def checked_number(field: Field, value: int) -> int:
    """Return `value`, after checking that it fits the field.

    Raises:
        FormatError: If `value` is negative, or has more than `field.bits` bits.
    """
    if 0 <= value < 1 << field.bits:
        return value
    message = f"{field.name}: must be an integer from 0 to 2^{field.bits} - 1"
    raise FormatError(message, reason="wrong_value")


def _expected(message: type[M], name: str) -> str:
    field = next(field for field in fields_of(message) if field.name == name)
    return f"an array of {_NAMES[field.kind]}" if field.repeated else _NAMES[field.kind]


def hex_bytes(name: str, text: str) -> bytes:
    """Return the bytes of hex `text` in the field `name`; a leading `0x` is allowed.

    Raises:
        FormatError: If the number of digits is odd, or a character is not a hex digit.
    """
    try:
        return unhexlify(text.removeprefix("0x"))
    except ValueError as error:
        raise FormatError(f"{name}: must be pairs of hex digits", reason="encoding") from error


def encode(message: "NamedTuple | PreparedResponse[Any] | None") -> Sequence[bytes]:
    """Return the JSON of a response in pieces: compact ASCII; `null` without a message (None)."""
    if message is None:
        return (b"null",)
    if isinstance(message, PreparedResponse):
        return message.json
    parts: list[bytes] = []
    for _, start, value in encode_members(message):
        parts += start, value
    if not parts:
        return (b"{}",)
    parts[0] = b"{" + parts[0][1:]  # replace the comma
    parts.append(b"}")
    return parts


def encode_members(message: NamedTuple) -> Iterator[tuple[str, bytes, bytes]]:
    """Yield each member of a response: its name, `,"NAME":`, and its value in JSON.

    UNNUMBERED fields without a value (None) are left out.
    """
    for (name, start, write, omit), value in zip(_encoders(type(message)), message, strict=True):
        if value is not None or not omit:
            yield name, start, write(value)


@cache
def _encoders(message: type[M]) -> tuple[tuple[str, bytes, Callable[[Any], bytes], bool], ...]:
    return tuple(
        (f.name, f',"{f.name}":'.encode("ascii"), _encoder(f), f.number == UNNUMBERED)
        for f in fields_of(message)
    )


def _encoder(field: Field) -> Callable[[Any], bytes]:
    one = _write_message if field.nested else _WRITERS[field.kind]
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


def _write_message(value: NamedTuple) -> bytes:
    return b"".join(encode(value))


_WRITERS: dict[type, Callable[[Any], bytes]] = {
    str: _write_string,
    bool: _write_boolean,
    int: _write_number,
    bytes: _write_bytes,
}
