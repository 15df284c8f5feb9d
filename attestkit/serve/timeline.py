"""What a guest's information shows of its registers and events, bounded for a page.

A log may have 65,536 events and an app may write ten megabytes into one. The first and the last
events are shown with the start of their data; whoever wants all of it asks `/prpc/Worker.Info`.
"""

from collections.abc import Sequence
from itertools import starmap
from typing import Final, NamedTuple

from msgspec import Struct
from msgspec.json import Decoder

from attestkit.event_log import Event
from attestkit.event_log.event_types import RUNTIME_EVENT_TYPE
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


class _Logged(Struct, gc=False):
    """An event as the agent's JSON has it, which this server wrote itself.

    There may be many, of which few are shown: only those become events.
    """

    imr: int
    event_type: int
    digest: str
    event: str
    event_payload: str


class _TcbInfo(Struct):
    """What is shown of the TCB info."""

    event_log: list[_Logged]
    mrtd: str | None
    rtmr0: str | None
    rtmr1: str | None
    rtmr2: str | None
    rtmr3: str | None


_read = Decoder(_TcbInfo).decode


def measured(info: AppInfo) -> Measurements:
    """Return what is shown of the measurements in `info`."""
    if not info.tcb_info:
        return Measurements()
    found = _read(info.tcb_info)
    boot: list[tuple[int, _Logged]] = []
    runtime: list[tuple[int, _Logged]] = []
    for event in enumerate(found.event_log):
        (runtime if event[1].event_type == RUNTIME_EVENT_TYPE else boot).append(event)
    registers = ((name, getattr(found, name)) for name in _WHAT)
    return Measurements(
        tuple(_register(name, value) for name, value in registers if value is not None),
        _span(boot),
        _span(runtime),
        info.tcb_info[:LONGEST_TEXT],
        len(info.tcb_info),
    )


def _register(name: str, value: str) -> Register:
    groups = tuple(value[at : at + _GROUP] for at in range(0, len(value), _GROUP))
    return Register(name.upper(), _WHAT[name], value, groups)


def _span(events: Sequence[tuple[int, _Logged]]) -> Span:
    if len(events) <= FIRST + LAST:
        return Span(len(events), tuple(starmap(_entry, events)))
    shown = [*events[:FIRST], *events[-LAST:]]
    gap = len(events) - len(shown)
    return Span(len(events), tuple(starmap(_entry, shown)), FIRST, gap)


def _entry(at: int, logged: _Logged) -> Entry:
    digest, payload = bytes.fromhex(logged.digest), bytes.fromhex(logged.event_payload)
    event = Event(logged.imr, logged.event_type, digest, logged.event, payload)
    return Entry(
        at,
        f"RTMR{event.register}",
        event.type_name,
        event_name(event),
        preview(event.payload),
        event.digest.hex(),
    )
