"""The log of a TD as evidence carries it, which grows as the log does."""

from typing import NamedTuple

from attestkit.attestation.wire.evidence_parts import RuntimeEvent
from attestkit.event_log import Event, EventLog
from attestkit.event_log.event import RUNTIME_REGISTER, WireEvent

__all__ = ["WireLog", "wire_event"]


class WireLog(NamedTuple):
    """The same events three times."""

    events: tuple[Event, ...] = ()
    on_wire: tuple[WireEvent, ...] = ()
    runtime: tuple[RuntimeEvent, ...] = ()  # those of RTMR3 that a guest emitted

    def of(self, log: EventLog) -> "WireLog":
        """Return the one of `log`; if that is this log and more, only what is new is made."""
        events, known = log.events, self
        if events[: len(known.events)] != known.events:
            known = WireLog()
        new = events[len(known.events) :]
        on_wire = [wire_event(event) for event in new]
        runtime = [
            RuntimeEvent(event.name, event.payload, event.version)
            for event in new
            if event.is_runtime and event.register == RUNTIME_REGISTER
        ]
        return WireLog(events, (*known.on_wire, *on_wire), (*known.runtime, *runtime))


def wire_event(event: Event) -> WireEvent:
    """Return an event as evidence carries it."""
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
