r"""A Canonical Event Log in JSON: an array or a sequence (RFC 7464) of records.

In a sequence, each record follows a character U+001E. Bytes are in hex. Types and algorithms are
names or numbers; numbers are written if the TCG did not define a name.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

from attestkit._formats.strict_json import byte_offset, check_depth, decode_at
from attestkit._outcomes.reasons import FormatReason
from attestkit._sanitize import shown
from attestkit.errors import FormatError
from attestkit.event_log.agent_json import hex_member, member_error, number_member
from attestkit.event_log.cel import record as cel
from attestkit.event_log.cel.record import CelRecord
from attestkit.event_log.event_types import tcg_name

RECORD_MARK: Final = "\x1e"
"""The character before each record of a sequence (RFC 7464)."""

KEYS: Final = frozenset({"recnum", "pcr", "nv_index", "digests", "content_type", "content"})
"""Members of a record; only one of pcr and nv_index."""

_BLANKS: Final = re.compile(r"[ \t\r\n]*")
_MARKS: Final = re.compile(r"[\x1e \t\r\n]*")
_ALGORITHM_NAMES: Final = {number: name for name, number in cel.ALGORITHMS.items()}


def read(text: str) -> Iterator[CelRecord]:
    """Parse the records of a whole log in JSON and yield them.

    Raises:
        FormatError: If a record, or the text between or after records, is malformed; `offset`
            counts bytes of the UTF-8 form.
    """
    check_depth(text)
    offset = behind = 0
    cursor = _Cursor(text)
    cursor.skip_pattern(_BLANKS)
    starts = _sequence if text.startswith(RECORD_MARK, cursor.at) else _array
    for position, start in enumerate(starts(cursor)):
        offset += byte_offset(text[behind:start], start)
        behind = start
        try:
            value, cursor.at = decode_at(text, start)
            record = _record(value)
        except FormatError as error:
            raise cel.record_error(error, position, offset) from error
        yield record._replace(offset=offset)


class _Cursor:
    """A position in the text between records."""

    __slots__ = ("at", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.at: int = 0

    def skip(self, mark: str) -> bool:
        """Skip white space, and `mark` if it is next; return whether it was."""
        self.skip_pattern(_BLANKS)
        found = self.text.startswith(mark, self.at)
        if found:
            self.at += len(mark)
            self.skip_pattern(_BLANKS)
        return found

    def skip_pattern(self, pattern: re.Pattern[str]) -> None:
        """Skip the text that matches a pattern at this position."""
        if found := pattern.match(self.text, self.at):
            self.at = found.end()

    def at_end(self) -> bool:
        """Return whether this is the end of the text."""
        return self.at == len(self.text)

    def error(self, position: int, message: str, reason: FormatReason = "syntax") -> FormatError:
        """Return an error at this place of the text, in the record with the index `position`.

        `message` is its text without the position.
        """
        error = FormatError(message, reason=reason)
        return cel.record_error(error, position, byte_offset(self.text, self.at))


def _array(cursor: _Cursor) -> Iterator[int]:
    """Yield the start of each value of an array; the caller moves the cursor past the value.

    A start is an index in the text.
    """
    if not cursor.skip("["):
        raise cursor.error(0, "expected an array of records or a sequence of records")
    position = 0
    closed = cursor.skip("]")
    while not closed:
        yield cursor.at
        position += 1
        closed = cursor.skip("]")
        if not closed and not cursor.skip(","):
            raise cursor.error(position, "expected a comma or the end of the array")
    if not cursor.at_end():
        raise cursor.error(position, "data follow the array", "trailing_data")


def _sequence(cursor: _Cursor) -> Iterator[int]:
    """Yield the start of each value of a sequence; the caller moves the cursor past the value.

    A start is an index in the text.
    """
    position = 0
    while True:
        marked = cursor.skip(RECORD_MARK)
        if marked:
            cursor.skip_pattern(_MARKS)  # RFC 7464 allows several in a row
        if cursor.at_end():
            return
        if not marked:
            raise cursor.error(position, "expected U+001E before the record")
        yield cursor.at
        position += 1


def _record(value: object) -> CelRecord:
    members = _members(value, "record")
    if unknown := members.keys() - KEYS:
        raise FormatError(f"unknown record member {shown(min(unknown))}", reason="unknown_field")
    content_type = _number(members, "content_type", cel.CONTENT_TYPES, "content type")
    if content_type not in {cel.PC_CLIENT, cel.MANAGEMENT}:
        raise cel.content_error(content_type, None)
    if "nv_index" in members:
        if "pcr" in members:
            raise FormatError(cel.TWO_REGISTERS, reason="inconsistent")
        raise FormatError(cel.NV_INDEX, reason="other_log")
    number, index = _number(members, "recnum"), _number(members, "pcr")
    digests: dict[int, bytes] = {}
    for item in _list(members, "digests"):
        digest = _members(item, "digest", {"hashAlg", "digest"})
        algorithm = _number(digest, "hashAlg", cel.ALGORITHMS, "digest algorithm")
        cel.add_digest(digests, algorithm, hex_member(digest, "digest"), None)
    content = members.get("content")
    if content_type == cel.MANAGEMENT:
        return CelRecord(number, index, digests, 0, b"", _management(content))
    event = _members(content, "content", {"event_type", "event_data"})
    event_type = event.get("event_type")
    if isinstance(event_type, str):
        event_type = cel.event_type_named(event_type, None)
    else:
        event_type = cel.check_event_type(_number(event, "event_type"), None)
    return CelRecord(number, index, digests, event_type, hex_member(event, "event_data"))


def _management(content: object) -> frozenset[int]:
    """Parse decoded content of type cel, a statement or an array of them; return their types."""
    found: set[int] = set()
    for statement in content if isinstance(content, list) else [content]:
        members = _members(statement, "management")
        kind = cel.check_management_type(
            _number(members, "type", cel.MANAGEMENT_TYPES, "management record type"), None
        )
        found.add(kind)
        _members(members, "management", {"type"} if kind == cel.FIRMWARE_END else {"type", "data"})
        if kind == cel.VERSION:
            version = _members(members["data"], "cel_version", {"major", "minor"})
            _number(version, "major")
            _number(version, "minor")
        elif kind == cel.STATE_CHANGE:
            cel.check_state(_number(members, "data", cel.STATE_NAMES, "state transition"), None)
        elif kind != cel.FIRMWARE_END:
            _number(members, "data")
    if not found:
        raise FormatError("management has no statement", reason="missing")
    return frozenset(found)


def _members(value: object, subject: str, keys: set[str] | None = None) -> dict[str, Any]:
    """Return `value` if it is an object; `subject` is its name in errors.

    Raises:
        FormatError: If it is not an object, or has other members than `keys`; None: any.
    """
    if not isinstance(value, dict):
        message = f"{subject} must be a JSON object, and must not be missing"
        raise FormatError(message, reason="wrong_type")
    if keys is not None and value.keys() != keys:
        message = f"{subject} must have the members {' and '.join(sorted(keys))}, and no others"
        raise FormatError(message, reason="unknown_field" if value.keys() > keys else "missing")
    return value


def _list(members: dict[str, Any], key: str) -> list[Any]:
    value = members.get(key)
    if not isinstance(value, list):
        raise member_error(members, key, "an array")
    return value


def _number(
    members: dict[str, Any], key: str, names: dict[str, int] | None = None, subject: str = ""
) -> int:
    """Return `members[key]`: an integer of 64 bits, or a name in `names`, as a number.

    Args:
        members: Members of an object.
        key: Name of the member.
        names: Numbers by name in lower case; upper case is accepted, too. None: names are not
            accepted.
        subject: What a name names, for errors.

    Raises:
        FormatError: If the member is missing, of another type, too large or an unknown name.
    """
    value = members.get(key)
    if isinstance(value, str) and names is not None:
        known = names.get(value.lower()) if value.isascii() else None
        if known is None:
            is_hash = names is cel.ALGORITHMS
            reason: FormatReason = "unsupported_algorithm" if is_hash else "wrong_value"
            raise FormatError(f"unknown {subject} {shown(value)}", reason=reason)
        return known
    number = number_member(members, key)
    if not 0 <= number <= cel.MOST_NUMBER:
        raise FormatError(f"{key} must be 0 to 2^64-1, not {shown(number)}", reason="wrong_value")
    return number


def write(records: Iterable[CelRecord]) -> bytes:
    """Encode records of events as an array in JSON, without white space, in UTF-8."""
    return f"[{','.join([_encode_record(record) for record in records])}]".encode()


def _encode_record(record: CelRecord) -> str:
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
