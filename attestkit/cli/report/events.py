"""The report's registers, each with the events that were measured into it.

An event log may have 65,536 events; of each register the first and the last are shown, and how many
lie between.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from attestkit.attestation import Attestation
from attestkit.errors import AttestKitError
from attestkit.event_log import Event, EventLog
from attestkit.event_log.display import Payload, event_name, preview, printable
from attestkit.event_log.event_types import NO_ACTION
from attestkit.quote import Quote

__all__ = ["Entry", "Register", "timelines"]

FIRST: Final = 150  # events shown of a register, from its start
LAST: Final = 50  # and from its end
OPEN: Final = 24  # events, up to which a timeline is unfolded


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
        event_name(event),
        event.digest.hex(),
        preview(event.payload),
        "runtime" if event.is_runtime else "silent" if silent else "",
    )
