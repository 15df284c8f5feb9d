"""What is shown of registers and events has an end, and says what it left out."""

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
from attestkit.serve.rpc.response_template import LongText
from attestkit.serve.services.context import Measured

REGISTERS = {name: bytes([at]) * 48 for at, name in enumerate(("mrtd", "rtmr0", "rtmr1"))}
NONE = dict.fromkeys(("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3"))


def _event(name: str, *, runtime: bool = True, payload: bytes = b"") -> Event:
    if runtime:
        return runtime_event(name, payload, 2)
    return Event(0, 4, bytes([0xAB]) * 48, name, payload)


def _shown(
    *events: Event, registers: dict[str, bytes] | None = None, text: str = "{}"
) -> Measurements:
    found = LongText((text,), (b"",))
    return measurements(Measured({**NONE, **(registers or {})}, EventLog(events), found))


def test_nothing_is_shown_of_what_is_hidden() -> None:
    """Where nothing is told there is nothing to show."""
    shown = measurements(None)
    assert (shown.registers, shown.boot.total, shown.runtime.total, shown.text) == ((), 0, 0, "")


def test_registers() -> None:
    """Those that there are, their values whole when the groups are joined."""
    shown = _shown(registers=REGISTERS)
    assert [register.name for register in shown.registers] == ["MRTD", "RTMR0", "RTMR1"]
    for register, value in zip(shown.registers, REGISTERS.values(), strict=True):
        assert register.value == "".join(register.groups) == value.hex()
        assert len(register.groups) == 12


def test_a_platform_without_registers() -> None:
    """SEV-SNP has none, and its TCB info is shown all the same."""
    shown = _shown()
    assert shown.registers == ()
    assert shown.text


def test_boot_and_runtime_are_told_apart() -> None:
    """By the type of the event, each with its place in the whole log."""
    event = _event("a")
    shown = _shown(_event("", runtime=False), event, _event("", runtime=False))
    assert [entry.number for entry in shown.boot.entries] == [0, 2]
    [entry] = shown.runtime.entries
    assert (entry.number, entry.register, entry.name) == (1, "RTMR3", "a")
    assert (entry.digest, entry.payload.size) == (event.digest.hex(), 0)


@pytest.mark.parametrize("more", [-1, 0, 1, 5000])
def test_a_long_span_has_a_gap(more: int) -> None:
    """Up to a number all are shown, from then on the first and the last."""
    total = FIRST + LAST + more
    shown = _shown(*[_event(f"e{index}") for index in range(total)]).runtime
    assert shown.total == total
    assert shown.gap == max(0, more)
    assert len(shown.entries) + shown.gap == total
    assert shown.gap_after == (FIRST if more > 0 else 0)
    numbers = [entry.number for entry in shown.entries]
    if more > 0:
        assert numbers == [*range(FIRST), *range(total - LAST, total)]
    else:
        assert numbers == list(range(total))


def test_only_what_is_shown_is_made_readable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log may have 65,536 events, and everybody else waits while they are read."""
    made: list[Event] = []

    def name_of(event: Event) -> str:
        made.append(event)
        return event.name

    monkeypatch.setattr(event_timeline, "event_name", name_of)
    shown = _shown(*[_event(f"e{index}", runtime=index % 2 == 0) for index in range(5000)])
    assert (shown.boot.total, shown.runtime.total) == (2500, 2500)
    assert len(made) == 2 * (FIRST + LAST)


@pytest.mark.parametrize("more", [-1, 0, 1])
def test_a_long_text_is_cut(more: int) -> None:
    """Up to a length it is whole."""
    text = "x" * (LONGEST_TEXT + more)
    shown = _shown(text=text)
    assert shown.is_cut == (more > 0)
    assert shown.text == text[:LONGEST_TEXT]
    assert shown.length == len(text)


@given(name=st.text(), payload=st.binary(max_size=2000), runtime=st.booleans())
def test_any_event_is_harmless(name: str, payload: bytes, *, runtime: bool) -> None:
    """Whatever an event is called and holds, what is shown is short and printable."""
    shown = _shown(_event(name, runtime=runtime, payload=payload))
    [entry] = (shown.runtime if runtime else shown.boot).entries
    for text in (entry.name, entry.payload.text, entry.type):
        assert text.isprintable()
        assert len(text) < 2000
