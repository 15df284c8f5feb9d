"""Registers and events of the dashboard are bounded, and omissions are stated."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.event_log import Event, EventLog
from attestkit.event_log.event import event_name, preview
from attestkit.event_log.runtime_events import runtime_event
from attestkit.serve.pages.dashboard import (
    FIRST,
    LAST,
    LONGEST_TEXT,
    Measurements,
    measurements,
)
from attestkit.serve.rpc.response_template import EscapedText
from attestkit.serve.services.context import AppMeasurements
from tests.runner.cases import every_case

REGISTERS = {name: bytes([at]) * 48 for at, name in enumerate(("mrtd", "rtmr0", "rtmr1"))}
NONE = dict.fromkeys(("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3"))


def _event(name: str, *, runtime: bool = True, payload: bytes = b"") -> Event:
    if runtime:
        return runtime_event(name, payload, 2)
    return Event(0, 4, bytes([0xAB]) * 48, name, payload)


def _measurements(
    *events: Event, registers: dict[str, bytes] | None = None, text: str = "{}"
) -> Measurements:
    found = EscapedText((text,), (b"",))
    return measurements(AppMeasurements({**NONE, **(registers or {})}, EventLog(events), found))


def test_only_existing_measurements_are_shown() -> None:
    """Only the registers that the platform has are shown, and nothing without measurements."""
    shown = measurements(None)
    assert (shown.registers, shown.boot.total, shown.runtime.total, shown.text) == ({}, 0, 0, "")
    assert _measurements(registers=REGISTERS).registers == REGISTERS
    assert _measurements().registers == {}
    assert _measurements().text


def test_boot_and_runtime_events_are_separate() -> None:
    """Events are separated by type and keep their number in the log."""
    event = _event("a")
    shown = _measurements(_event("", runtime=False), event, _event("", runtime=False))
    assert [number for number, _ in shown.boot.entries] == [0, 2]
    assert shown.runtime.entries == ((1, event),)


@every_case("more", [-1, 0, 1, 5000])
def test_long_log_has_gap(more: int) -> None:
    """Of a long log the first and last events are shown."""
    total = FIRST + LAST + more
    shown = _measurements(*[_event(f"e{index}") for index in range(total)]).runtime
    assert shown.total == total
    assert shown.gap == max(0, more)
    assert len(shown.entries) + shown.gap == total
    assert shown.gap_after == (FIRST if more > 0 else 0)
    numbers = [number for number, _ in shown.entries]
    if more > 0:
        assert numbers == [*range(FIRST), *range(total - LAST, total)]
    else:
        assert numbers == list(range(total))


@pytest.mark.parametrize("more", [-1, 0, 1])
def test_long_text_is_truncated(more: int) -> None:
    """A text is truncated at the maximum length."""
    text = "x" * (LONGEST_TEXT + more)
    shown = _measurements(text=text)
    assert shown.is_cut == (more > 0)
    assert shown.text == text[:LONGEST_TEXT]
    assert shown.length == len(text)


@given(name=st.text(), payload=st.binary(max_size=2000), runtime=st.booleans())
def test_any_event_is_printable_and_short(name: str, payload: bytes, *, runtime: bool) -> None:
    """An arbitrary event is shown as short printable text."""
    event = _event(name, runtime=runtime, payload=payload)
    for text in (event_name(event), preview(event.payload).text, event.type_name):
        assert text.isprintable()
        assert len(text) < 2000
