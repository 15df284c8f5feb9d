"""What a guest's information shows of its registers and events, bounded for a page.

A log may have 65,536 events and an app may write ten megabytes into one. The first and the last
events are shown with the start of their data; whoever wants all of it asks `/prpc/Worker.Info`.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from attestkit.event_log import Event
from attestkit.event_log.display import Payload, event_name, preview
from attestkit.event_log.event_types import RUNTIME_EVENT_TYPE
from attestkit.serve.services.context import Measured

__all__ = [
    "FIRST",
    "LAST",
    "LONGEST_TEXT",
    "Entry",
    "Measurements",
    "Register",
    "Span",
    "measurements",
]

FIRST: Final = 100  # events shown of a span, from its start
LAST: Final = 100  # and from its end
LONGEST_TEXT: Final = 128 * 1024  # characters of the TCB info that are shown
_GROUP: Final = 8  # hex digits
_WHAT: Final = {
    "mrtd": "firmware, as launched",
    "rtmr0": "firmware settings, ACPI tables",
    "rtmr1": "boot loader and kernel",
    "rtmr2": "kernel command line, initrd",
    "rtmr3": "the app, and what it emits",
}


class Register(NamedTuple):
    """A register of the TD; `groups` joined are its value in hex."""

    name: str
    what: str
    value: str
    groups: tuple[str, ...]


class Entry(NamedTuple):
    """One event."""

    number: int  # in the whole log, from 0
    register: str
    type: str
    name: str
    payload: Payload
    digest: str


class Span(NamedTuple):
    """A part of the log: all of its events, or the first and the last with a gap between."""

    total: int
    entries: tuple[Entry, ...]
    gap_after: int = 0  # entries before the gap; 0: none
    gap: int = 0  # events in it


class Measurements(NamedTuple):
    """What the guest's information shows of the TEE; empty where the app hides it."""

    registers: tuple[Register, ...] = ()
    boot: Span = Span(0, ())
    runtime: Span = Span(0, ())
    text: str = ""
    length: int = 0  # characters of the whole text

    @property
    def is_cut(self) -> bool:
        """True if there is more text than is shown."""
        return len(self.text) < self.length


def measurements(measured: Measured | None) -> Measurements:
    """Return what is shown of what was measured; None: it is hidden."""
    if measured is None:
        return Measurements()
    events, text = measured.log.events, measured.tcb_info
    # Not by is_runtime: there may be 65,536 of them, and everybody else waits.
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


def _span(events: Sequence[Event], places: Sequence[int]) -> Span:
    """Return what is shown of those events that are in `places`."""
    gap = max(0, len(places) - FIRST - LAST)
    shown = [*places[:FIRST], *places[-LAST:]] if gap else places
    entries = tuple([_entry(at, events[at]) for at in shown])
    return Span(len(places), entries, FIRST if gap else 0, gap)


def _entry(at: int, event: Event) -> Entry:
    return Entry(
        at,
        f"RTMR{event.register}",
        event.type_name,
        event_name(event),
        preview(event.payload),
        event.digest.hex(),
    )
