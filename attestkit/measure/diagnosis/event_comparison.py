"""Comparison of the events of one register with those of a log."""

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

from attestkit.event_log import Event, EventLog
from attestkit.event_log.event_types import NO_ACTION
from attestkit.measure.expected_event import ExpectedEvent

EventDifference = Literal["changed", "cut", "extra", "missing"]

_HANDOFF_TABLES: Final = 0x80000009
_HANDOFF: Final = frozenset({_HANDOFF_TABLES, 0x8000000B})  # releases differ in that of SMBIOS


class FirstDifference(NamedTuple):
    """The first position at which events differ; None where a sequence has ended."""

    position: int
    kind: EventDifference
    expected: ExpectedEvent | None
    logged: Event | None


def events_of(log: EventLog, register: int) -> list[Event]:
    """Return the events of a log that extend a register."""
    return [
        event
        for event in log.events
        if event.register == register and event.event_type != NO_ACTION
    ]


def first_difference(
    expected: Sequence[ExpectedEvent], logged: Sequence[Event]
) -> FirstDifference | None:
    """Return the first difference between the events of a register; None if they are equal.

    An expected event without a digest equals any event of its type.
    """
    for position, (event, found) in enumerate(zip(expected, logged, strict=False)):
        if not _is_same(event, found):
            kind = _kind(expected, logged, position)
            return FirstDifference(position, kind, event, found)
    position = min(len(expected), len(logged))
    if len(logged) < len(expected):
        return FirstDifference(position, "cut", expected[position], None)
    if len(logged) > len(expected):
        return FirstDifference(position, "extra", None, logged[position])
    return None


def is_same_type(expected: ExpectedEvent, logged: Event) -> bool:
    """Return whether events have the same type, or both are tables that firmware hands over."""
    types = {expected.event_type, logged.event_type}
    return len(types) == 1 or types <= _HANDOFF


def _is_same(expected: ExpectedEvent, logged: Event) -> bool:
    if expected.digest is not None:
        return expected.digest == logged.digest
    return is_same_type(expected, logged)


def _kind(
    expected: Sequence[ExpectedEvent], logged: Sequence[Event], position: int
) -> EventDifference:
    """Return whether an event was put in, left out or changed, from what comes later.

    Events are the same if type and digest are: BootOrder and an item of fw_cfg may both be zeros.
    """
    later_expected = {_identity(event) for event in expected[position + 1 :]}
    later_logged = {_identity(event) for event in logged[position + 1 :]}
    is_expected_later = _identity(logged[position]) in later_expected
    is_logged_later = _identity(expected[position]) in later_logged
    if is_expected_later and not is_logged_later:
        return "missing"
    if is_logged_later and not is_expected_later:
        return "extra"
    return "changed"


def _identity(event: ExpectedEvent | Event) -> tuple[int, bytes | None]:
    kind = event.event_type
    return (_HANDOFF_TABLES if kind in _HANDOFF else kind, event.digest)
