"""Registers and events for the dashboard, limited in size.

A log may have 65,536 events, and an event ten megabytes. The page shows the first and the last
events with the start of their payloads; `/prpc/Worker.Info` returns the whole log.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple

from attestkit.event_log import Event
from attestkit.event_log.event_types import RUNTIME_EVENT_TYPE
from attestkit.serve.services.context import AppMeasurements

FIRST: Final = 100  # events shown at the start of a span
LAST: Final = 100  # and at its end
LONGEST_TEXT: Final = 128 * 1024  # characters of tcb_info


class EventSpan(NamedTuple):
    """A part of the log: all of its events, or the first and the last ones with a gap."""

    total: int
    entries: tuple[tuple[int, Event], ...]  # with the number in the whole log, from 0
    gap_after: int = 0  # entries before the gap; 0 without a gap
    gap: int = 0  # events in it


class Measurements(NamedTuple):
    """Measurements to show; empty if the app hides them."""

    registers: Mapping[str, bytes] = MappingProxyType({})
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
        {name: value for name, value in registers if value is not None},
        _span(events, boot),
        _span(events, runtime),
        text.start(LONGEST_TEXT),
        text.length,
    )


def _span(events: Sequence[Event], indexes: Sequence[int]) -> EventSpan:
    """Return the events at `indexes` that are shown."""
    gap = max(0, len(indexes) - FIRST - LAST)
    shown = [*indexes[:FIRST], *indexes[-LAST:]] if gap else indexes
    entries = tuple([(at, events[at]) for at in shown])
    return EventSpan(len(indexes), entries, FIRST if gap else 0, gap)
