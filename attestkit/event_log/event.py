"""Events of a TD's log, and the digests of runtime events.

Event names and data for display, without control characters.
"""

from collections.abc import Callable
from json import JSONEncoder
from typing import Final, NamedTuple, Protocol

from attestkit._argument_checks import utf8
from attestkit._native import sha384
from attestkit._sanitize import printable, shown
from attestkit.errors import FormatError, UsageError
from attestkit.event_log.event_types import (
    ACPI_CONFIG,
    RUNTIME_EVENT_TYPE,
    VARIABLE_TYPES,
    type_name,
)

DIGEST_SIZE = 48
"""Size of a SHA-384 digest and of an RTMR, in bytes."""

ACPI_DATA = b"ACPI DATA"
"""Data of the three events by which OVMF measures the ACPI tables of the host."""

ACPI_LABELS = ("acpi-loader", "acpi-rsdp", "acpi-tables")
"""Names of the three ACPI events in the dstack guest agent, in their order in the log."""

RUNTIME_REGISTER = 3
"""RTMR3, the register that runtime events extend."""

json_string: Callable[[object], str] = JSONEncoder(ensure_ascii=False).encode
"""Return text as a JSON string with the fewest escapes (the form of RFC 8785)."""


class Event(NamedTuple):
    """One measurement: the digest extended into a register, with its description.

    A register authenticates the digest only. The digest of a runtime event covers name and payload;
    the digest of most firmware events covers data that are not in the log.
    """

    register: int
    """Number of the RTMR, 0 to 3."""
    event_type: int
    """TCG event type, 32 bits; see `type_name`."""
    digest: bytes
    """48 bytes, or empty for a runtime event of a log shortened for a certificate."""
    name: str
    """Name of a runtime event or of an ACPI table event; otherwise ""."""
    payload: bytes
    """Event data."""
    version: int = 1
    """Digest version of a runtime event, 1 or 2."""

    @property
    def type_name(self) -> str:
        """Name of the event type, or its number in hex."""
        return type_name(self.event_type)

    @property
    def is_runtime(self) -> bool:
        """Whether the event type is that of runtime events."""
        return self.event_type == RUNTIME_EVENT_TYPE

    @property
    def is_acpi_data(self) -> bool:
        """Whether this event measures an ACPI table; shortened logs keep its payload."""
        return self.payload == ACPI_DATA and self.event_type == ACPI_CONFIG and self.register == 0

    def preimage(self) -> bytes:
        """Return the bytes whose SHA-384 is a runtime event's digest; see `runtime_preimage`.

        Raises:
            UsageError: If this is not a runtime event.
        """
        if not self.is_runtime:
            message = f"preimage: only runtime events have one, not {self.type_name}"
            raise UsageError(message, reason="not_applicable")
        return runtime_preimage(self.name, self.payload, self.version)


class WireEvent(NamedTuple):
    """One event with the fields and values as received in evidence, not checked."""

    imr: int
    """Number of the RTMR, 0 to 3."""
    event_type: int
    digest: bytes
    """48 bytes, or empty for a runtime event."""
    event: str
    """Name; empty for most firmware events."""
    event_payload: bytes
    version: int = 1
    preimage: str | None = None
    """Preimage of a version 2 event in hex; optional."""


class LogSource(Protocol):
    """A parsed log whose events are decoded on first use."""

    @property
    def regular(self) -> bool:
        """Whether `check_runtime_events` is known to pass, without decoding the events."""
        ...

    def events(self) -> tuple[Event, ...]:
        """Decode the events."""
        ...

    def warnings(self) -> tuple[str, ...]:
        """Return texts about anomalies that do not make the log invalid."""
        ...


def runtime_preimage(name: str, payload: bytes, version: int) -> bytes:
    """Return the bytes that the digest of a runtime event covers (dstack guest agent).

    Version 1 joins type (4 bytes, little-endian), name and payload with colons. Version 2 is the
    canonical JSON (RFC 8785) of all three, with the payload in hex, which is unambiguous.

    Raises:
        UsageError: If the name has a lone surrogate, or the version is unknown.
    """
    if version == 1:
        return b"\x01\x00\x00\x08:%b:%b" % (utf8(name, "event name", UsageError), payload)
    if version == 2:
        text = f'{{"name":{json_string(name)},"payload":"{payload.hex()}","type":134217729}}'
        return utf8(text, "event name", UsageError)
    raise UsageError(f"event version: must be 1 or 2, not {version}", reason="wrong_value")


def runtime_digest(name: str, payload: bytes, version: int = 1) -> bytes:
    """Return the SHA-384, 48 bytes, with which a runtime event extends RTMR3.

    It is that of `runtime_preimage`, for the same name, payload and version (1 or 2).

    Raises:
        UsageError: If the name has a lone surrogate, or the version is unknown.
    """
    return sha384(runtime_preimage(name, payload, version))


def event_from_wire(wire: WireEvent, index: int) -> Event:
    """Check a received event and return it as an Event; recompute the digest of a runtime event.

    `index` is that of the event in the log, from 0.

    Raises:
        FormatError: If register, type, version, name or digest are not valid; the message gives
            `index`.
    """
    imr, event_type, digest, name, payload, version, _ = wire
    if not 0 <= imr <= 3:
        raise FormatError(f"event {index}: imr must be 0 to 3, not {shown(imr)}", reason="imr")
    if not 0 <= event_type <= 0xFFFFFFFF:
        raise FormatError(f"event {index}: event type must fit in 32 bits", reason="event_type")
    if version not in (1, 2):
        message = f"event {index}: version must be 1 or 2, not {shown(version)}"
        raise FormatError(message, reason="version")
    runtime = event_type == RUNTIME_EVENT_TYPE
    if len(digest) != DIGEST_SIZE and (digest or not runtime):
        message = f"event {index}: digest must be 48 bytes, not {len(digest)}"
        raise FormatError(message, reason="digest")
    if not runtime:
        return tuple.__new__(Event, (imr, event_type, digest, name, payload, 1))
    try:
        digest = runtime_digest(name, payload, version)
    except UsageError as error:
        raise FormatError(f"event {index}: {error}", reason="encoding") from error
    return Event(imr, RUNTIME_EVENT_TYPE, digest, name, payload, version)


MAX_PREVIEW: Final = 160  # characters
MAX_NAME: Final = 200  # characters
_VARIABLE_NAME: Final = 32  # offset of the name, after GUID and the two lengths


class Payload(NamedTuple):
    """The start of an event's data, as printable text.

    Attributes:
        text: The start, as text or hex, with `...` if it is cut.
        size: Size of the whole data in bytes.
        note: Size of the data as text, such as `300 bytes`, if `text` is cut or hex; else empty.
        is_hex: Whether `text` is hex, because the data are not text.
    """

    text: str
    size: int  # of the whole data, in bytes
    note: str = ""
    is_hex: bool = False  # the data are not text


def preview(payload: bytes) -> Payload:
    """Return the start of a payload, for display: as text if it is printable, else in hex."""
    size = len(payload)
    text = _text(payload)
    if text is not None:
        note = f"{size} bytes" if len(text) > MAX_PREVIEW else ""
        return Payload(text[:MAX_PREVIEW] + ("..." if note else ""), size, note)
    shown = payload[: MAX_PREVIEW // 2].hex()
    more = size > MAX_PREVIEW // 2
    return Payload(shown + ("..." if more else ""), size, f"{size} bytes", is_hex=True)


def _text(payload: bytes) -> str | None:
    """Return a payload as text; None unless all of it is printable.

    It is UTF-8, or UTF-16 with ASCII characters only.
    """
    if len(payload) > 8 * MAX_PREVIEW:
        return None
    head = payload.rstrip(b"\0")
    if not head:
        return None
    try:
        # Nearly any two bytes are a character of UTF-16, so only ASCII is recognised.
        if len(head) > 2 and not any(head[1::2]):
            text = (head + b"\0" * (len(head) % 2)).decode("utf-16-le")
            return text if text.isprintable() else None
        text = head.decode("utf-8")
        strings = [part for part in text.split("\0") if part]  # firmware zero-pads strings
    except UnicodeDecodeError:
        return None
    if not all(part.isprintable() for part in strings):
        return None
    return " \N{MIDDLE DOT} ".join(strings)


def event_name(event: Event) -> str:
    """Return an event's name, or the name of the UEFI variable in its data, for display."""
    return printable(_name(event), MAX_NAME)


def _name(event: Event) -> str:
    if event.event_type not in VARIABLE_TYPES:
        return event.name
    size = 2 * int.from_bytes(event.payload[16:24], "little")
    name = event.payload[_VARIABLE_NAME : _VARIABLE_NAME + min(size, 2 * MAX_NAME)]
    return event.name or name.decode("utf-16-le", errors="replace")
