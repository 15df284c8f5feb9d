"""Registers and events for the dashboard, limited in size.

A log may have 65,536 events, and an event ten megabytes. The page shows the first and the last
events with the start of their payloads; `/prpc/Worker.Info` returns the whole log.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from attestkit.event_log import Event
from attestkit.event_log.display import Payload, event_name, preview
from attestkit.event_log.event_types import RUNTIME_EVENT_TYPE
from attestkit.serve.services.context import AppMeasurements

__all__ = [
    "FIRST",
    "LAST",
    "LONGEST_TEXT",
    "EventRow",
    "EventSpan",
    "Measurements",
    "Register",
    "measurements",
]

FIRST: Final = 100  # events shown at the start of a span
LAST: Final = 100  # and at its end
LONGEST_TEXT: Final = 128 * 1024  # characters of tcb_info
_GROUP: Final = 8  # hex digits
_WHAT: Final = {
    "mrtd": "firmware, as launched",
    "rtmr0": "firmware settings, ACPI tables",
    "rtmr1": "boot loader and kernel",
    "rtmr2": "kernel command line, initrd",
    "rtmr3": "the app, and what it emits",
}


class Register(NamedTuple):
    """A register of the TD; the joined `groups` are its value in hex."""

    name: str
    what: str
    value: str
    groups: tuple[str, ...]


class EventRow(NamedTuple):
    """One event."""

    number: int  # in the whole log, from 0
    register: str
    type: str
    name: str
    payload: Payload
    digest: str


class EventSpan(NamedTuple):
    """A part of the log: all of its events, or the first and the last ones with a gap."""

    total: int
    entries: tuple[EventRow, ...]
    gap_after: int = 0  # entries before the gap; 0 without a gap
    gap: int = 0  # events in it


class Measurements(NamedTuple):
    """Measurements to show; empty if the app hides them."""

    registers: tuple[Register, ...] = ()
    boot: EventSpan = EventSpan(0, ())
    runtime: EventSpan = EventSpan(0, ())
    text: str = ""
    length: int = 0  # characters of the whole text

    @property
    def is_cut(self) -> bool:
        """Whether the text is truncated."""
        return len(self.text) < self.length


def measurements(measured: AppMeasurements | None) -> Measurements:
    """Return the measurements to show; None hides them."""
    if measured is None:
        return Measurements()
    events, text = measured.log.events, measured.tcb_info
    # Not by is_runtime, which is slower: 65,536 events would block the event loop.
    runtime = [at for at, event in enumerate(events) if event.event_type == RUNTIME_EVENT_TYPE]
    boot = [at for at, event in enumerate(events) if event.event_type != RUNTIME_EVENT_TYPE]
    registers = measured.registers.items()
    return Measurements(
        tuple([_register(name, value) for name, value in registers if value is not None]),
        _span(events, boot),
        _span(events, runtime),
        text.start(LONGEST_TEXT),
        text.length,
    )


def _register(name: str, value: bytes) -> Register:
    text = value.hex()
    groups = tuple(text[at : at + _GROUP] for at in range(0, len(text), _GROUP))
    return Register(name.upper(), _WHAT[name], text, groups)


def _span(events: Sequence[Event], indexes: Sequence[int]) -> EventSpan:
    """Return the events at `places` that are shown."""
    gap = max(0, len(indexes) - FIRST - LAST)
    shown = [*indexes[:FIRST], *indexes[-LAST:]] if gap else indexes
    entries = tuple([_entry(at, events[at]) for at in shown])
    return EventSpan(len(indexes), entries, FIRST if gap else 0, gap)


def _entry(at: int, event: Event) -> EventRow:
    return EventRow(
        at,
        f"RTMR{event.register}",
        event.type_name,
        event_name(event),
        preview(event.payload),
        event.digest.hex(),
    )
