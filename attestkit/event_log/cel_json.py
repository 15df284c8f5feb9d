r"""A Canonical Event Log in JSON: an array of records, or a sequence of them (RFC 7464).

In a sequence every record has the character U+001E before it. Bytes are hex; types and algorithms
are names or numbers, and the numbers are written where the TCG gave no name.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

from attestkit._formats.strict_json import check_depth, decode_at
from attestkit._native import unhex
from attestkit._sanitize import shown
from attestkit.errors import FormatError
from attestkit.event_log.cel_record import (
    ALGORITHMS,
    CONTENT_TYPES,
    FIRMWARE_END,
    MANAGEMENT,
    MANAGEMENT_TYPES,
    MOST_NUMBER,
    NV_INDEX,
    PC_CLIENT,
    STATE_CHANGE,
    STATE_NAMES,
    VERSION,
    CelRecord,
    add_digest,
    check_event_type,
    check_management_type,
    check_state,
    event_type_named,
    number_of,
    other_content,
    placed,
)
from attestkit.event_log.event_types import tcg_name

__all__ = ["KEYS", "RECORD_MARK", "read", "write"]

RECORD_MARK: Final = "\x1e"
"""What a record of a sequence begins with."""

KEYS: Final = frozenset({"recnum", "pcr", "nv_index", "digests", "content_type", "content"})
"""What a record has; one of pcr and nv_index."""

_BLANKS: Final = re.compile(r"[ \t\r\n]*")
_MARKS: Final = re.compile(r"[\x1e \t\r\n]*")
_ALGORITHM_NAMES: Final = {number: name for name, number in ALGORITHMS.items()}


def read(text: str) -> Iterator[CelRecord]:
    """Read the records one by one.

    Raises:
        FormatError: One breaks the format, or something is between them or behind; names place and
            offset, in bytes of the UTF-8 form.
    """
    check_depth(text)
    offset = behind = 0
    cursor = _Cursor(text)
    cursor.pass_over(_BLANKS)
    starts = _sequence if text.startswith(RECORD_MARK, cursor.at) else _array
    for place, start in enumerate(starts(cursor)):
        offset += _bytes_of(text[behind:start])
        behind = start
        try:
            value, cursor.at = decode_at(text, start)
            record = _record(value)
        except FormatError as error:
            raise placed(error, place, offset) from error
        yield record._replace(offset=offset)


class _Cursor:
    """A place in a text, between values that others read."""

    __slots__ = ("at", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.at: int = 0

    def skip(self, mark: str) -> bool:
        """Skip blanks, then `mark` if it is next, and blanks behind it; tell whether it was."""
        self.pass_over(_BLANKS)
        found = self.text.startswith(mark, self.at)
        if found:
            self.at += len(mark)
            self.pass_over(_BLANKS)
        return found

    def pass_over(self, run: re.Pattern[str]) -> None:
        """Skip what a pattern fits here."""
        if found := run.match(self.text, self.at):
            self.at = found.end()

    def ended(self) -> bool:
        """Tell whether the text ends here."""
        return self.at == len(self.text)

    def broken(self, place: int, message: str) -> FormatError:
        """Return the refusal of what is here."""
        return placed(FormatError(message), place, _bytes_of(self.text[: self.at]))


def _array(cursor: _Cursor) -> Iterator[int]:
    """Give where each value of an array begins; the cursor is to be behind it before the next."""
    if not cursor.skip("["):
        raise cursor.broken(0, "an array of records, or a sequence of them, wanted")
    place = 0
    closed = cursor.skip("]")
    while not closed:
        yield cursor.at
        place += 1
        closed = cursor.skip("]")
        if not closed and not cursor.skip(","):
            raise cursor.broken(place, "a comma or the end of the array wanted")
    if not cursor.ended():
        raise cursor.broken(place, "something is behind the array")


def _sequence(cursor: _Cursor) -> Iterator[int]:
    """Give where each value of a sequence begins; the cursor is to be behind it before the next."""
    place = 0
    while True:
        marked = cursor.skip(RECORD_MARK)
        if marked:
            cursor.pass_over(_MARKS)  # several in a row have nothing between them
        if cursor.ended():
            return
        if not marked:
            raise cursor.broken(place, "U+001E wanted before the record")
        yield cursor.at
        place += 1


def _bytes_of(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))


def _record(value: object) -> CelRecord:
    members = _members(value, "a record")
    if unknown := members.keys() - KEYS:
        raise FormatError(f"it has a member {shown(min(unknown))}")
    content_type = _number(members, "content_type", CONTENT_TYPES, "content type")
    if content_type not in {PC_CLIENT, MANAGEMENT}:
        raise other_content(content_type, None)
    if "nv_index" in members:
        if "pcr" in members:
            raise FormatError("it has two registers: pcr and nv_index exclude each other")
        raise FormatError(NV_INDEX, reason="other_log")
    number, index = _number(members, "recnum"), _number(members, "pcr")
    digests: dict[int, bytes] = {}
    for item in _list(members, "digests"):
        digest = _members(item, "a digest", {"hashAlg", "digest"})
        algorithm = _number(digest, "hashAlg", ALGORITHMS, "digest algorithm")
        add_digest(digests, algorithm, _hex(digest, "digest"), None)
    content = members.get("content")
    if content_type == MANAGEMENT:
        return CelRecord(number, index, digests, 0, b"", _management(content))
    event = _members(content, "the content", {"event_type", "event_data"})
    event_type = event.get("event_type")
    if isinstance(event_type, str):
        event_type = event_type_named(event_type, None)
    else:
        event_type = check_event_type(_number(event, "event_type"), None)
    return CelRecord(number, index, digests, event_type, _hex(event, "event_data"))


def _management(content: object) -> frozenset[int]:
    """Read a content cel: one statement, or an array of them."""
    found: set[int] = set()
    for statement in content if isinstance(content, list) else [content]:
        members = _members(statement, "management")
        kind = check_management_type(
            _number(members, "type", MANAGEMENT_TYPES, "management record"), None
        )
        found.add(kind)
        _members(members, "management", {"type"} if kind == FIRMWARE_END else {"type", "data"})
        if kind == VERSION:
            version = _members(members["data"], "cel_version", {"major", "minor"})
            _number(version, "major")
            _number(version, "minor")
        elif kind == STATE_CHANGE:
            check_state(_number(members, "data", STATE_NAMES, "change of state"), None)
        elif kind != FIRMWARE_END:
            _number(members, "data")
    if not found:
        raise FormatError("management without a statement")
    return frozenset(found)


def _members(value: object, what: str, keys: set[str] | None = None) -> dict[str, Any]:
    """Return an object, if it is one, and has just these members."""
    if not isinstance(value, dict):
        raise FormatError(f"{what} is no object")
    if keys is not None and value.keys() != keys:
        raise FormatError(f"{what} has the members {' and '.join(sorted(keys))}, and no others")
    return value


def _list(members: dict[str, Any], key: str) -> list[Any]:
    value = members.get(key)
    if not isinstance(value, list):
        raise FormatError(f"{key} must be an array")
    return value


def _number(
    members: dict[str, Any], key: str, names: dict[str, int] | None = None, what: str = ""
) -> int:
    """Return a number of 64 bits, or the one that a name stands for."""
    value = members.get(key)
    if isinstance(value, str) and names is not None:
        return number_of(value, names, what, None)
    if type(value) is not int or not 0 <= value <= MOST_NUMBER:  # bool is an int to isinstance
        raise FormatError(f"{key} must be a whole number of at most 64 bits")
    return value


def _hex(members: dict[str, Any], key: str) -> bytes:
    text = members.get(key)
    value = unhex(text) if isinstance(text, str) else None
    if value is None:
        raise FormatError(f"{key} must be a text of hex digits")
    return value


def write(records: Iterable[CelRecord]) -> bytes:
    """Write events, compact; the records have no management."""
    return f"[{','.join([_written(record) for record in records])}]".encode()


def _written(record: CelRecord) -> str:
    digests = ",".join(
        f'{{"hashAlg":{_name(_ALGORITHM_NAMES.get(number), number)},"digest":"{digest.hex()}"}}'
        for number, digest in record.digests.items()
    )
    event_type = _name(tcg_name(record.event_type), record.event_type)
    return (
        f'{{"recnum":{record.number},"pcr":{record.pcr},"digests":[{digests}],'
        f'"content_type":"pcclient_std","content":{{"event_type":{event_type},'
        f'"event_data":"{record.data.hex()}"}}}}'
    )


def _name(name: str | None, number: int) -> str:
    return str(number) if name is None else f'"{name}"'
