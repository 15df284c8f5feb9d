"""The TCG's Canonical Event Log (CEL) of a TD, in TLV, CBOR and JSON.

The TCG does not specify register indexes for TDs. As in Google's writer and cc-trusted-api, they
are those of a CCEL: 1 to 4 for RTMR0 to RTMR3. A runtime event is a record of index 4 with the
event type of the dstack guest agent, whose data are the preimage of its digest; this encoding is
specific to attestkit. Other events, such as those of the ACPI tables, have no name in a CEL.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from attestkit._argument_checks import wrong_type
from attestkit._formats.strict_json import decode_strictly
from attestkit._native import unhex
from attestkit._sanitize import shown
from attestkit.errors import FormatError, UsageError
from attestkit.event_log.cel import cbor, json, tlv
from attestkit.event_log.cel.record import SHA384, STATE_CHANGE, TIMESTAMP, CelRecord, record_error
from attestkit.event_log.event import (
    RUNTIME_REGISTER,
    Event,
    WireEvent,
    runtime_digest,
    runtime_preimage,
)
from attestkit.event_log.event_types import NO_ACTION, RUNTIME_EVENT_TYPE

MAX_SIZE: Final = 1 << 24
"""Maximum size of a log, in bytes (or characters of text)."""

MAX_RECORDS: Final = 65_536

ENCODINGS: Final[dict[str, Callable[[Iterable[CelRecord]], bytes]]] = {
    "tlv": tlv.write,
    "cbor": cbor.write,
    "json": json.write,
}
"""Functions that encode a log, by encoding."""

# The optional head of an array, then the head of a record with its first key. Records have five
# members; records of systemd, which get a separate error, have four.
_CBOR_START: Final = re.compile(
    rb"(?:[\x80-\x97]|\x98.|\x99..|\x9a.{4})?(?:\xa5\0|\xa4[\0\1])|\x80\Z", re.DOTALL
)
# Members that an event of the dstack guest agent does not have.
_JSON_START: Final = re.compile(
    rb'[ \t\r\n]*(?:\x1e|\[[ \t\r\n]*\{[ \t\r\n]*"(?:recnum|digests|content_type)")'
)
_CCEL_START: Final = b"Spec ID Event"
_RUNTIME_V1: Final = b"\x01\x00\x00\x08:"


def detect_encoding(data: bytes) -> str | None:
    """Return the encoding of a CEL by the first bytes of `data`; None if it is not a CEL.

    The encoding is "tlv", "cbor" or "json".
    """
    if _JSON_START.match(data):
        return "json"
    if _CBOR_START.match(data):
        return "cbor"
    return "tlv" if tlv.starts_with_record(data) and _CCEL_START not in data[:64] else None


# -- reading ---------------------------------------------------------------------------------------


def read(data: bytes | str) -> tuple[list[WireEvent], tuple[str, ...]]:
    """Parse a CEL, whose encoding is detected by its first byte; text is JSON.

    Management records, and informative records of index 0, are skipped: they do not extend.

    Returns:
        The events, and texts about anomalies that do not make the log invalid.

    Raises:
        FormatError: If the log exceeds 16 MiB or 65,536 records, is malformed, or has a record
            that is not valid for a TD; the message gives the position of the record, from 0.
        UsageError: If `data` is neither `bytes` nor `str`.
    """
    if not isinstance(data, (bytes, str)):
        raise wrong_type("CEL", "bytes or text", data)
    if len(data) > MAX_SIZE:
        raise FormatError("CEL: longer than 16 MiB", reason="too_long")
    events: list[WireEvent] = []
    numbers = _RecordNumbers()
    for position, record in enumerate(_records(data)):
        try:
            numbers.add(record, position)
            event = _event(record)
        except FormatError as error:
            raise record_error(error, position, record.offset) from error
        if event is not None:
            events.append(event)
    return events, numbers.warnings()


def _records(data: bytes | str) -> Iterator[CelRecord]:
    if isinstance(data, str):
        return json.read(data)
    first = data[:1]
    if not first:
        raise FormatError("CEL: must not be empty", offset=0, reason="missing")
    if first == b"\0":
        return tlv.read(data)
    if b"\x80" <= first < b"\xc0":  # an array, or a map of a sequence
        return cbor.read(data)
    if first not in b"[\x1e \t\r\n":
        raise FormatError("CEL: neither TLV, CBOR nor JSON", offset=0, reason="unrecognized")
    try:
        return json.read(data.decode())
    except UnicodeDecodeError as error:
        raise FormatError("CEL: not UTF-8", offset=error.start, reason="encoding") from error


class _RecordNumbers:
    """Checks the record numbers, which must increase within each register.

    They count from 0 in each register, or through the whole log, as Google's writer does. Gaps
    indicate lost records, or a writer that counts records that it omits, such as the header.
    """

    def __init__(self) -> None:
        self._next: dict[int, int] = {}
        self._gaps: dict[int, str] = {}
        self._timestamps = 0
        self._through = True

    def add(self, record: CelRecord, position: int) -> None:
        """Check the number of the next record, and remember it.

        `position` is the record's index in the log, from 0.

        Raises:
            FormatError: If there are too many records, the register does not exist, or the record
                number does not increase.
        """
        number, index = record.number, record.pcr
        if position == MAX_RECORDS:
            raise FormatError("over the limit of 65,536 records", reason="too_many_records")
        if index > RUNTIME_REGISTER + 1:
            message = f"register index {shown(index)} must be 1 to 4 (RTMR0 to RTMR3)"
            raise FormatError(message, reason="index")
        expected = self._next.get(index, 0)
        if number < expected:
            raise FormatError(
                f"record number {number} of index {index} does not increase: the previous one is "
                f"{expected - 1}",
                reason="recnum",
            )
        if number != expected:
            message = f"record numbers of index {index} have a gap: {number} instead of {expected}"
            self._gaps.setdefault(index, message)
        self._next[index] = number + 1
        self._through = self._through and number == position
        self._timestamps += TIMESTAMP in record.management and any(record.digests.values())

    def warnings(self) -> tuple[str, ...]:
        """Return warnings as texts: the first gap in each register, and timestamps with digests."""
        found = [] if self._through else list(self._gaps.values())
        if self._timestamps:
            found.append(f"{self._timestamps} timestamps have digests, which are not replayed")
        return tuple(found)


def _event(record: CelRecord) -> WireEvent | None:
    """Return the event of a record, or None if the record does not extend a register.

    Raises:
        FormatError: If the record is not valid for a TD, or a runtime event has no preimage.
    """
    if record.management:
        if STATE_CHANGE in record.management and record.digests:
            message = "a state transition must not have digests in a log of a TD"
            raise FormatError(message, reason="unsupported")
        return None
    event_type = record.event_type
    if record.pcr == 0:
        if event_type == NO_ACTION:
            return None
        raise FormatError("index 0 is MRTD, which cannot be extended", reason="index")
    # An informative record does not extend, so its SHA-384 digest is optional.
    digest = record.digests.get(SHA384, bytes(48) if event_type == NO_ACTION else None)
    if digest is None:
        raise FormatError("no SHA-384 digest; each event must have one", reason="missing")
    if event_type != RUNTIME_EVENT_TYPE:
        return WireEvent(record.pcr - 1, event_type, digest, "", record.data)
    name, payload, version = _runtime(record.data)
    preimage = record.data.hex() if version == 2 else None
    return WireEvent(record.pcr - 1, event_type, digest, name, payload, version, preimage)


def _runtime(preimage: bytes) -> tuple[str, bytes, int]:
    """Return name, payload and version of the runtime event with this preimage.

    In version 1, the name ends at the first colon after the type: names have none.

    Raises:
        FormatError: If the bytes are not the preimage of a runtime event.
    """
    if preimage.startswith(_RUNTIME_V1):
        name, colon, payload = preimage[len(_RUNTIME_V1) :].partition(b":")
        if colon:
            try:
                return name.decode(), payload, 1
            except UnicodeDecodeError as error:
                message = "name of the runtime event is not UTF-8"
                raise FormatError(message, reason="encoding") from error
    found = _runtime_v2(preimage) if preimage.startswith(b'{"') else None
    if found is None:
        raise FormatError("data of a runtime event are not a preimage", reason="wrong_value")
    return found


def _runtime_v2(preimage: bytes) -> tuple[str, bytes, int] | None:
    try:
        members = decode_strictly(preimage)
    except FormatError:
        return None
    if not isinstance(members, dict):
        return None
    name, digits = members.get("name"), members.get("payload")
    payload = unhex(digits) if isinstance(digits, str) else None
    if not isinstance(name, str) or payload is None:
        return None
    try:
        canonical = runtime_preimage(name, payload, 2)
    except UsageError:  # a lone surrogate
        return None
    return (name, payload, 2) if canonical == preimage else None


# -- writing ---------------------------------------------------------------------------------------


def write(events: Iterable[Event], encoding: str) -> bytes:
    """Encode a CEL, in the encoding `tlv`, `cbor` or `json`.

    Records are numbered from 0 in each register.

    Raises:
        UsageError: If the encoding is unknown, the log would exceed the limits of `read`, or the
            name of an event of version 1 has a colon, which makes the event data ambiguous.
    """
    if encoding not in tuple(ENCODINGS):  # `encoding` may be of an unhashable type
        message = f"CEL encoding: must be tlv, cbor or json, not {shown(encoding)}"
        raise UsageError(message, reason="wrong_value")
    records: list[CelRecord] = []
    numbers = [0, 0, 0, 0]
    for position, event in enumerate(events):
        register, event_type, digest, name, payload, version = event
        if event_type == RUNTIME_EVENT_TYPE:
            if version == 1 and ":" in name:
                raise UsageError(
                    f"event {position} {shown(name)}: a version 1 name with a colon cannot be "
                    "written to a CEL",
                    reason="wrong_value",
                )
            digest = digest or runtime_digest(name, payload, version)
            payload = runtime_preimage(name, payload, version)
        record = CelRecord(numbers[register], register + 1, {SHA384: digest}, event_type, payload)
        numbers[register] += 1
        records.append(record)
    if len(records) > MAX_RECORDS:
        raise UsageError("CEL: the log has more than 65,536 events", reason="too_many")
    encoded = ENCODINGS[encoding](records)
    if len(encoded) > MAX_SIZE:
        raise UsageError("CEL: the encoded log would exceed 16 MiB", reason="too_large")
    return encoded
