"""A Canonical Event Log in TLV: type (1 byte), length (4 bytes, big-endian), value.

A record has four elements: number, register, digests and content. A log is a sequence of records.
Integers have 1 to 8 bytes, big-endian; the shortest form is written.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from attestkit.errors import FormatError
from attestkit.event_log.cel import record as cel
from attestkit.event_log.cel.record import CelRecord

_NUMBER, _PCR, _NV_INDEX, _DIGESTS = 0, 1, 2, 3
_GOOGLE_INDEX: Final = 108  # registers of a TD, in Google's writer
_INDEX_TYPES: Final = frozenset({_PCR, _NV_INDEX, _GOOGLE_INDEX})
_HEAD: Final = 5  # size of type and length, in bytes


def starts_with_record(data: bytes) -> bool:
    """Return whether the data start with the first three elements of a record.

    These are a number and an index of 1 to 8 bytes each, and digests that end within `data`. All
    three are checked, because a SHA-1 TPM log may start with the same bytes as the first two.
    """
    at = 0
    for kinds in (frozenset({_NUMBER}), _INDEX_TYPES):
        size = int.from_bytes(data[at + 1 : at + _HEAD], "big")
        if data[at : at + 1] == b"" or data[at] not in kinds or not 1 <= size <= 8:
            return False
        at += _HEAD + size
    size = int.from_bytes(data[at + 1 : at + _HEAD], "big")
    return data[at : at + 1] == bytes([_DIGESTS]) and at + _HEAD + size <= len(data)


def read(data: bytes) -> Iterator[CelRecord]:
    """Parse the records of a whole log in TLV and yield them.

    Raises:
        FormatError: If a record is malformed.
    """
    at = position = 0
    while at < len(data):
        start = at
        try:
            record, at = _record(data, at)
        except FormatError as error:
            raise cel.record_error(error, position, start) from error
        yield record._replace(offset=start)
        position += 1


def _record(data: bytes, at: int) -> tuple[CelRecord, int]:
    """Parse the record at the offset `at` of `data`, the log.

    Returns:
        The record, and the offset of its end.
    """
    end = len(data)
    number, at = _integer(data, at, end, _NUMBER)
    kind, _, _ = _element(data, at, end)
    if kind == _NV_INDEX:
        raise FormatError(cel.NV_INDEX, offset=at, reason="other_log")
    index, at = _integer(data, at, end, _GOOGLE_INDEX if kind == _GOOGLE_INDEX else _PCR)
    kind, start, stop = _element(data, at, end)
    if kind in _INDEX_TYPES:
        raise FormatError(cel.TWO_REGISTERS, offset=at, reason="inconsistent")
    if kind != _DIGESTS:
        raise cel.bad(f"expected the digests (type 3), found type {kind}", "missing", at)
    digests: dict[int, bytes] = {}
    while start < stop:
        algorithm, first, behind = _element(data, start, stop)
        cel.add_digest(digests, algorithm, data[first:behind], start)
        start = behind
    kind, start, end = _element(data, stop, end)
    if kind == cel.PC_CLIENT:
        event_type, event_data = _event(data, start, end)
        return CelRecord(number, index, digests, event_type, event_data), end
    if kind == cel.MANAGEMENT:
        return CelRecord(number, index, digests, 0, b"", _management(data, start, end)), end
    raise cel.content_error(kind, stop)


def _event(data: bytes, at: int, end: int) -> tuple[int, bytes]:
    """Parse content of type pcclient_std between the offsets `at` and `end` of `data`, the log.

    Returns:
        Event type and event data.
    """
    start = at
    event_type, at = _integer(data, at, end, 0)
    cel.check_event_type(event_type, start)
    kind, first, behind = _element(data, at, end)
    if kind != 1:
        raise cel.bad(f"expected the event data (type 1), found type {kind}", "missing", at)
    if behind != end:
        raise cel.bad(f"{end - behind} bytes follow the event data", "trailing_data", behind)
    return event_type, data[first:behind]


def _management(data: bytes, at: int, end: int) -> frozenset[int]:
    """Parse content of type cel between the offsets `at` and `end` of `data`, the log.

    Returns:
        The types of its statements.
    """
    found: set[int] = set()
    while not found or at < end:
        start = at
        kind, first, at = _element(data, at, end)
        found.add(cel.check_management_type(kind, start))
        if kind == cel.FIRMWARE_END:
            if first != at:
                raise cel.bad(
                    "management statement firmware_end must be empty", "wrong_size", start
                )
        elif kind == cel.VERSION:
            _, first = _integer(data, first, at, 0)
            _, first = _integer(data, first, at, 1)
            if first != at:
                message = f"{at - first} bytes follow the two numbers of cel_version"
                raise FormatError(message, offset=first, reason="trailing_data")
        else:
            value = _value(data, first, at)
            if kind == cel.STATE_CHANGE:
                cel.check_state(value, first)
    return frozenset(found)


def _integer(data: bytes, at: int, end: int, expected: int) -> tuple[int, int]:
    """Parse the element at the offset `at` of `data`, whose type must be `expected`.

    The element must end at the offset `end` at the latest.

    Returns:
        Its integer, and the offset of its end.
    """
    kind, start, stop = _element(data, at, end)
    if kind != expected:
        raise cel.bad(f"expected type {expected}, found type {kind}", "missing", at)
    return _value(data, start, stop), stop


def _value(data: bytes, start: int, stop: int) -> int:
    if not 1 <= stop - start <= 8:
        raise cel.bad(f"number must have 1 to 8 bytes, not {stop - start}", "wrong_size", start)
    return int.from_bytes(data[start:stop], "big")


def _element(data: bytes, at: int, end: int) -> tuple[int, int, int]:
    """Return the type of the element at the offset `at` of `data`, and the offsets of its value.

    These are start and end of the value; the latter must not exceed the offset `end`.
    """
    start = at + _HEAD
    if start > end:
        raise cel.bad(f"{_HEAD} bytes expected, {end - at} left", "truncated", at)
    size = int.from_bytes(data[at + 1 : start], "big")
    if size > end - start:
        raise cel.bad(f"{size} bytes expected, {end - start} left", "truncated", at + 1)
    return data[at], start, start + size


def write(records: Iterable[CelRecord]) -> bytes:
    """Encode records of events as a sequence in TLV."""
    return b"".join([_encode_record(record) for record in records])


def _encode_record(record: CelRecord) -> bytes:
    digests = b"".join([_put(number, digest) for number, digest in record.digests.items()])
    content = _put_number(0, record.event_type) + _put(1, record.data)
    return b"".join(
        (
            _put_number(_NUMBER, record.number),
            _put_number(_PCR, record.pcr),
            _put(_DIGESTS, digests),
            _put(cel.PC_CLIENT, content),
        )
    )


def _put(kind: int, value: bytes) -> bytes:
    return bytes([kind]) + len(value).to_bytes(4, "big") + value


def _put_number(kind: int, number: int) -> bytes:
    return _put(kind, number.to_bytes((number.bit_length() + 7) // 8 or 1, "big"))
