"""The report's registers, each with the events that were measured into it.

An event log may have 65,536 events; of each register the first and the last are shown, and how many
lie between.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from attestkit.attestation import Attestation
from attestkit.errors import AttestKitError
from attestkit.event_log import Event, EventLog
from attestkit.event_log.event_types import NO_ACTION
from attestkit.quote import Quote

__all__ = ["Entry", "Payload", "Register", "preview", "printable", "timelines"]

FIRST: Final = 150  # events shown of a register, from its start
LAST: Final = 50  # and from its end
LONGEST: Final = 160  # characters of a payload
LONGEST_NAME: Final = 200
OPEN: Final = 24  # events, up to which a timeline is unfolded
# Types whose data are a UEFI_VARIABLE_DATA (TCG PC Client Platform Firmware Profile, 10.2.6).
_VARIABLES: Final = frozenset({0x80000001, 0x80000002, 0x8000000C, 0x800000E0})
_VARIABLE_NAME: Final = 32  # behind GUID, characters of the name, bytes of the value


class Payload(NamedTuple):
    """The start of an event's data, readable."""

    text: str
    size: int  # bytes of the whole
    note: str = ""


class Entry(NamedTuple):
    """One event of a timeline."""

    number: int  # in the whole log
    type: str
    name: str
    digest: str
    payload: Payload
    css: str  # runtime, silent, or nothing


class Register(NamedTuple):
    """One register, its value, and its events."""

    name: str
    value: str
    css: str  # of the state
    state: str
    says: str  # how many events
    replayed: str = ""  # where that is another value
    events: tuple[Entry, ...] = ()
    gap_after: int = 0  # entries before the gap; 0: none
    gap: str = ""
    open: bool = False


def printable(text: str, limit: int = 4000) -> str:
    """Return text without control and direction characters, which are shown as their numbers."""
    cut = text[:limit] + (f" ... {len(text)} characters" if len(text) > limit else "")
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in cut)


def preview(payload: bytes) -> Payload:
    """Return the start of a payload: as text if it is some, else in hex."""
    size = len(payload)
    text = _text(payload)
    if text is not None:
        note = f"{size} bytes" if len(text) > LONGEST else ""
        return Payload(text[:LONGEST] + ("..." if note else ""), size, note)
    shown = payload[: LONGEST // 2].hex()
    more = size > LONGEST // 2
    return Payload(shown + ("..." if more else ""), size, f"{size} bytes")


def _text(payload: bytes) -> str | None:
    """Return a payload as text, if all of it is printable: UTF-8, or UTF-16 as firmware has it."""
    if len(payload) > 8 * LONGEST:
        return None
    head = payload.rstrip(b"\0")
    if not head:
        return None
    try:
        # Two bytes of anything are some letter of UTF-16, so that only ASCII counts.
        if len(head) > 2 and not any(head[1::2]):
            text = (head + b"\0" * (len(head) % 2)).decode("utf-16-le")
            return text if text.isprintable() else None
        text = head.decode("utf-8")
        strings = [part for part in text.split("\0") if part]  # firmware pads between them
    except UnicodeDecodeError:
        return None
    if not all(part.isprintable() for part in strings):
        return None
    return " \N{MIDDLE DOT} ".join(strings)


def _name(event: Event) -> str:
    """Return an event's name; that of a variable of the firmware is in its data."""
    if event.event_type not in _VARIABLES:
        return event.name
    size = 2 * int.from_bytes(event.payload[16:24], "little")
    name = event.payload[_VARIABLE_NAME : _VARIABLE_NAME + min(size, 2 * LONGEST_NAME)]
    return event.name or name.decode("utf-16-le", errors="replace")


def timelines(
    evidence: Attestation | Quote, registers: Sequence[tuple[str, bytes]]
) -> tuple[Register, ...]:
    """Return the registers of evidence, by the names and values given, with their events."""
    plain = tuple(Register(name.upper(), value.hex(), "", "", "") for name, value in registers)
    if isinstance(evidence, Quote):
        return plain
    if evidence.quote is None:
        return (*plain, *_unmeasured(evidence))
    try:
        log = evidence.event_log
    except AttestKitError as error:  # a log that cannot be read is shown as such
        unreadable = f"the log cannot be read: {printable(str(error), 200)}"
        return tuple(register._replace(css="no", state=unreadable) for register in plain)
    compared = log.explained_registers()
    replayed = dict(enumerate(log.replay()))
    return tuple(_of_td(name, value, log, compared, replayed) for name, value in registers)


def _unmeasured(evidence: Attestation) -> tuple[Register, ...]:
    try:
        events = tuple(enumerate(evidence.runtime_events))
    except AttestKitError as error:
        return (Register("Runtime events", "", "no", printable(str(error), 200), ""),)
    if not events:
        return ()
    return (_with_events(Register("Runtime events", "", "warn", "not measured", ""), events),)


def _of_td(
    name: str,
    value: bytes,
    log: EventLog,
    compared: Sequence[int],
    replayed: dict[int, bytes],
) -> Register:
    if not name.startswith("rtmr"):
        return Register(name.upper(), value.hex(), "dim", "measured at launch", "")
    number = int(name.removeprefix("rtmr"))
    events = tuple((i, event) for i, event in enumerate(log.events) if event.register == number)
    if number not in compared:
        plain = Register(name.upper(), value.hex(), "warn", "log shortened", "")
    elif replayed[number] == value:
        plain = Register(name.upper(), value.hex(), "ok", "log agrees", "")
    else:
        other = replayed[number].hex()
        plain = Register(name.upper(), value.hex(), "no", "log differs", "", other)
    return _with_events(plain, events)


def _with_events(register: Register, events: Sequence[tuple[int, Event]]) -> Register:
    shown, gap_after, gap = list(events), 0, ""
    if len(events) > FIRST + LAST:
        shown = [*events[:FIRST], *events[-LAST:]]
        gap_after, gap = FIRST, f"{len(events) - FIRST - LAST} more events are not shown here"
    return register._replace(
        says=f"{len(events)} event{'' if len(events) == 1 else 's'}",
        events=tuple(_entry(index, event) for index, event in shown),
        gap_after=gap_after,
        gap=gap,
        open=len(events) <= OPEN,
    )


def _entry(index: int, event: Event) -> Entry:
    silent = event.event_type == NO_ACTION
    return Entry(
        index,
        event.type_name + (" (extends nothing)" if silent else ""),
        printable(_name(event), LONGEST_NAME),
        event.digest.hex(),
        preview(event.payload),
        "runtime" if event.is_runtime else "silent" if silent else "",
    )
