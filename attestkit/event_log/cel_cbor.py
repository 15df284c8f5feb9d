"""A Canonical Event Log in CBOR: an array of records, or one record behind the other (RFC 8742).

A record is a map with the keys 0 number, 1 register, 3 digests, 9 type of content and 10 content,
in this order: the deterministic encoding (RFC 8949, 4.2.1), which is written and insisted on.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from attestkit._formats.cbor import CborReader
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
    event_type_named,
    other_content,
    placed,
)

__all__ = ["read", "write"]

_NUMBER, _PCR, _NV_INDEX, _DIGESTS, _CONTENT_TYPE, _CONTENT = 0, 1, 2, 3, 9, 10
_FIRST_MAP: Final = 0xA0  # the first byte of a map


def read(data: bytes) -> Iterator[CelRecord]:
    """Read the records one by one.

    Raises:
        FormatError: One breaks the format, or bytes follow the array; names place and offset.
    """
    reader = CborReader(data)
    count = None if data[:1] >= bytes([_FIRST_MAP]) else _count(reader)
    place = 0
    while place != count and (count is not None or reader.at < len(data)):
        start = reader.at
        try:
            record = _record(reader)
        except FormatError as error:
            raise placed(error, place, start) from error
        yield record._replace(offset=start)
        place += 1
    if left := len(data) - reader.at:
        message = f"{left} bytes behind the {place} records of the CEL"
        raise FormatError(message, offset=reader.at, reason="cel_record")


def _count(reader: CborReader) -> int:
    try:
        return reader.count()
    except FormatError as error:
        message = f"the array of CEL records: {error.message}"
        raise FormatError(message, offset=error.offset, reason="cel_record") from error


def _record(reader: CborReader) -> CelRecord:
    _map(reader, 5, "a record")
    _key(reader, _NUMBER)
    number = reader.integer()
    start = reader.at
    key = reader.integer()
    if key == _NV_INDEX:
        raise FormatError(NV_INDEX, offset=start, reason="other_log")
    if key != _PCR:
        raise FormatError(f"its register (key 1) wanted, key {key} found", offset=start)
    index = reader.integer()
    start = reader.at
    key = reader.integer()
    if key == _NV_INDEX:
        message = "it has two registers: pcr and nv_index exclude each other"
        raise FormatError(message, offset=start)
    if key != _DIGESTS:
        raise FormatError(f"its digests (key 3) wanted, key {key} found", offset=start)
    digests = _digests(reader)
    _key(reader, _CONTENT_TYPE)
    start = reader.at
    content_type = reader.integer()
    if content_type not in {PC_CLIENT, MANAGEMENT}:
        raise other_content(content_type, start)
    _key(reader, _CONTENT)
    if content_type == MANAGEMENT:
        return CelRecord(number, index, digests, 0, b"", _management(reader))
    return CelRecord(number, index, digests, *_event(reader))


def _digests(reader: CborReader) -> dict[int, bytes]:
    digests: dict[int, bytes] = {}
    for _ in range(reader.count()):
        start = reader.at
        _map(reader, 2, "a digest")
        _key(reader, 0)
        algorithm = reader.integer()
        _key(reader, 1)
        add_digest(digests, algorithm, reader.blob(), start)
    return digests


def _event(reader: CborReader) -> tuple[int, bytes]:
    """Read a content pcclient_std: type and data of the event."""
    _map(reader, 2, "an event")
    _key(reader, 0)
    start = reader.at
    if reader.is_text():
        event_type = event_type_named(reader.text(), start)
    else:
        event_type = check_event_type(reader.integer(), start)
    _key(reader, 1)
    return event_type, reader.blob()


def _management(reader: CborReader) -> frozenset[int]:
    """Read a content cel: one statement."""
    start = reader.at
    is_map, count = reader.header()
    if not is_map or count not in {1, 2}:
        raise FormatError("management is a map of type and data", offset=start)
    _key(reader, 0)
    start = reader.at
    kind = check_management_type(reader.integer(), start)
    if (count == 1) != (kind == FIRMWARE_END):
        raise FormatError("all management but firmware_end has data", offset=start)
    if kind == FIRMWARE_END:
        return frozenset({kind})
    _key(reader, 1)
    start = reader.at
    if kind == VERSION:
        _map(reader, 2, "cel_version")
        for key in (0, 1):
            _key(reader, key)
            reader.integer()
    else:
        value = reader.integer()
        if kind == STATE_CHANGE:
            check_state(value, start)
    return frozenset({kind})


def _map(reader: CborReader, entries: int, what: str) -> None:
    """Read the head of a map with so many entries."""
    start = reader.at
    if reader.header() != (True, entries):
        raise FormatError(f"{what} is a map of {entries} entries", offset=start)


def _key(reader: CborReader, wanted: int) -> None:
    start = reader.at
    key = reader.integer()
    if key != wanted:
        raise FormatError(f"key {wanted} wanted, key {key} found", offset=start)


def write(records: Iterable[CelRecord]) -> bytes:
    """Write events; the records have no management."""
    import cbor2  # late: only who needs this encoding pays for it

    log = [
        {
            _NUMBER: record.number,
            _PCR: record.pcr,
            _DIGESTS: [{0: number, 1: digest} for number, digest in record.digests.items()],
            _CONTENT_TYPE: PC_CLIENT,
            _CONTENT: {0: record.event_type, 1: record.data},
        }
        for record in records
    ]
    return cbor2.dumps(log, canonical=True)
