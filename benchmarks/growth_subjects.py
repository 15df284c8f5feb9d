"""What grows: for each subject a function that makes input of a size, and the work on it.

Input is synthetic and as small as its format allows, but for logs at their largest, which are about
16 MiB in 65,536 events: both of the parsers' caps at once.
"""

import struct
from collections.abc import Callable
from hashlib import sha384
from typing import Any, Final, NamedTuple

from attestkit import _native
from attestkit.event_log import Event, EventLog
from attestkit.quote import Quote
from benchmarks.evidence.quotes import eight_columns
from tests.samples.quotes import made_quote

__all__ = ["CAP", "SUBJECTS", "Subject"]

CAP: Final = 65_536  # events that a parser takes
LOG_EVENTS: Final = 28  # of a log in a batch, as many as a real one has
PAYLOAD: Final = bytes(38)  # of a JSON event, so that 65,536 events have nearly 16 MiB
DATA: Final = bytes(180)  # of a CCEL's, the same
INITIAL: Final = 0x80000008  # EV_EFI_PLATFORM_FIRMWARE_BLOB
TENFOLD: Final = tuple(10**power for power in range(1, 7))


class Subject(NamedTuple):
    """One piece of work whose input can have any size."""

    what: str
    unit: str  # what the size counts
    make: Callable[[int], Any]
    work: Callable[[Any], object]
    sizes: tuple[int, ...]
    linear_from: int = 1000  # the size from which on what is done once no longer shows


def _digests(count: int) -> bytes:
    """Return so many digests, of which the first ones differ."""
    some = [sha384(bytes([number])).digest() for number in range(64)]
    return b"".join(some[number % 64] for number in range(count))


def _columns(count: int) -> tuple[bytes, bytes]:
    return bytes(number % 4 for number in range(count)), _digests(count)


def _logs(count: int) -> list[EventLog]:
    digest = sha384(b"event").digest()
    log = EventLog(Event(number % 4, INITIAL, digest, "", b"") for number in range(LOG_EVENTS))
    return [log] * (count // LOG_EVENTS + 1)


def _json(count: int) -> str:
    event = '{"imr":%d,"event_type":2147483656,"digest":"%s","event":"","event_payload":"%s"}'
    digest, payload = sha384(b"event").hexdigest(), PAYLOAD.hex()
    return "[" + ",".join([event % (number % 4, digest, payload) for number in range(count)]) + "]"


def _ccel(count: int) -> bytes:
    """Return a log area of so many records, the first of which is its header."""
    spec = b"Spec ID Event03\0" + struct.pack("<I4BI2HB", 0, 0, 2, 0, 2, 1, 12, 48, 0)
    header = struct.pack("<II20xI", 1, 3, len(spec)) + spec
    record = struct.pack("<3IH", 0, INITIAL, 1, 12) + sha384(b"event").digest()
    record = record[4:] + struct.pack("<I", len(DATA)) + DATA
    return header + b"".join(
        struct.pack("<I", number % 4 + 1) + record for number in range(count - 1)
    )


def _quotes(count: int) -> list[bytes]:
    return [made_quote()] * count


_LOG_SIZES: Final = (10, 100, 1000, 10_000, CAP)
_QUOTE_SIZES: Final = (1, *TENFOLD[:5])


def _joined(count: int) -> bytes:
    return made_quote() * count


SUBJECTS: Final[dict[str, Subject]] = {
    "replay": Subject(
        "replay of one log", "digests", _columns, lambda columns: _native.replay(*columns), TENFOLD
    ),
    "replay-many": Subject(
        "replay of logs of 28", "digests", _logs, EventLog.replay_many, TENFOLD[1:]
    ),
    "json": Subject(
        "JSON to registers", "events", _json, lambda t: EventLog.from_json(t).replay(), _LOG_SIZES
    ),
    "json-events": Subject(
        "JSON to events", "events", _json, lambda t: EventLog.from_json(t).events, _LOG_SIZES
    ),
    "ccel": Subject(
        "a CCEL to registers", "events", _ccel, lambda a: EventLog.from_ccel(a).replay(), _LOG_SIZES
    ),
    "ccel-events": Subject(
        "a CCEL to events", "events", _ccel, lambda a: EventLog.from_ccel(a).events, _LOG_SIZES
    ),
    # Ten nanoseconds of work on a kilobyte: a thousand quotes are in the second cache, and what
    # does not fit there costs what memory does.
    "columns": Subject(
        "quote_columns, 8 fields", "quotes", _joined, eight_columns, _QUOTE_SIZES, 10_000
    ),
    "parse-many": Subject("Quote.parse_many", "quotes", _quotes, Quote.parse_many, _QUOTE_SIZES),
}
