"""The registers in the report, each with its events.

A log may have 65,536 events, so only the first and last events of a register are shown.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import is_of_dstack
from attestkit.errors import AttestKitError
from attestkit.event_log import Event, EventLog
from attestkit.quote import Quote

FIRST: Final = 150  # number of first events shown of a register
LAST: Final = 50  # number of last events shown of a register
OPEN: Final = 24  # maximum number of events of an unfolded timeline


class RegisterTimeline(NamedTuple):
    """One register with its value and events."""

    name: str
    value: str
    css: str  # of the state
    state: str
    summary: str  # number of events
    replayed: str = ""  # if it differs from `value`
    events: Sequence[tuple[int, Event]] = ()  # with the number in the whole log
    gap_after: int = 0  # number of events before the gap; 0: no gap
    gap: str = ""
    open: bool = False


def build_timelines(
    evidence: Attestation | Quote, registers: Sequence[tuple[str, bytes]]
) -> tuple[RegisterTimeline, ...]:
    """Return the named registers of evidence with their events."""
    plain = tuple(
        RegisterTimeline(name.upper(), value.hex(), "", "", "") for name, value in registers
    )
    if isinstance(evidence, Quote):
        return plain
    if evidence.quote is not None and not is_of_dstack(evidence.evidence.platform):
        return tuple(_paravisor_register(register) for register in plain)
    if evidence.quote is None:
        return (*plain, *_unmeasured_events(evidence))
    try:
        log = evidence.event_log
    except AttestKitError as error:  # show the error of an unreadable log
        unreadable = f"event log unreadable: {error}"
        return tuple(register._replace(css="no", state=unreadable) for register in plain)
    compared = log.explained_registers()
    replayed = dict(enumerate(log.replay()))
    return tuple(_td_timeline(name, value, log, compared, replayed) for name, value in registers)


def _paravisor_register(register: RegisterTimeline) -> RegisterTimeline:
    """Return a register of a TD that a paravisor runs: the guest extends none of them."""
    if register.name.startswith("RTMR"):
        return register._replace(css="dim", state="not extended by the guest")
    return register._replace(css="dim", state="measures the paravisor")


def _unmeasured_events(evidence: Attestation) -> tuple[RegisterTimeline, ...]:
    try:
        events = tuple(enumerate(evidence.runtime_events))
    except AttestKitError as error:
        return (RegisterTimeline("Runtime events", "", "no", str(error), ""),)
    if not events:
        return ()
    return (
        _with_events(RegisterTimeline("Runtime events", "", "warn", "not measured", ""), events),
    )


def _td_timeline(
    name: str,
    value: bytes,
    log: EventLog,
    compared: Sequence[int],
    replayed: dict[int, bytes],
) -> RegisterTimeline:
    if not name.startswith("rtmr"):
        return RegisterTimeline(name.upper(), value.hex(), "dim", "measured at launch", "")
    number = int(name.removeprefix("rtmr"))
    events = tuple((i, event) for i, event in enumerate(log.events) if event.register == number)
    if number not in compared:
        plain = RegisterTimeline(name.upper(), value.hex(), "warn", "log shortened", "")
    elif replayed[number] == value:
        plain = RegisterTimeline(name.upper(), value.hex(), "ok", "log agrees", "")
    else:
        other = replayed[number].hex()
        plain = RegisterTimeline(name.upper(), value.hex(), "no", "log differs", "", other)
    return _with_events(plain, events)


def _with_events(
    register: RegisterTimeline, events: Sequence[tuple[int, Event]]
) -> RegisterTimeline:
    shown, gap_after, gap = list(events), 0, ""
    if len(events) > FIRST + LAST:
        shown = [*events[:FIRST], *events[-LAST:]]
        gap_after, gap = FIRST, f"{len(events) - FIRST - LAST} more events are not shown here"
    return register._replace(
        summary=f"{len(events)} event{'' if len(events) == 1 else 's'}",
        events=shown,
        gap_after=gap_after,
        gap=gap,
        open=len(events) <= OPEN,
    )
