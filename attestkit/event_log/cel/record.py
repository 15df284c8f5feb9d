"""Records of a Canonical Event Log (CEL), and the checks that all its encodings share.

TCG Canonical Event Log Format, 1.0 and 1.1. A record has a number, a register, digests and a
content. The argument `at` is the offset of the checked part, for errors; None if it is not known.
"""

from typing import Final, NamedTuple

from attestkit._outcomes.reasons import FormatReason
from attestkit._sanitize import shown
from attestkit.errors import FormatError
from attestkit.event_log.event_types import number_by_name

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
"""Digest sizes in bytes, by algorithm ID (TCG Algorithm Registry)."""

ALGORITHMS: Final = {"sha1": 4, "sha256": 0xB, "sha384": SHA384, "sha512": 0xD, "sm3_256": 0x12}
"""Algorithm IDs by their names in JSON."""

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
NV_INDEX: Final = "the record is for an NV index of a TPM (nv_index), not a register of a TD"
TWO_REGISTERS: Final = "the record has two registers; pcr and nv_index exclude each other"


class CelRecord(NamedTuple):
    """One record of a CEL. Its SHA-384 digest is extended into the register."""

    number: int
    pcr: int
    """Register index as in a CCEL: 1 to 4 for RTMR0 to RTMR3, 0 for MRTD."""
    digests: dict[int, bytes]
    """Digests by algorithm ID."""
    event_type: int
    """TCG event type; 0 for a management record."""
    data: bytes
    management: frozenset[int] = frozenset()
    """Types of the statements of a management record; empty for an event."""
    offset: int = 0
    """Offset of the record in the log, in bytes."""


def bad(problem: str, reason: FormatReason, offset: int | None = None) -> FormatError:
    """Return a FormatError with the text `problem`, for a malformed part of a record.

    `offset` is that of the part in the log, in bytes; None: unknown.
    """
    return FormatError(problem, reason=reason, offset=offset)


def add_digest(digests: dict[int, bytes], algorithm: int, digest: bytes, at: int | None) -> None:
    """Add a digest of a record to `digests`, which has them by the TCG's number of the algorithm.

    `at` is the offset of the digest in the log, for errors; None: unknown.

    Raises:
        FormatError: If the algorithm is unknown or occurs twice, or the digest has another size.
    """
    size = DIGEST_SIZES.get(algorithm)
    if size is None:
        raise bad(f"unknown digest algorithm {shown(algorithm)}", "unsupported_algorithm", at)
    if len(digest) != size:
        message = f"digest of algorithm {algorithm} has {len(digest)} bytes, must have {size}"
        raise FormatError(message, offset=at, reason="wrong_size")
    if algorithm in digests:
        raise bad(f"digest of algorithm {algorithm} occurs twice", "duplicate", at)
    digests[algorithm] = digest


def check_event_type(number: int, at: int | None) -> int:
    """Return the event type `number`, or raise FormatError if it exceeds 32 bits.

    `at` is its offset in the log, for the error; None: unknown.
    """
    if number > 0xFFFFFFFF:
        raise bad("event type must fit in 32 bits", "event_type", at)
    return number


def event_type_named(name: str, at: int | None) -> int:
    """Return the number of an event type by its TCG name, in upper or lower case.

    `at` is the offset of the name in the log, for the error; None: unknown.

    Raises:
        FormatError: If the name is unknown.
    """
    number = number_by_name(name)
    if number is None:
        raise bad(f"unknown event type {shown(name)}", "event_type", at)
    return number


def check_management_type(number: int, at: int | None) -> int:
    """Return the management type `number`, or raise FormatError if it is unknown.

    `at` is its offset in the log, for the error; None: unknown.
    """
    if number not in MANAGEMENT_TYPES.values():
        raise bad(f"unknown management record type {shown(number)}", "wrong_value", at)
    return number


def check_state(number: int, at: int | None) -> None:
    """Raise FormatError if `number` is not a known state transition; see `STATE_NAMES`.

    `at` is its offset in the log, for the error; None: unknown.
    """
    if number not in STATE_NAMES.values():
        raise bad(f"unknown state transition {shown(number)}", "wrong_value", at)


def content_error(content_type: int, at: int | None) -> FormatError:
    """Return the error for the number of a content type that is unknown or not of a TD's log.

    `at` is its offset in the log; None: unknown.
    """
    name = _OTHER_CONTENT.get(content_type)
    if name is None:
        message = f"unknown content type {shown(content_type)}"
        return FormatError(message, offset=at, reason="wrong_value")
    message = f"the content is {name}, not an event of a TD"
    return FormatError(message, offset=at, reason="other_log")


def record_error(error: FormatError, position: int, start: int) -> FormatError:
    """Return an error whose message gives the record's position.

    Args:
        error: The error in the record.
        position: Position of the record in the log, from 0.
        start: Offset of the record in bytes, for an error without an offset.
    """
    offset = start if error.offset is None else error.offset
    message = f"CEL record {position}: {error.message}"
    return FormatError(message, offset=offset, reason=error.reason)
