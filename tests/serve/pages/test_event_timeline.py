"""Registers and events of the dashboard are bounded, and omissions are stated."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.event_log import Event, EventLog
from attestkit.event_log.runtime_events import runtime_event
from attestkit.serve.pages import event_timeline
from attestkit.serve.pages.event_timeline import (
    FIRST,
    LAST,
    LONGEST_TEXT,
    Measurements,
    measurements,
)
from attestkit.serve.rpc.response_template import EscapedText
from attestkit.serve.services.context import AppMeasurements

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


def test_hidden_measurements_are_empty() -> None:
    """Without measurements nothing is shown."""
    shown = measurements(None)
    assert (shown.registers, shown.boot.total, shown.runtime.total, shown.text) == ((), 0, 0, "")


def test_registers_are_grouped() -> None:
    """Existing registers are shown; the joined groups are the value."""
    shown = _measurements(registers=REGISTERS)
    assert [register.name for register in shown.registers] == ["MRTD", "RTMR0", "RTMR1"]
    for register, value in zip(shown.registers, REGISTERS.values(), strict=True):
        assert register.value == "".join(register.groups) == value.hex()
        assert len(register.groups) == 12


def test_platform_without_registers() -> None:
    """Without registers, as on SEV-SNP, the TCB info is still shown."""
    shown = _measurements()
    assert shown.registers == ()
    assert shown.text


def test_boot_and_runtime_events_are_separate() -> None:
    """Events are separated by type and keep their number in the log."""
    event = _event("a")
    shown = _measurements(_event("", runtime=False), event, _event("", runtime=False))
    assert [entry.number for entry in shown.boot.entries] == [0, 2]
    [entry] = shown.runtime.entries
    assert (entry.number, entry.register, entry.name) == (1, "RTMR3", "a")
    assert (entry.digest, entry.payload.size) == (event.digest.hex(), 0)


@pytest.mark.parametrize("more", [-1, 0, 1, 5000])
def test_long_log_has_gap(more: int) -> None:
    """Of a long log the first and last events are shown."""
    total = FIRST + LAST + more
    shown = _measurements(*[_event(f"e{index}") for index in range(total)]).runtime
    assert shown.total == total
    assert shown.gap == max(0, more)
    assert len(shown.entries) + shown.gap == total
    assert shown.gap_after == (FIRST if more > 0 else 0)
    numbers = [entry.number for entry in shown.entries]
    if more > 0:
        assert numbers == [*range(FIRST), *range(total - LAST, total)]
    else:
        assert numbers == list(range(total))


def test_only_shown_events_are_formatted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events in the gap are not formatted, because a log may have 65,536 events."""
    made: list[Event] = []

    def name_of(event: Event) -> str:
        made.append(event)
        return event.name

    monkeypatch.setattr(event_timeline, "event_name", name_of)
    shown = _measurements(*[_event(f"e{index}", runtime=index % 2 == 0) for index in range(5000)])
    assert (shown.boot.total, shown.runtime.total) == (2500, 2500)
    assert len(made) == 2 * (FIRST + LAST)


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
    shown = _measurements(_event(name, runtime=runtime, payload=payload))
    [entry] = (shown.runtime if runtime else shown.boot).entries
    for text in (entry.name, entry.payload.text, entry.type):
        assert text.isprintable()
        assert len(text) < 2000
