"""Event log of a TD as received and sent (wire form), extended incrementally."""

from typing import NamedTuple

from attestkit.attestation.wire.evidence_parts import RuntimeEvent
from attestkit.event_log import Event, EventLog
from attestkit.event_log.event import RUNTIME_REGISTER, WireEvent


class WireLog(NamedTuple):
    """Events of a log that were converted to wire form so far; `extend_to` converts later ones."""

    events: tuple[Event, ...] = ()
    on_wire: tuple[WireEvent, ...] = ()
    runtime: tuple[RuntimeEvent, ...] = ()  # runtime events of RTMR3

    def extend_to(self, log: EventLog) -> "WireLog":
        """Return the wire form of `log`, reusing this one if `log` begins with its events."""
        events, known = log.events, self
        if events[: len(known.events)] != known.events:
            known = WireLog()
        new = events[len(known.events) :]
        on_wire = [to_wire_event(event) for event in new]
        runtime = [
            RuntimeEvent(event.name, event.payload, event.version)
            for event in new
            if event.is_runtime and event.register == RUNTIME_REGISTER
        ]
        return WireLog(events, (*known.on_wire, *on_wire), (*known.runtime, *runtime))


def to_wire_event(event: Event) -> WireEvent:
    """Return an event as evidence contains it, with a preimage (hex) if it has version 2."""
    preimage = event.preimage().hex() if event.is_runtime and event.version == 2 else None
    return WireEvent(
        event.register,
        event.event_type,
        event.digest,
        event.name,
        event.payload,
        event.version,
        preimage,
    )
