"""One event of a TD's log, and what its runtime events' digests cover."""

from collections.abc import Callable
from json import JSONEncoder
from typing import NamedTuple, Protocol

from attestkit._native import sha384
from attestkit._sanitize import shown
from attestkit.errors import FormatError, UsageError
from attestkit.event_log.event_types import ACPI_CONFIG, RUNTIME_EVENT_TYPE, type_name

__all__ = [
    "ACPI_DATA",
    "ACPI_LABELS",
    "DIGEST_SIZE",
    "RUNTIME_REGISTER",
    "Event",
    "LogSource",
    "WireEvent",
    "json_string",
    "received",
    "runtime_digest",
    "runtime_preimage",
]

DIGEST_SIZE = 48
"""Bytes of a SHA-384 digest, of a register, and of every digest in a TD's log."""

ACPI_DATA = b"ACPI DATA"
"""Event data of the three events under which OVMF measures the host's ACPI tables."""

ACPI_LABELS = ("acpi-loader", "acpi-rsdp", "acpi-tables")
"""Names that the guest agent gives them, which it tells apart by their order."""

RUNTIME_REGISTER = 3
"""RTMR3, the register that runtime events extend."""

json_string: Callable[[object], str] = JSONEncoder(ensure_ascii=False).encode
"""Quote text for JSON with as few escapes as JSON allows, which is also its RFC 8785 form."""


class Event(NamedTuple):
    """What was extended into one register, and what is said about it.

    Only the digest is what the register vouches for; for a runtime event it covers name and
    payload, for most firmware events something that is not in the log.
    """

    register: int
    """0 to 3, the number of the RTMR."""
    event_type: int
    """32 bits; `type_name` tells its name."""
    digest: bytes
    """48 bytes; of a runtime event also none, in the form that certificates carry."""
    name: str
    """Name of a runtime event; of firmware's events only the ACPI tables' have one."""
    payload: bytes
    """Event data."""
    version: int = 1
    """1 or 2: which digest rule a runtime event follows."""

    @property
    def type_name(self) -> str:
        """Name of the event type, or its number in hex."""
        return type_name(self.event_type)

    @property
    def is_runtime(self) -> bool:
        """True for an event that the guest emitted, as opposed to its firmware."""
        return self.event_type == RUNTIME_EVENT_TYPE

    @property
    def is_acpi_data(self) -> bool:
        """True for the three events whose payload every form of the log keeps."""
        return self.payload == ACPI_DATA and self.event_type == ACPI_CONFIG and self.register == 0

    def preimage(self) -> bytes:
        """Return the bytes whose SHA-384 is a runtime event's digest.

        Raises:
            UsageError: It is not a runtime event; nobody knows what those digests cover.
        """
        if not self.is_runtime:
            raise UsageError(f"{self.type_name} is no runtime event: its digest has no preimage")
        return runtime_preimage(self.name, self.payload, self.version)


class WireEvent(NamedTuple):
    """One event as evidence carries it, in any encoding, before anything in it is believed."""

    imr: int
    """Number of the RTMR: 0 to 3."""
    event_type: int
    digest: bytes
    """48 bytes, or none for a runtime event."""
    event: str
    event_payload: bytes
    version: int = 1
    preimage: str | None = None
    """Hex text of a version 2 event's preimage, where it came along."""


class LogSource(Protocol):
    """What a log was read from, which makes its events when somebody asks for them."""

    @property
    def regular(self) -> bool:
        """True where `check_runtime_events` is known to pass without asking for the events."""
        ...

    def events(self) -> tuple[Event, ...]:
        """Make the events."""
        ...

    def warnings(self) -> tuple[str, ...]:
        """Return what is odd about it without being wrong."""
        ...


def runtime_preimage(name: str, payload: bytes, version: int) -> bytes:
    """Return what the digest of a runtime event covers (dstack guest agent).

    Version 1 joins type (4 bytes, little-endian), name and payload with colons; version 2 is the
    canonical JSON (RFC 8785) of all three, in which no two events look alike.

    Raises:
        UsageError: The name is not Unicode text, or there is no such version.
    """
    try:
        if version == 1:
            return b"\x01\x00\x00\x08:%b:%b" % (name.encode(), payload)
        if version == 2:
            text = f'{{"name":{json_string(name)},"payload":"{payload.hex()}","type":134217729}}'
            return text.encode()
    except UnicodeEncodeError as error:
        raise UsageError("an event name must be Unicode text without lone surrogates") from error
    raise UsageError(f"there is no version {version} of runtime events: 1 or 2")


def runtime_digest(name: str, payload: bytes, version: int = 1) -> bytes:
    """Return the 48 bytes that a runtime event extends RTMR3 with.

    Raises:
        UsageError: The name is not Unicode text, or there is no such version.
    """
    return sha384(runtime_preimage(name, payload, version))


def received(wire: WireEvent, index: int) -> Event:
    """Turn one received event into an Event, its digest recomputed if it is a runtime event.

    Raises:
        FormatError: Register, type, version, name or digest cannot be; names the event by `index`.
    """
    imr, event_type, digest, name, payload, version, _ = wire
    if not 0 <= imr <= 3:
        raise FormatError(f"event {index}: there is no RTMR{shown(imr)}", reason="imr")
    if not 0 <= event_type <= 0xFFFFFFFF:
        raise FormatError(f"event {index}: an event type has 32 bits", reason="event_type")
    if version not in (1, 2):
        raise FormatError(
            f"event {index}: version is {shown(version)}, not 1 or 2", reason="version"
        )
    runtime = event_type == RUNTIME_EVENT_TYPE
    if len(digest) != DIGEST_SIZE and (digest or not runtime):
        raise FormatError(f"event {index}: the digest has {len(digest)} bytes", reason="digest")
    if not runtime:
        return tuple.__new__(Event, (imr, event_type, digest, name, payload, 1))
    try:
        digest = runtime_digest(name, payload, version)
    except UsageError as error:
        raise FormatError(f"event {index}: {error}", reason="event") from error
    return Event(imr, RUNTIME_EVENT_TYPE, digest, name, payload, version)
