"""The agent's JSON is read strictly, and written as the agent writes it."""

import json
import pickle
from contextlib import suppress
from typing import Any, NamedTuple

import pytest
from hypothesis import strategies as st

from attestkit import _native
from attestkit.errors import FormatError, VerificationError
from attestkit.event_log import Event, EventLog, Rtmrs
from attestkit.event_log.agent_json import MAX_EVENTS, MAX_TEXT, AgentJsonSource
from attestkit.event_log.runtime_events import RUNTIME_EVENT_TYPE, runtime_event
from tests.thorough import thorough
from tests.vectors import data, needs_shared

FIRMWARE = {
    "imr": 1,
    "event_type": 4,
    "digest": "ab" * 48,
    "event": "",
    "event_payload": "00000000",
}
RUNTIME = {
    "imr": 3,
    "event_type": RUNTIME_EVENT_TYPE,
    "digest": "",
    "event": "app-id",
    "event_payload": "deadbeef",
}
NEW = runtime_event("app-id", b"\xde\xad\xbe\xef", version=2)


class Registers(NamedTuple):
    """Something to check a log against that no quoting enclave has signed."""

    rtmrs: Rtmrs


def read(*events: Any) -> EventLog:
    """Read an array of these events."""
    return EventLog.from_json(json.dumps(events))


def test_events_written_out() -> None:
    """One event of each kind, and the same text back."""
    new = RUNTIME | {
        "digest": NEW.digest.hex(),
        "version": 2,
        "preimage": NEW.preimage().hex(),
    }
    log = read(FIRMWARE, RUNTIME, new)
    assert log.events == (
        Event(1, 4, b"\xab" * 48, "", bytes(4)),
        runtime_event("app-id", b"\xde\xad\xbe\xef"),
        NEW,
    )
    old_digest = log.events[1].digest.hex()
    assert log.to_json() == (
        f'[{{"imr":1,"event_type":4,"digest":"{"ab" * 48}","event":"","event_payload":"00000000"}},'
        f'{{"imr":3,"event_type":134217729,"digest":"{old_digest}","event":"app-id",'
        '"event_payload":"deadbeef"},'
        f'{{"imr":3,"event_type":134217729,"digest":"{NEW.digest.hex()}","event":"app-id",'
        f'"event_payload":"deadbeef","version":2,"preimage":"{NEW.preimage().hex()}"}}]'
    )
    assert '"version":2}' in log.to_json(preimages=False)
    assert "preimage" not in log.to_json(preimages=False)
    assert EventLog([]).to_json() == "[]"
    assert EventLog.from_json("[]") == EventLog([])


def forbidden() -> tuple[Event, ...]:
    """Stand in for the making of events where none must be made."""
    raise AssertionError("events were made")


@pytest.mark.skipif(_native.CORE != "compiled", reason=_native.CORE_REASON)
def test_events_are_made_when_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replay, checks, warnings and hash need none; those that are made are kept."""
    text = EventLog([Event(0, 4, b"\1" * 48, "", b"\2"), runtime_event("a", b"\3")]).to_json()
    for form in (text, text.encode()):
        log = EventLog.from_json(form)
        with monkeypatch.context() as patch:
            patch.setattr(AgentJsonSource, "events", lambda _: forbidden())
            registers = log.replay()
            log.check(Registers(registers))
            assert EventLog.replay_many([log, log]) == [registers] * 2
            assert (log.warnings, hash(log)) == ((), hash(EventLog.from_json(form)))
            with pytest.raises(AssertionError, match="were made"):
                _ = log.events
        assert log.events is log.events
        assert log.runtime[0] is log.events[1]
        assert pickle.loads(pickle.dumps(log)) == log


@pytest.mark.parametrize("name", ["a:b", "a\\u003ab", "\\u0061:\\ud83e\\udd80"])
def test_events_that_break_their_rules_are_found_without_being_asked_for(name: str) -> None:
    """A log whose check fails says which event it is, although nobody made the events."""
    text = json.dumps([FIRMWARE, RUNTIME]).replace("app-id", name)
    log = EventLog.from_json(text)
    with pytest.raises(VerificationError, match=r"event 1, .*colon in a version 1 name"):
        log.check(Registers(log.replay()))
    with pytest.raises(VerificationError, match=r"event 1, .*colon in a version 1 name"):
        log.with_runtime([]).check_events()
    with pytest.raises(VerificationError, match=r"event 1, 'app-id', is a runtime event of RTMR0"):
        read(FIRMWARE, RUNTIME | {"imr": 0}).check_events()
    with pytest.raises(VerificationError, match=r"event 1 of RTMR3 is EV_SEPARATOR, not a runtime"):
        read(FIRMWARE, FIRMWARE | {"imr": 3}).check_events()


def test_names_come_back_from_the_text() -> None:
    """Quotes, control characters and other planes survive, with as few escapes as JSON allows."""
    name = 'a"b\\c\n\x01\x7f/測試🦀'
    log = EventLog([runtime_event(name, b"", version=2)])
    assert '"event":"a\\"b\\\\c\\n\\u0001\x7f/測試🦀"' in log.to_json()
    assert EventLog.from_json(log.to_json()) == log
    assert EventLog.from_json(json.dumps(json.loads(log.to_json()))) == log


@pytest.mark.parametrize(
    "extra",
    [
        {"unknown": [1, {"a": None}]},
        {"version": 1},
        {"version": 1, "preimage": None},
        {"digest": "AB" * 48},
    ],
)
def test_what_readers_pass_over(extra: dict[str, Any]) -> None:
    """Unknown keys, a version 1 written out, an absent preimage, and hex in capitals."""
    assert read(FIRMWARE | extra) == read(FIRMWARE)


def test_a_runtime_digest_may_be_missing() -> None:
    """Empty, missing, or right: the digest of a runtime event is computed in any case."""
    missing = {key: value for key, value in RUNTIME.items() if key != "digest"}
    right = RUNTIME | {"digest": runtime_event("app-id", b"\xde\xad\xbe\xef").digest.hex()}
    assert read(missing) == read(RUNTIME) == read(right)
    assert read(right).warnings == ()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"imr": 4}, "no RTMR4"),
        ({"imr": -1}, "no RTMR-1"),
        ({"imr": 1 << 70}, "no RTMR"),
        ({"imr": "1"}, "imr must be a whole number"),
        ({"imr": 1.0}, "imr must be a whole number"),
        ({"imr": True}, "imr must be a whole number"),
        ({"imr": None}, "imr must be a whole number"),
        ({"event_type": -1}, "32 bits"),
        ({"event_type": 1 << 32}, "32 bits"),
        ({"event_type": "4"}, "event_type must be a whole number"),
        ({"digest": ""}, "the digest has 0 bytes"),
        ({"digest": "ab" * 47}, "the digest has 47 bytes"),
        ({"digest": "ab" * 64}, "the digest has 64 bytes"),
        ({"digest": "xy" * 48}, "digest must be a text of hex digits"),
        ({"digest": "ab" * 47 + " ab"}, "digest must be a text of hex digits"),
        ({"digest": "0x" + "ab" * 47}, "digest must be a text of hex digits"),
        ({"digest": None}, "digest must be a text of hex digits"),
        ({"digest": [1] * 48}, "digest must be a text of hex digits"),
        ({"event": None}, "event must be a text"),
        ({"event": 7}, "event must be a text"),
        ({"event": "\ud800"}, "lone surrogate"),
        ({"event_payload": "0"}, "event_payload must be a text of hex digits"),
        ({"event_payload": "0g"}, "event_payload must be a text of hex digits"),
        ({"event_payload": "١٢"}, "event_payload must be a text of hex digits"),
        ({"event_payload": None}, "event_payload must be a text of hex digits"),
        ({"version": 0}, "version is 0"),
        ({"version": 3}, "version is 3"),
        ({"version": "2"}, "version must be a whole number"),
        ({"version": True}, "version must be a whole number"),
        ({"version": None}, "version must be a whole number"),
        ({"preimage": "0"}, "preimage must be a text of hex digits"),
        ({"preimage": 7}, "preimage must be a text of hex digits"),
    ],
)
def test_a_member_that_cannot_be_is_refused(change: dict[str, Any], why: str) -> None:
    """Wrong types, bad hex and unknown registers are refused, naming the event."""
    with pytest.raises(FormatError, match=f"^event 2: .*{why}"):
        read(FIRMWARE, RUNTIME, FIRMWARE | change)


@pytest.mark.parametrize("key", FIRMWARE)
def test_a_missing_member_is_refused(key: str) -> None:
    """A firmware event needs all five keys."""
    with pytest.raises(FormatError, match=r"^event 0: "):
        read({name: value for name, value in FIRMWARE.items() if name != key})


@pytest.mark.parametrize("item", [None, 7, "text", [], [FIRMWARE]])
def test_an_item_that_is_no_object_is_refused(item: Any) -> None:
    """An event is an object."""
    with pytest.raises(FormatError, match=r"^event 1: not a JSON object"):
        read(FIRMWARE, item)


@pytest.mark.parametrize("key", [*FIRMWARE, "unknown"])
def test_a_member_that_comes_twice_is_refused(key: str) -> None:
    """Readers disagree about which of two members counts, so neither does."""
    twice = (
        json.dumps(FIRMWARE | {"unknown": 1})[:-1] + f',"{key}":{json.dumps(FIRMWARE.get(key))}}}'
    )
    with pytest.raises(FormatError, match=f"^event 1: '{key}' comes twice"):
        EventLog.from_json(f"[{json.dumps(FIRMWARE)},{twice}]")


def test_a_double_among_many_members_is_found_in_one_pass() -> None:
    """An event of 100,000 members takes a moment; comparing each with all would take minutes."""
    members = ",".join(f'"k{i}":0' for i in (*range(100_000), 99_999))
    with pytest.raises(FormatError, match=r"^event 0: 'k99999' comes twice"):
        EventLog.from_json(f"[{{{members}}}]")


@pytest.mark.parametrize(
    ("text", "offset"),
    [
        ("", 0),
        ("[", 1),
        ("[]]", 2),
        ('[{"imr":}]', 8),
        ('["é",?]', 6),
        ('["a\nb"]', 3),
        ("[NaN]", None),
        ("[1e999999]", None),
        ("[" + "9" * 5000 + "]", None),
        ("[" * 100_000, None),
        ("{}", None),
        ("7", None),
        ("\ufeff[]", None),
        ('"\ud800', None),
    ],
)
def test_what_is_no_array_of_events_is_refused(text: str, offset: int | None) -> None:
    """Broken JSON names its byte; numbers without end and depth without end are refused too."""
    with pytest.raises(FormatError) as caught:
        EventLog.from_json(text)
    assert offset is None or caught.value.offset == offset


def test_bounds_of_a_log() -> None:
    """65,536 events and 16 Mi characters, and no more."""
    one = json.dumps(FIRMWARE)
    most = "[" + ",".join(["0"] * (MAX_EVENTS + 1)) + "]"
    with pytest.raises(FormatError, match="65,536"):
        EventLog.from_json(most)
    with pytest.raises(FormatError, match="16 MiB"):
        EventLog.from_json(f"[{one}]" + " " * MAX_TEXT)


@needs_shared
def test_a_text_cut_anywhere_is_refused() -> None:
    """No part of a captured log is a log; each is refused with an offset inside it."""
    text = json.loads(data("dstack/verifier/tdx-lite-getquote.json"))["event_log"]
    assert len(text) > 4000
    for size in range(len(text)):
        with pytest.raises(FormatError) as caught:
            EventLog.from_json(text[:size])
        assert caught.value.offset is not None
        assert 0 <= caught.value.offset <= size


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*FIRMWARE, "version", "preimage"]), inner, max_size=7)
    ),
    max_leaves=12,
)
EVENTS = st.builds(
    Event,
    st.integers(0, 3),
    st.integers(0, 0xFFFFFFFF).filter(RUNTIME_EVENT_TYPE.__ne__),
    st.binary(min_size=48, max_size=48),
    st.text(max_size=8),
    st.binary(max_size=8),
    st.just(1),
) | st.builds(
    runtime_event,
    st.text(max_size=8).filter(lambda name: ":" not in name),
    st.binary(max_size=8),
    st.sampled_from([1, 2]),
)


@thorough(st.lists(JSON, max_size=4), few=150, many=1000)
def test_json_of_any_shape_is_a_log_or_a_format_error(items: list[Any]) -> None:
    """Values of the wrong kind in every place raise FormatError and nothing else."""
    with suppress(FormatError):
        read(*items)


@thorough(
    st.sampled_from([FIRMWARE, RUNTIME]),
    st.sampled_from([*FIRMWARE, "version"]),
    JSON,
    few=150,
    many=1000,
)
def test_an_event_with_one_odd_member(
    event: dict[str, Any],
    key: str,
    value: Any,
) -> None:
    """Any value for any key of a good event gives a log that can be replayed, or FormatError."""
    with suppress(FormatError):
        read(event | {key: value}).replay()


def fault(log: EventLog) -> str:
    """Return what is wrong with its runtime events: of those here, another type in RTMR3."""
    try:
        log.check_events()
    except VerificationError as error:
        return str(error)
    return ""


@thorough(st.lists(EVENTS, max_size=5), few=150, many=1000)
def test_what_is_written_is_read_back(events: list[Event]) -> None:
    """A log survives its own text, in all its forms."""
    log = EventLog(events)
    again = EventLog.from_json(log.to_json().encode())
    assert (again, again.replay()) == (log, log.replay())
    assert fault(again) == fault(log)
    assert EventLog.from_json(log.trimmed().to_json()).replay() == log.replay()


class Other(bytes):
    """Bytes whose slices are something else."""

    def __getitem__(self, key: Any) -> Any:
        """Return what an attacker would like to be shown."""
        return b"00" * 24 if isinstance(key, slice) else 0


def test_events_are_those_that_were_hashed() -> None:
    """Of a subclass of bytes the events are read from what is there, not from what it says."""
    text = json.dumps([RUNTIME]).encode()
    assert EventLog.from_json(Other(text)).events == EventLog.from_json(text).events
