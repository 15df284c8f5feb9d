"""What is shown of registers and events has an end, and says what it left out."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.event_log import Event
from attestkit.serve import timeline
from attestkit.serve.messages import AppInfo
from attestkit.serve.timeline import FIRST, LAST, LONGEST_TEXT, measured

REGISTERS = {name: f"{index:02x}" * 48 for index, name in enumerate(("mrtd", "rtmr0", "rtmr1"))}
NONE = dict.fromkeys(("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3"))


def _event(name: str, *, runtime: bool = True, payload: bytes = b"") -> dict[str, object]:
    return {
        "imr": 3 if runtime else 0,
        "event_type": 0x08000001 if runtime else 4,
        "digest": "ab" * 48,
        "event": name,
        "event_payload": payload.hex(),
    }


def _info(*events: dict[str, object], **more: object) -> AppInfo:
    return AppInfo(tcb_info=json.dumps({**NONE, "event_log": events, **more}, ensure_ascii=False))


def test_nothing_is_shown_of_what_is_hidden() -> None:
    """Without TCB info there is nothing to show."""
    shown = measured(AppInfo())
    assert (shown.registers, shown.boot.total, shown.runtime.total, shown.text) == ((), 0, 0, "")


def test_registers() -> None:
    """Those that there are, their values whole when the groups are joined."""
    shown = measured(_info(**REGISTERS))
    assert [register.name for register in shown.registers] == ["MRTD", "RTMR0", "RTMR1"]
    for register, value in zip(shown.registers, REGISTERS.values(), strict=True):
        assert register.value == "".join(register.groups) == value
        assert len(register.groups) == 12


def test_a_platform_without_registers() -> None:
    """SEV-SNP has none, and its TCB info is shown all the same."""
    shown = measured(_info())
    assert shown.registers == ()
    assert shown.text


def test_boot_and_runtime_are_told_apart() -> None:
    """By the type of the event, each with its place in the whole log."""
    shown = measured(_info(_event("", runtime=False), _event("a"), _event("", runtime=False)))
    assert [entry.number for entry in shown.boot.entries] == [0, 2]
    [entry] = shown.runtime.entries
    assert (entry.number, entry.register, entry.name) == (1, "RTMR3", "a")
    assert (entry.digest, entry.payload.size) == ("ab" * 48, 0)


@pytest.mark.parametrize("more", [-1, 0, 1, 5000])
def test_a_long_span_has_a_gap(more: int) -> None:
    """Up to a number all are shown, from then on the first and the last."""
    total = FIRST + LAST + more
    shown = measured(_info(*[_event(f"e{index}") for index in range(total)])).runtime
    assert shown.total == total
    assert shown.gap == max(0, more)
    assert len(shown.entries) + shown.gap == total
    assert shown.gap_after == (FIRST if more > 0 else 0)
    numbers = [entry.number for entry in shown.entries]
    if more > 0:
        assert numbers == [*range(FIRST), *range(total - LAST, total)]
    else:
        assert numbers == list(range(total))


def test_only_what_is_shown_becomes_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log may have 65,536 events, and everybody else waits while they are read."""
    made = 0

    class Counted(Event):
        def __new__(cls, *values: Any) -> Event:  # type: ignore[misc]  # noqa: ANN401
            nonlocal made
            made += 1
            return Event(*values)

    monkeypatch.setattr(timeline, "Event", Counted)
    events = [_event(f"e{index}", runtime=index % 2 == 0) for index in range(5000)]
    shown = measured(_info(*events))
    assert (shown.boot.total, shown.runtime.total) == (2500, 2500)
    assert made == 2 * (FIRST + LAST)


@pytest.mark.parametrize("more", [-1, 0, 1])
def test_a_long_text_is_cut(more: int) -> None:
    """Up to a length it is whole."""
    empty = len(_info(_event("", payload=b"")).tcb_info)
    info = _info(_event("x" * (LONGEST_TEXT - empty + more)))
    assert len(info.tcb_info) == LONGEST_TEXT + more
    shown = measured(info)
    assert shown.is_cut == (more > 0)
    assert shown.text == info.tcb_info[:LONGEST_TEXT]
    assert shown.length == len(info.tcb_info)


@given(name=st.text(), payload=st.binary(max_size=2000), runtime=st.booleans())
def test_any_event_is_harmless(name: str, payload: bytes, *, runtime: bool) -> None:
    """Whatever an event is called and holds, what is shown is short and printable."""
    shown = measured(_info(_event(name, runtime=runtime, payload=payload)))
    [entry] = (shown.runtime if runtime else shown.boot).entries
    for text in (entry.name, entry.payload.text, entry.type):
        assert text.isprintable()
        assert len(text) < 2000
