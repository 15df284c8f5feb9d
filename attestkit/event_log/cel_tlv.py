"""A Canonical Event Log in TLV: a type of one byte, a length of four, big-endian, and the value.

A record is four of them, number, register, digests and content, and a log is its records, one
behind the other. Numbers have 1 to 8 bytes, big-endian; the shortest form is written.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from attestkit.errors import FormatError
from attestkit.event_log.cel_record import (
    FIRMWARE_END,
    MANAGEMENT,
    NV_INDEX,
    PC_CLIENT,
    STATE_CHANGE,
    VERSION,
    CelRecord,
    add_digest,
    check_event_type,
    check_management_type,
    check_state,
    other_content,
    placed,
)

__all__ = ["looks_like_one", "read", "write"]

_NUMBER, _PCR, _NV_INDEX, _DIGESTS = 0, 1, 2, 3
_GOOGLE_INDEX: Final = 108  # of Google's writer, for registers of a TD
_INDEX_TYPES: Final = frozenset({_PCR, _NV_INDEX, _GOOGLE_INDEX})
_HEAD: Final = 5  # bytes


def looks_like_one(data: bytes) -> bool:
    """Tell whether a log begins with the first three elements of a record.

    They are a number and an index of 1 to 8 bytes each, and digests that end within `data`. Fewer
    would not do: a TPM's old log begins with four zero bytes too, and a digest's byte may be the
    index's type.
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
    """Read the records one by one.

    Raises:
        FormatError: One breaks the format; names its place and the offset.
    """
    at = place = 0
    while at < len(data):
        start = at
        try:
            record, at = _record(data, at)
        except FormatError as error:
            raise placed(error, place, start) from error
        yield record._replace(offset=start)
        place += 1


def _record(data: bytes, at: int) -> tuple[CelRecord, int]:
    """Read the record at `at`; return it, and where it ends."""
    end = len(data)
    number, at = _integer(data, at, end, _NUMBER)
    kind, _, _ = _element(data, at, end)
    if kind == _NV_INDEX:
        raise FormatError(NV_INDEX, offset=at, reason="other_log")
    index, at = _integer(data, at, end, _GOOGLE_INDEX if kind == _GOOGLE_INDEX else _PCR)
    kind, start, stop = _element(data, at, end)
    if kind in _INDEX_TYPES:
        raise FormatError("it has two registers: pcr and nv_index exclude each other", offset=at)
    if kind != _DIGESTS:
        raise FormatError(f"its digests (type 3) wanted, type {kind} found", offset=at)
    digests: dict[int, bytes] = {}
    while start < stop:
        algorithm, first, behind = _element(data, start, stop)
        add_digest(digests, algorithm, data[first:behind], start)
        start = behind
    kind, start, end = _element(data, stop, end)
    if kind == PC_CLIENT:
        event_type, event_data = _event(data, start, end)
        return CelRecord(number, index, digests, event_type, event_data), end
    if kind == MANAGEMENT:
        return CelRecord(number, index, digests, 0, b"", _management(data, start, end)), end
    raise other_content(kind, stop)


def _event(data: bytes, at: int, end: int) -> tuple[int, bytes]:
    """Read a content pcclient_std that takes all up to `end`: type and data of the event."""
    start = at
    event_type, at = _integer(data, at, end, 0)
    check_event_type(event_type, start)
    kind, first, behind = _element(data, at, end)
    if kind != 1 or behind != end:
        raise FormatError("an event is its type (0) and its data (1), and no more", offset=at)
    return event_type, data[first:behind]


def _management(data: bytes, at: int, end: int) -> frozenset[int]:
    """Read a content cel that takes all up to `end`: one or more statements of these types."""
    found: set[int] = set()
    while not found or at < end:
        start = at
        kind, first, at = _element(data, at, end)
        found.add(check_management_type(kind, start))
        if kind == FIRMWARE_END:
            if first != at:
                raise FormatError("firmware_end has no value", offset=start)
        elif kind == VERSION:
            _, first = _integer(data, first, at, 0)
            _, first = _integer(data, first, at, 1)
            if first != at:
                raise FormatError("cel_version is two numbers, and no more", offset=first)
        else:
            value = _value(data, first, at)
            if kind == STATE_CHANGE:
                check_state(value, first)
    return frozenset(found)


def _integer(data: bytes, at: int, end: int, wanted: int) -> tuple[int, int]:
    """Read an element of type `wanted`, a number; return it, and where the element ends."""
    kind, start, stop = _element(data, at, end)
    if kind != wanted:
        raise FormatError(f"type {wanted} wanted, type {kind} found", offset=at)
    return _value(data, start, stop), stop


def _value(data: bytes, start: int, stop: int) -> int:
    if not 1 <= stop - start <= 8:
        raise FormatError(f"a number of {stop - start} bytes, not 1 to 8", offset=start)
    return int.from_bytes(data[start:stop], "big")


def _element(data: bytes, at: int, end: int) -> tuple[int, int, int]:
    """Return the type of the element at `at`, and where its value begins and ends."""
    start = at + _HEAD
    if start > end:
        raise FormatError(f"{_HEAD} bytes wanted, {end - at} left", offset=at)
    size = int.from_bytes(data[at + 1 : start], "big")
    if size > end - start:
        raise FormatError(f"{size} bytes wanted, {end - start} left", offset=at + 1)
    return data[at], start, start + size


def write(records: Iterable[CelRecord]) -> bytes:
    """Write events; the records have no management."""
    return b"".join([_written(record) for record in records])


def _written(record: CelRecord) -> bytes:
    digests = b"".join([_put(number, digest) for number, digest in record.digests.items()])
    content = _put_number(0, record.event_type) + _put(1, record.data)
    return b"".join(
        (
            _put_number(_NUMBER, record.number),
            _put_number(_PCR, record.pcr),
            _put(_DIGESTS, digests),
            _put(PC_CLIENT, content),
        )
    )


def _put(kind: int, value: bytes) -> bytes:
    return bytes([kind]) + len(value).to_bytes(4, "big") + value


def _put_number(kind: int, number: int) -> bytes:
    return _put(kind, number.to_bytes((number.bit_length() + 7) // 8 or 1, "big"))
