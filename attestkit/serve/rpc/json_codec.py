"""Messages in JSON: bytes as hex, every field present and in order, ASCII only.

Requests are strict where a mistake could hide (wrong types, `null`, a field given twice) and
lenient where clients differ (unknown fields, letter case of hex, `0x`). Responses are compact and
ASCII, because one of the official clients counts characters where it should count bytes.
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

__all__ = ["Prepared", "decode", "encode", "encode_members", "escaped", "hex_bytes"]

M = TypeVar("M", bound=NamedTuple)

MAX_UINT64 = 2**64 - 1
_ABSENT = object()
_NAMES = {str: "a string", bool: "a boolean", int: "a number", bytes: "a string of hex digits"}
_SMALL = 64 * 1024  # bytes of a body that may be made objects of, whatever they are
_USUAL_RECURSION = 5000
_parse = msgspec.json.Decoder().decode
_parse_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_parse_strings = msgspec.json.Decoder(list[str]).decode


class Prepared(Generic[M]):
    """A response whose JSON is there before anybody asks for it, or most of it.

    Attributes:
        json: Its JSON, in pieces.
        protobuf: Its binary form, once somebody has asked for it.
    """

    __slots__ = ("_make", "json", "protobuf")

    def __init__(self, json: Sequence[bytes], make: Callable[[], M]) -> None:
        """Take the JSON of a response; `make` returns the response itself."""
        self.json: Sequence[bytes] = json
        self.protobuf: Sequence[bytes] | None = None
        self._make = make

    @property
    def message(self) -> M:
        """The response, made for whoever asks."""
        return self._make()


def decode(message: type[M], body: bytes) -> M:
    """Return the message in a JSON `body`; an empty body is a message of defaults.

    Raises:
        FormatError: the body is no JSON object, or a field has the wrong type or is given twice.
    """
    if not body:
        return defaults_of(message)
    try:
        if len(body) > MAX_DEPTH and not _is_bounded(body):  # what is shorter cannot nest deeper
            check_depth(body)
        found = _parse(body) if len(body) <= _SMALL else _large_members(message, body)
        # Each member brings a colon, so as many colons as members: no name came twice.
        if len(body) <= _SMALL and type(found) is dict and body.count(b":") != len(found):
            _refuse_repeated(message, json.loads(body, object_pairs_hook=list))
    except FormatError:
        raise
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise FormatError("the body is not valid JSON") from error
    if type(found) is not dict:
        raise FormatError("the body is not a JSON object")
    get = found.get
    values = []
    for name, convert, default in _decoders(message):
        value = get(name, _ABSENT)
        values.append(default if value is _ABSENT else convert(name, value))
    return message._make(values)


def _is_bounded(body: bytes) -> bool:
    """Tell whether the parser's own bound on nesting is enough for a large body.

    To count the brackets of ten megabytes takes milliseconds, and two seconds in plain Python. The
    parser stops at the interpreter's limit, which is far from the end of the stack unless a library
    has raised it.
    """
    return len(body) > _SMALL and sys.getrecursionlimit() <= _USUAL_RECURSION


def _refuse_repeated(message: type[M], members: list[tuple[str, object]]) -> None:
    names = [name for name, _ in members]
    for field in fields_of(message):
        if names.count(field.name) > 1:
            raise FormatError(f"{field.name} is given twice")


def _large_members(message: type[M], body: bytes) -> dict[str, object]:
    """Return the known members of a large object, without making objects of all the others.

    Ten megabytes of `[],[],[],...` would take seconds, in which nobody else is served.
    """
    if body.lstrip(b" \t\r\n")[:1] != b"{":
        raise FormatError("the body is not a JSON object")
    if not body.isascii():
        body.decode()  # the parser does not look into texts that it skips
    raw = {name: bytes(value) for name, value in _parse_members(body).items()}
    inside = sum(value.count(b":") for value in raw.values())
    in_names = sum(name.count(":") for name in raw)
    # One that is escaped in a name is none in the body, and would stand for that of a name's twin.
    hidden = in_names and (b"\\u003a" in body or b"\\u003A" in body)
    if hidden or body.count(b":") != len(raw) + inside + in_names:
        raise FormatError("in a large body each name is given once, and its colons are not escaped")
    fields = {field.name: field for field in fields_of(message)}
    return {
        name: _large_value(fields[name], value) for name, value in raw.items() if name in fields
    }


def _large_value(field: Field, raw: bytes) -> object:
    if raw[:1] in {b"[", b"{"}:
        if not (field.repeated and raw[:1] == b"["):
            return {}  # of the wrong type, whatever is in it
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
                raise FormatError(f"{name} must be an array")
            return tuple([one(name, item) for item in value])

        return several
    if field.optional:
        return lambda name, value: None if value is None else one(name, value)
    return one


def _wrong(name: str, kind: type) -> FormatError:
    return FormatError(f"{name} must be {_NAMES[kind]}")


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
        raise FormatError(f"{name} must fit 64 bits without sign")
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
    """Return the bytes that hex `text` of the field `name` stands for; a leading `0x` is allowed.

    Raises:
        FormatError: an odd number of digits, or another character.
    """
    try:
        return unhexlify(text.removeprefix("0x"))
    except ValueError as error:
        raise FormatError(f"{name} is not valid hex") from error


def encode(message: "NamedTuple | Prepared[Any] | None") -> Sequence[bytes]:
    """Return the JSON of a response in pieces: compact ASCII, `null` for an empty one."""
    if message is None:
        return (b"null",)
    if isinstance(message, Prepared):
        return message.json
    parts: list[bytes] = []
    for _, start, value in encode_members(message):
        parts += start, value
    parts[0] = b"{" + parts[0][1:]  # where the others have a comma
    parts.append(b"}")
    return parts


def encode_members(message: NamedTuple) -> Iterator[tuple[str, bytes, bytes]]:
    """Yield the members of a response in JSON: the name, then as bytes comma and key, and value."""
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


def escaped(text: str) -> bytes:
    """Return a text as it stands between the quotes in JSON."""
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
