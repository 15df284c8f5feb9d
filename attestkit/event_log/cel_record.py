"""One record of a Canonical Event Log (CEL), whatever encoding it stands in, and what it may hold.

TCG Canonical Event Log Format, 1.0 and 1.1. A record has a number, the register, digests and a
content; TLV, CBOR and JSON say the same in different bytes.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from attestkit._sanitize import shown
from attestkit.errors import FormatError
from attestkit.event_log.event_types import number_by_name

__all__ = [
    "ALGORITHMS",
    "CONTENT_TYPES",
    "DIGEST_SIZES",
    "FIRMWARE_END",
    "MANAGEMENT",
    "MANAGEMENT_TYPES",
    "MOST_NUMBER",
    "NV_INDEX",
    "PC_CLIENT",
    "SHA384",
    "STATE_CHANGE",
    "STATE_NAMES",
    "VERSION",
    "CelRecord",
    "add_digest",
    "check_event_type",
    "check_management_type",
    "check_state",
    "event_type_named",
    "number_of",
    "other_content",
    "placed",
]

SHA384: Final = 0x000C

DIGEST_SIZES: Final = {
    0x0004: 20,
    0x000B: 32,
    SHA384: 48,
    0x000D: 64,
    0x0012: 32,
    0x0027: 32,
    0x0028: 48,
    0x0029: 64,
}
"""Bytes of a digest by its algorithm's id (TCG Algorithm Registry)."""

ALGORITHMS: Final = {"sha1": 4, "sha256": 0xB, "sha384": SHA384, "sha512": 0xD, "sm3_256": 0x12}
"""Algorithms that have a name in JSON."""

MANAGEMENT, PC_CLIENT = 4, 5
CONTENT_TYPES: Final = {
    "cel": MANAGEMENT,
    "pcclient_std": PC_CLIENT,
    "ima_template": 7,
    "ima_tlv": 8,
    "systemd": 9,
}
_OTHER_CONTENT: Final = {
    7: "a measurement of IMA (ima_template)",
    8: "a measurement of IMA (ima_tlv)",
    9: "a measurement of systemd",
    11: "a measurement of systemd",  # as libcel numbers it
    80: "an event of Google's containers",
}

VERSION, FIRMWARE_END, TIMESTAMP, STATE_CHANGE = 1, 2, 80, 81
MANAGEMENT_TYPES: Final = {
    "cel_version": VERSION,
    "firmware_end": FIRMWARE_END,
    "cel_timestamp": TIMESTAMP,
    "state_trans": STATE_CHANGE,
}
STATE_NAMES: Final = {"suspend": 0, "hibernate": 1, "kexec": 2}

MOST_NUMBER: Final = 2**64 - 1
NV_INDEX: Final = "it is about an NV index of a TPM (nv_index), not about a register of a TD"


class CelRecord(NamedTuple):
    """One record. What is extended into a register is its SHA-384 digest."""

    number: int
    pcr: int
    """The index as in a CCEL: 1 to 4 are RTMR0 to RTMR3, and 0 is MRTD."""
    digests: dict[int, bytes]
    """By the algorithm's id."""
    event_type: int
    """0 for a management record."""
    data: bytes
    management: frozenset[int] = frozenset()
    """The types of a management record, none for an event."""
    offset: int = 0
    """Of its first byte in the log."""


def add_digest(digests: dict[int, bytes], algorithm: int, digest: bytes, at: int | None) -> None:
    """Add a digest of a record.

    Raises:
        FormatError: The algorithm is unknown or comes twice, or the size is not its own.
    """
    size = DIGEST_SIZES.get(algorithm)
    if size is None:
        raise FormatError(f"there is no digest algorithm {shown(algorithm)}", offset=at)
    if len(digest) != size:
        message = f"a digest of algorithm {algorithm} has {len(digest)} bytes, not {size}"
        raise FormatError(message, offset=at)
    if algorithm in digests:
        raise FormatError(f"there are two digests of algorithm {algorithm}", offset=at)
    digests[algorithm] = digest


def check_event_type(number: int, at: int | None) -> int:
    """Return an event type, if it has no more than its 32 bits."""
    if number > 0xFFFFFFFF:
        raise FormatError("an event type has 32 bits", offset=at)
    return number


def event_type_named(name: str, at: int | None) -> int:
    """Return the event type that a name stands for, in letters of either case."""
    number = number_by_name(name)
    if number is None:
        raise FormatError(f"there is no event type {shown(name)}", offset=at)
    return number


def check_management_type(number: int, at: int | None) -> int:
    """Return the type of a management record, if there is one of that number."""
    if number not in MANAGEMENT_TYPES.values():
        raise FormatError(f"there is no management record of type {shown(number)}", offset=at)
    return number


def check_state(number: int, at: int | None) -> None:
    """Refuse a change of state that is none.

    Raises:
        FormatError: It is none.
    """
    if number not in STATE_NAMES.values():
        raise FormatError(f"there is no change of state {shown(number)}", offset=at)


def other_content(content_type: int, at: int | None) -> FormatError:
    """Return the refusal of a content that is no event of a TD's log."""
    name = _OTHER_CONTENT.get(content_type)
    if name is None:
        return FormatError(f"there is no content type {shown(content_type)}", offset=at)
    message = f"its content is {name}, which is no event of a TD's log"
    return FormatError(message, offset=at, reason="other_log")


def number_of(name: str, names: Mapping[str, int], what: str, at: int | None) -> int:
    """Return the number that a name stands for, in letters of either case.

    Raises:
        FormatError: It stands for none.
    """
    number = names.get(name.lower()) if name.isascii() else None
    if number is None:
        raise FormatError(f"there is no {what} {shown(name)}", offset=at)
    return number


def placed(error: FormatError, place: int, start: int) -> FormatError:
    """Return the error with the record that it is about.

    Args:
        error: What is wrong.
        place: Of the record in the log, from 0.
        start: Offset of the record, for an error without one.
    """
    offset = start if error.offset is None else error.offset
    message = f"CEL record {place}: {error.message}"
    return FormatError(message, offset=offset, reason=error.reason or "cel_record")
