"""Comparison of the events of one register with those of a log."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from attestkit.event_log import Event
from attestkit.measure.expected import comparable_type, is_same_type
from attestkit.measure.expected_event import ExpectedEvent

EventDifference = Literal["changed", "cut", "extra", "missing"]


class FirstDifference(NamedTuple):
    """The first position at which events differ; None where a sequence has ended."""

    position: int
    kind: EventDifference
    expected: ExpectedEvent | None
    logged: Event | None


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
    return comparable_type(event), event.digest
