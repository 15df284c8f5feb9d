"""The TCG's Canonical Event Log (CEL) of a TD, in TLV, CBOR and JSON.

Neither the TCG nor its tools say how a CEL numbers the registers of a TD. As Google's writer and
cc-trusted-api do, the index of a CCEL is read and written: 1 to 4 for RTMR0 to RTMR3. A runtime
event is a record of index 4 and of the guest agent's type whose data are the preimage of its
digest; that is attestkit's own choice. Names of other events, such as those of the ACPI tables, are
not in a CEL, and no position tells them, so that they are read without one.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from attestkit._formats.strict_json import decode_strictly
from attestkit._native import unhex
from attestkit._sanitize import shown
from attestkit.errors import FormatError, UsageError
from attestkit.event_log import cel_cbor, cel_json, cel_tlv
from attestkit.event_log.cel_record import SHA384, STATE_CHANGE, TIMESTAMP, CelRecord, placed
from attestkit.event_log.event import (
    RUNTIME_REGISTER,
    Event,
    WireEvent,
    runtime_digest,
    runtime_preimage,
)
from attestkit.event_log.event_types import NO_ACTION, RUNTIME_EVENT_TYPE

__all__ = ["ENCODINGS", "MAX_RECORDS", "MAX_SIZE", "encoding_of", "read", "write"]

MAX_SIZE: Final = 1 << 24
"""Bytes, or characters, of the longest log that is read or written."""

MAX_RECORDS: Final = 65_536

ENCODINGS: Final[dict[str, Callable[[Iterable[CelRecord]], bytes]]] = {
    "tlv": cel_tlv.write,
    "cbor": cel_cbor.write,
    "json": cel_json.write,
}
"""What writes a log in each encoding."""

# The head of an array of any size, if there is one, and of its first record with its first key. A
# record has five members; systemd's, which is named when it is refused, four.
_CBOR_START: Final = re.compile(
    rb"(?:[\x80-\x97]|\x98.|\x99..|\x9a.{4})?(?:\xa5\0|\xa4[\0\1])|\x80\Z", re.DOTALL
)
# Members that no event of the guest agent has.
_JSON_START: Final = re.compile(
    rb'[ \t\r\n]*(?:\x1e|\[[ \t\r\n]*\{[ \t\r\n]*"(?:recnum|digests|content_type)")'
)
_CCEL_START: Final = b"Spec ID Event"
_RUNTIME_V1: Final = b"\x01\x00\x00\x08:"


def encoding_of(data: bytes) -> str | None:
    """Tell by its first bytes the encoding of a CEL; None if it does not look like one."""
    if _JSON_START.match(data):
        return "json"
    if _CBOR_START.match(data):
        return "cbor"
    return "tlv" if cel_tlv.looks_like_one(data) and _CCEL_START not in data[:64] else None


# -- reading ---------------------------------------------------------------------------------------


def read(data: bytes | str) -> tuple[list[WireEvent], tuple[str, ...]]:
    """Read a CEL in the encoding that its first byte tells.

    Left out are management records and informative ones of index 0, none of which is extended.

    Returns:
        The events, and what is odd about the log without being wrong.

    Raises:
        FormatError: It is longer than 16 MiB, has more than 65,536 records, breaks its encoding, or
            a record cannot be one of a TD; names the record, from 0, and the offset.
        UsageError: `data` is neither `bytes` nor text.
    """
    if not isinstance(data, (bytes, str)):
        raise UsageError("a Canonical Event Log is bytes or text")
    if len(data) > MAX_SIZE:
        raise FormatError("the CEL is longer than 16 MiB", reason="too_long")
    events: list[WireEvent] = []
    numbers = _Numbers()
    for place, record in enumerate(_records(data)):
        try:
            numbers.take(record, place)
            event = _event(record)
        except FormatError as error:
            raise placed(error, place, record.offset) from error
        if event is not None:
            events.append(event)
    return events, numbers.warnings()


def _records(data: bytes | str) -> Iterator[CelRecord]:
    if isinstance(data, str):
        return cel_json.read(data)
    first = data[:1]
    if not first:
        raise FormatError("a CEL must not be empty", offset=0, reason="empty")
    if first == b"\0":
        return cel_tlv.read(data)
    if b"\x80" <= first < b"\xc0":  # an array, or a map of a sequence
        return cel_cbor.read(data)
    if first not in b"[\x1e \t\r\n":
        raise FormatError("not a CEL in TLV, CBOR or JSON", offset=0, reason="cel_record")
    try:
        return cel_json.read(data.decode())
    except UnicodeDecodeError as error:
        raise FormatError("the CEL is not UTF-8", offset=error.start, reason="json") from error


class _Numbers:
    """Record numbers, which grow within each register.

    They run from 0 in each, or through the whole log, as Google's writer counts. Others are a sign
    of lost records, or of a writer that counts what it leaves out, such as the header.
    """

    def __init__(self) -> None:
        self._next: dict[int, int] = {}
        self._gaps: dict[int, str] = {}
        self._timestamps = 0
        self._through = True

    def take(self, record: CelRecord, place: int) -> None:
        """Look at the next record.

        Raises:
            FormatError: It is one too many, there is no such register, or its number does not grow.
        """
        number, index = record.number, record.pcr
        if place == MAX_RECORDS:
            raise FormatError("there are more than 65,536", reason="too_many_records")
        if index > RUNTIME_REGISTER + 1:
            raise FormatError(
                f"there is no register of index {shown(index)} in a TD, whose own are 1 to 4",
                reason="index",
            )
        wanted = self._next.get(index, 0)
        if number < wanted:
            raise FormatError(
                f"its number in index {index} is {number} and does not grow: "
                f"the record before has {wanted - 1}",
                reason="recnum",
            )
        if number != wanted:
            message = f"record numbers of index {index} have a gap: {number} where {wanted} was due"
            self._gaps.setdefault(index, message)
        self._next[index] = number + 1
        self._through = self._through and number == place
        self._timestamps += TIMESTAMP in record.management and any(record.digests.values())

    def warnings(self) -> tuple[str, ...]:
        """Tell of the first gap of each register, and of timestamps that may have been measured."""
        found = [] if self._through else list(self._gaps.values())
        if self._timestamps:
            found.append(f"{self._timestamps} timestamps have digests, which are not replayed")
        return tuple(found)


def _event(record: CelRecord) -> WireEvent | None:
    """Return what a record says was measured, None if nothing was."""
    if record.management:
        if STATE_CHANGE in record.management and record.digests:
            raise FormatError("it is a change of state that was measured, which no TD knows")
        return None
    event_type = record.event_type
    if record.pcr == 0:
        if event_type == NO_ACTION:
            return None
        raise FormatError("index 0 is MRTD, which nothing extends", reason="index")
    # What is informative is not extended, and may come without a digest that would be.
    digest = record.digests.get(SHA384, bytes(48) if event_type == NO_ACTION else None)
    if digest is None:
        raise FormatError("it has no SHA-384 digest, which registers of a TD are extended with")
    if event_type != RUNTIME_EVENT_TYPE:
        return WireEvent(record.pcr - 1, event_type, digest, "", record.data)
    name, payload, version = _runtime(record.data)
    preimage = record.data.hex() if version == 2 else None
    return WireEvent(record.pcr - 1, event_type, digest, name, payload, version, preimage)


def _runtime(preimage: bytes) -> tuple[str, bytes, int]:
    """Return name, payload and version of the runtime event with this preimage.

    A version 1 name has no colon, so that the first one ends it.
    """
    if preimage.startswith(_RUNTIME_V1):
        name, colon, payload = preimage[len(_RUNTIME_V1) :].partition(b":")
        if colon:
            try:
                return name.decode(), payload, 1
            except UnicodeDecodeError as error:
                raise FormatError("the name of its runtime event is not UTF-8") from error
    found = _runtime_v2(preimage) if preimage.startswith(b'{"') else None
    if found is None:
        raise FormatError("its data are not the preimage of a runtime event's digest")
    return found


def _runtime_v2(preimage: bytes) -> tuple[str, bytes, int] | None:
    try:
        said = decode_strictly(preimage)
    except FormatError:
        return None
    if not isinstance(said, dict):
        return None
    name, digits = said.get("name"), said.get("payload")
    payload = unhex(digits) if isinstance(digits, str) else None
    if not isinstance(name, str) or payload is None:
        return None
    try:
        canonical = runtime_preimage(name, payload, 2)
    except UsageError:  # half a surrogate pair
        return None
    return (name, payload, 2) if canonical == preimage else None


# -- writing ---------------------------------------------------------------------------------------


def write(events: Iterable[Event], encoding: str) -> bytes:
    """Write a CEL whose records are numbered from 0 in each register.

    Raises:
        UsageError: There is no such encoding; the log would be longer than can be read; or a
            runtime event of version 1 has a colon in its name, where its data would not tell the
            name from the payload.
    """
    if encoding not in tuple(ENCODINGS):  # which need not even be hashable
        raise UsageError("a CEL is written as tlv, cbor or json")
    records: list[CelRecord] = []
    numbers = [0, 0, 0, 0]
    for place, event in enumerate(events):
        register, event_type, digest, name, payload, version = event
        if event_type == RUNTIME_EVENT_TYPE:
            if version == 1 and ":" in name:
                raise UsageError(
                    f"event {place}, {shown(name)}, has a colon in a version 1 name, which a CEL "
                    "cannot tell from the payload's border"
                )
            digest = digest or runtime_digest(name, payload, version)
            payload = runtime_preimage(name, payload, version)
        record = CelRecord(numbers[register], register + 1, {SHA384: digest}, event_type, payload)
        numbers[register] += 1
        records.append(record)
    if len(records) > MAX_RECORDS:
        raise UsageError("a CEL has at most 65,536 records, and this log has more")
    written = ENCODINGS[encoding](records)
    if len(written) > MAX_SIZE:
        raise UsageError("this log would be longer than the 16 MiB that a CEL may have")
    return written
