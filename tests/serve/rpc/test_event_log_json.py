"""Incremental JSON encoding of event logs: each event is encoded once."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit.backends.simulator import Simulator
from attestkit.event_log import Event, EventLog, agent_json
from attestkit.event_log.runtime_events import runtime_event
from attestkit.serve.rpc import event_log_json
from attestkit.serve.rpc.event_log_json import COMPACT, INDENTED, EventLogJson, Style, tcb_info
from attestkit.serve.rpc.response_template import SMALL, EscapedText
from attestkit.serve.services.context import Guest
from tests.serve.asgi import Client

FIRMWARE = EventLog.parse(Simulator(seed=bytes(32)).read_event_log())
NAMES = st.text(st.characters(exclude_categories=["Cs"])).filter(lambda name: ":" not in name)
EVENTS = st.lists(st.builds(runtime_event, NAMES, st.binary(), st.sampled_from([1, 2])))


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """Return the list of encoded events."""
    events: list[Event] = []
    dump = agent_json.dump

    def counted(more: tuple[Event, ...], *, preimages: bool) -> str:
        events.extend(more)
        return dump(more, preimages=preimages)

    monkeypatch.setattr(event_log_json, "dump", counted)
    return events


def check_text(text: EscapedText, style: Style, log: EventLog) -> None:
    """Assert that a text is the encoding of the whole log."""
    if style is COMPACT:
        assert f"[{text}]" == log.trimmed().to_json()
    else:
        found = str(tcb_info({"mrtd": None}, text, ""))
        events = json.loads(log.to_json(preimages=False))
        expected = {"mrtd": None, "event_log": events, "app_compose": ""}
        assert found == json.dumps(expected, indent=2, ensure_ascii=False)
    assert json.loads(b'"%b"' % b"".join(text.json)) == str(text)


@pytest.mark.parametrize("style", [COMPACT, INDENTED], ids=["compact", "indented"])
@given(steps=st.lists(EVENTS, max_size=4), firmware=st.booleans())
@settings(max_examples=30)
def test_incremental_text_equals_full_text(
    style: Style, steps: list[list[Event]], *, firmware: bool
) -> None:
    """The text is correct after any sequence of extensions."""
    log, text = FIRMWARE if firmware else EventLog(), EventLogJson(style)
    check_text(text.of(log), style, log)
    for events in steps:
        log = log.with_runtime(events)
        check_text(text.of(log), style, log)


def test_changed_log_is_encoded_again(written: list[Event]) -> None:
    """A log that is not an extension is encoded from scratch."""
    text = EventLogJson(COMPACT)
    one = FIRMWARE.with_runtime([runtime_event("a", b""), runtime_event("b", b"")])
    other = FIRMWARE.with_runtime([runtime_event("b", b"")])
    later = EventLog((*FIRMWARE.events, *FIRMWARE.events))
    for log in (one, other, EventLog(), FIRMWARE, later, one):
        written.clear()
        check_text(text.of(log), COMPACT, log)
        assert len(written) == len(log.events)


def test_growing_text_has_few_pieces() -> None:
    """Small pieces are joined; large ones are shared."""
    text, log, copied = EventLogJson(COMPACT), EventLog(), 0
    payload, known = bytes(SMALL), tuple[str, ...]()
    for at in range(64):
        log = log.with_runtime([runtime_event(f"e{at}", payload)])
        found = text.of(log)
        copied += sum(len(piece) for piece in found.pieces if piece not in known)
        known = found.pieces
    assert len(found.pieces) <= 7
    assert copied <= 7 * found.length
    many = EventLog([runtime_event(f"e{at}", b"") for at in range(200)])
    small = EventLogJson(COMPACT)
    for count in range(201):
        small_text = small.of(EventLog(many.events[:count]))
    assert len(small_text.pieces) == 1


def test_new_event_is_encoded_once_per_style(
    guest: Guest, dstack: Client, external: Client, written: list[Event]
) -> None:
    """After an event, quotes, Info and the page encode only that event."""
    for number in range(300):
        guest.attester.emit_event(f"e{number}", b"")

    def request_all_logs() -> list[str]:
        written.clear()
        assert "e299" in dstack.get("/GetQuote").json()["event_log"]
        assert "e299" in dstack.get("/Info").json()["tcb_info"]
        assert external.get("/").status == 200
        return [event.name for event in written]

    assert len(request_all_logs()) > 600
    guest.attester.emit_event("more", b"")
    assert request_all_logs() == ["more", "more"]
    assert '"event":"more"' in dstack.get("/GetQuote").json()["event_log"]
    assert '"event": "more"' in dstack.get("/Info").json()["tcb_info"]
