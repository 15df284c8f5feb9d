"""A Canonical Event Log in CBOR: an array or a sequence (RFC 8742) of records.

A record is a map with the keys 0 number, 1 register, 3 digests, 9 content type and 10 content, in
this order. The deterministic encoding (RFC 8949, 4.2.1) is written and required.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from attestkit._formats.cbor import CborReader
from attestkit.errors import FormatError
from attestkit.event_log.cel import record as cel
from attestkit.event_log.cel.record import CelRecord

_NUMBER, _PCR, _NV_INDEX, _DIGESTS, _CONTENT_TYPE, _CONTENT = 0, 1, 2, 3, 9, 10
_FIRST_MAP: Final = 0xA0  # the lowest initial byte of a map


def read(data: bytes) -> Iterator[CelRecord]:
    """Parse the records of a whole log in CBOR and yield them.

    Raises:
        FormatError: If a record is malformed, or bytes follow the array.
    """
    reader = CborReader(data)
    count = None if data[:1] >= bytes([_FIRST_MAP]) else _count(reader)
    position = 0
    while position != count and (count is not None or reader.at < len(data)):
        start = reader.at
        try:
            record = _record(reader)
        except FormatError as error:
            raise cel.record_error(error, position, start) from error
        yield record._replace(offset=start)
        position += 1
    reader.finish(f"CEL: {position} records")


def _count(reader: CborReader) -> int:
    try:
        return reader.count()
    except FormatError as error:
        message = f"CEL: array of records: {error.message}"
        raise FormatError(message, offset=error.offset, reason=error.reason) from error


def _record(reader: CborReader) -> CelRecord:
    _map(reader, 5, "record")
    _key(reader, _NUMBER)
    number = reader.integer()
    _key(reader, _PCR, cel.bad(cel.NV_INDEX, "other_log", reader.at))
    index = reader.integer()
    _key(reader, _DIGESTS, cel.bad(cel.TWO_REGISTERS, "inconsistent", reader.at))
    digests = _digests(reader)
    _key(reader, _CONTENT_TYPE)
    start = reader.at
    content_type = reader.integer()
    if content_type not in {cel.PC_CLIENT, cel.MANAGEMENT}:
        raise cel.content_error(content_type, start)
    _key(reader, _CONTENT)
    if content_type == cel.MANAGEMENT:
        return CelRecord(number, index, digests, 0, b"", _management(reader))
    return CelRecord(number, index, digests, *_event(reader))


def _digests(reader: CborReader) -> dict[int, bytes]:
    digests: dict[int, bytes] = {}
    for _ in range(reader.count()):
        start = reader.at
        _map(reader, 2, "digest")
        _key(reader, 0)
        algorithm = reader.integer()
        _key(reader, 1)
        cel.add_digest(digests, algorithm, reader.blob(), start)
    return digests


def _event(reader: CborReader) -> tuple[int, bytes]:
    """Parse content of type pcclient_std at the reader's position: event type and event data."""
    _map(reader, 2, "event")
    _key(reader, 0)
    start = reader.at
    if reader.is_text():
        event_type = cel.event_type_named(reader.text(), start)
    else:
        event_type = cel.check_event_type(reader.integer(), start)
    _key(reader, 1)
    return event_type, reader.blob()


def _management(reader: CborReader) -> frozenset[int]:
    """Parse content of type cel at the reader's position, one statement; return its type."""
    start = reader.at
    is_map, count = reader.header()
    if not is_map or count not in {1, 2}:
        message = "management must be a map with type and data"
        raise FormatError(message, offset=start, reason="wrong_size" if is_map else "wrong_type")
    _key(reader, 0)
    start = reader.at
    kind = cel.check_management_type(reader.integer(), start)
    if (count == 1) != (kind == cel.FIRMWARE_END):
        message = "management must have data, except firmware_end, which has none"
        raise FormatError(message, offset=start, reason="wrong_size")
    if kind == cel.FIRMWARE_END:
        return frozenset({kind})
    _key(reader, 1)
    start = reader.at
    if kind == cel.VERSION:
        _map(reader, 2, "cel_version")
        for key in (0, 1):
            _key(reader, key)
            reader.integer()
    else:
        value = reader.integer()
        if kind == cel.STATE_CHANGE:
            cel.check_state(value, start)
    return frozenset({kind})


def _map(reader: CborReader, entries: int, subject: str) -> None:
    """Parse the head of a map that must have `entries` entries; `subject` names it in errors."""
    start = reader.at
    is_map, count = reader.header()
    if (is_map, count) != (True, entries):
        message = f"{subject} must be a map of {entries} entries"
        raise FormatError(message, offset=start, reason="wrong_size" if is_map else "wrong_type")


def _key(reader: CborReader, expected: int, if_nv: FormatError | None = None) -> None:
    """Parse a key of a map, which must be `expected`.

    Raises:
        FormatError: If it is another key; `if_nv`, if given, for the key of an NV index.
    """
    start = reader.at
    key = reader.integer()
    if if_nv is not None and key == _NV_INDEX:
        raise if_nv
    if key != expected:
        raise cel.bad(f"expected key {expected}, found key {key}", "missing", start)


def write(records: Iterable[CelRecord]) -> bytes:
    """Encode records of events as an array in CBOR."""
    import cbor2  # lazy: loaded for this encoding only

    log = [
        {
            _NUMBER: record.number,
            _PCR: record.pcr,
            _DIGESTS: [{0: number, 1: digest} for number, digest in record.digests.items()],
            _CONTENT_TYPE: cel.PC_CLIENT,
            _CONTENT: {0: record.event_type, 1: record.data},
        }
        for record in records
    ]
    return cbor2.dumps(log, canonical=True)
