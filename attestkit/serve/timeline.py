"""What a guest's information shows of its registers and events, bounded for a page.

A log may have 65,536 events and an app may write ten megabytes into one. The first and the last
events are shown with the start of their data; whoever wants all of it asks `/prpc/Worker.Info`.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from attestkit.event_log import Event
from attestkit.event_log.readable import Payload, event_name, preview
from attestkit.serve.messages import AppInfo

__all__ = ["FIRST", "LAST", "LONGEST_TEXT", "Entry", "Measurements", "Register", "Span", "measured"]

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


def measured(info: AppInfo) -> Measurements:
    """Return what is shown of the measurements in `info`."""
    if not info.tcb_info:
        return Measurements()
    found = json.loads(info.tcb_info)
    events = list(enumerate(map(_event, found["event_log"])))
    boot = [(at, event) for at, event in events if not event.is_runtime]
    runtime = [(at, event) for at, event in events if event.is_runtime]
    return Measurements(
        tuple(_register(name, found[name]) for name in _WHAT if found[name] is not None),
        _span(boot),
        _span(runtime),
        info.tcb_info[:LONGEST_TEXT],
        len(info.tcb_info),
    )


def _register(name: str, value: str) -> Register:
    groups = tuple(value[at : at + _GROUP] for at in range(0, len(value), _GROUP))
    return Register(name.upper(), _WHAT[name], value, groups)


def _span(events: Sequence[tuple[int, Event]]) -> Span:
    if len(events) <= FIRST + LAST:
        return Span(len(events), tuple(_entry(at, event) for at, event in events))
    shown = [*events[:FIRST], *events[-LAST:]]
    gap = len(events) - len(shown)
    return Span(len(events), tuple(_entry(at, event) for at, event in shown), FIRST, gap)


def _entry(at: int, event: Event) -> Entry:
    return Entry(
        at,
        f"RTMR{event.register}",
        event.type_name,
        event_name(event),
        preview(event.payload),
        event.digest.hex(),
    )


def _event(fields: Mapping[str, Any]) -> Event:
    """Return the event in an entry of the agent's JSON, which this server wrote itself."""
    return Event(
        fields["imr"],
        fields["event_type"],
        bytes.fromhex(fields["digest"]),
        fields["event"],
        bytes.fromhex(fields["event_payload"]),
    )
