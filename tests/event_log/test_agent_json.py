"""Agent JSON is read strictly and written in the agent's own format."""

import json
import pickle
from typing import Any, NamedTuple

import pytest
from hypothesis import strategies as st

from attestkit import _native
from attestkit.errors import FormatError, VerificationError
from attestkit.event_log import Event, EventLog, Rtmrs
from attestkit.event_log.agent_json import MAX_EVENTS, MAX_TEXT, AgentJsonSource
from attestkit.event_log.runtime_events import RUNTIME_EVENT_TYPE, runtime_event
from tests.raising import raises
from tests.runner.cases import every_case
from tests.thorough import thorough

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
    """Unsigned registers to check a log against."""

    rtmrs: Rtmrs


def read_events(*events: Any) -> EventLog:
    """Read a JSON array of these events."""
    return EventLog.from_json(json.dumps(events))


def test_from_json_of_one_event_per_kind_round_trips() -> None:
    """One event of each kind is read, and written as the same text."""
    new = RUNTIME | {
        "digest": NEW.digest.hex(),
        "version": 2,
        "preimage": NEW.preimage().hex(),
    }
    log = read_events(FIRMWARE, RUNTIME, new)
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


def fail_if_called() -> tuple[Event, ...]:
    """Stand in for the construction of events where none may happen."""
    raise AssertionError("events were built")


@pytest.mark.skipif(_native.CORE != "compiled", reason=_native.CORE_REASON)
def test_log_events_are_built_lazily_and_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replay, checks, warnings and hash build no events; built events are cached."""
    text = EventLog([Event(0, 4, b"\1" * 48, "", b"\2"), runtime_event("a", b"\3")]).to_json()
    for form in (text, text.encode()):
        log = EventLog.from_json(form)
        with monkeypatch.context() as patch:
            patch.setattr(AgentJsonSource, "events", lambda _: fail_if_called())
            registers = log.replay()
            log.check(Registers(registers))
            assert EventLog.replay_many([log, log]) == [registers] * 2
            assert (log.warnings, hash(log)) == ((), hash(EventLog.from_json(form)))
            with pytest.raises(AssertionError, match="were built"):
                _ = log.events
        assert log.events is log.events
        assert log.runtime[0] is log.events[1]
        assert pickle.loads(pickle.dumps(log)) == log


@pytest.mark.parametrize("name", ["a:b", "a\\u003ab", "\\u0061:\\ud83e\\udd80"])
def test_check_events_of_unbuilt_events_names_the_invalid_one(name: str) -> None:
    """A failed check names the event even if no events were built before."""
    text = json.dumps([FIRMWARE, RUNTIME]).replace("app-id", name)
    log = EventLog.from_json(text)
    with raises(VerificationError, "event"):
        log.check(Registers(log.replay()))
    with raises(VerificationError, "event"):
        log.with_runtime([]).check_events()
    with raises(VerificationError, "event"):
        read_events(FIRMWARE, RUNTIME | {"imr": 0}).check_events()
    with raises(VerificationError, "event"):
        read_events(FIRMWARE, FIRMWARE | {"imr": 3}).check_events()


def test_to_json_escapes_names_minimally_and_round_trips() -> None:
    """Names with quotes, control and non-BMP characters survive with minimal escapes."""
    name = 'a"b\\c\n\x01\x7f/測試🦀'
    log = EventLog([runtime_event(name, b"", version=2)])
    assert '"event":"a\\"b\\\\c\\n\\u0001\x7f/測試🦀"' in log.to_json()
    assert EventLog.from_json(log.to_json()) == log
    assert EventLog.from_json(json.dumps(json.loads(log.to_json()))) == log


@every_case(
    "extra",
    [
        {"unknown": [1, {"a": None}]},
        {"version": 1},
        {"version": 1, "preimage": None},
        {"digest": "AB" * 48},
    ],
)
def test_from_json_with_tolerated_variation_is_read(extra: dict[str, Any]) -> None:
    """Unknown keys, an explicit version 1, an absent preimage and upper-case hex are accepted."""
    assert read_events(FIRMWARE | extra) == read_events(FIRMWARE)


def test_from_json_runtime_digest_is_optional() -> None:
    """The digest of a runtime event is computed if it is empty or missing."""
    missing = {key: value for key, value in RUNTIME.items() if key != "digest"}
    right = RUNTIME | {"digest": runtime_event("app-id", b"\xde\xad\xbe\xef").digest.hex()}
    assert read_events(missing) == read_events(RUNTIME) == read_events(right)
    assert read_events(right).warnings == ()


@every_case(
    ("change", "reason"),
    [
        ({"imr": 4}, "imr"),
        ({"imr": -1}, "imr"),
        ({"imr": "1"}, "wrong_type"),
        ({"imr": True}, "wrong_type"),
        ({"imr": None}, "wrong_type"),
        ({"event_type": -1}, "event_type"),
        ({"event_type": 1 << 32}, "event_type"),
        ({"digest": ""}, "digest"),
        ({"digest": "ab" * 47}, "digest"),
        ({"digest": "xy" * 48}, "encoding"),
        ({"digest": "0x" + "ab" * 47}, "encoding"),
        ({"digest": "ab" * 47 + " ab"}, "encoding"),
        ({"digest": None}, "wrong_type"),
        ({"digest": [1] * 48}, "wrong_type"),
        ({"event": None}, "wrong_type"),
        ({"event": "\ud800"}, "encoding"),
        ({"event_payload": "0"}, "encoding"),
        ({"event_payload": "١٢"}, "encoding"),
        ({"event_payload": None}, "wrong_type"),
        ({"version": 0}, "version"),
        ({"version": 3}, "version"),
        ({"version": "2"}, "wrong_type"),
        ({"version": True}, "wrong_type"),
        ({"preimage": "0"}, "encoding"),
        ({"preimage": 7}, "wrong_type"),
    ],
)
def test_from_json_of_invalid_member_fails_naming_event(
    change: dict[str, Any], reason: str
) -> None:
    """Wrong types, invalid hex and unknown registers are rejected, naming the event."""
    with raises(FormatError, reason) as caught:
        read_events(FIRMWARE, RUNTIME, FIRMWARE | change)
    (key,) = change
    assert caught.value.message.startswith(f"event 2: {key.replace('event_type', 'event')}")


@every_case("key", FIRMWARE)
def test_from_json_of_missing_member_fails(key: str) -> None:
    """A firmware event requires all five keys."""
    with raises(FormatError, "missing"):
        read_events({name: value for name, value in FIRMWARE.items() if name != key})


@every_case("item", [None, 7, "text", [], [FIRMWARE]])
def test_from_json_of_non_object_item_fails(item: Any) -> None:
    """An event is an object."""
    with raises(FormatError, "wrong_type"):
        read_events(FIRMWARE, item)


@every_case("key", [*FIRMWARE, "unknown"])
def test_from_json_of_duplicate_member_fails(key: str) -> None:
    """Duplicate members are rejected, because readers disagree about which one counts."""
    twice = (
        json.dumps(FIRMWARE | {"unknown": 1})[:-1] + f',"{key}":{json.dumps(FIRMWARE.get(key))}}}'
    )
    with raises(FormatError, "duplicate", part=key):
        EventLog.from_json(f"[{json.dumps(FIRMWARE)},{twice}]")


def test_from_json_duplicate_among_many_members_takes_linear_time() -> None:
    """A duplicate among 100,000 members is found without comparing each pair."""
    members = ",".join(f'"k{i}":0' for i in (*range(100_000), 99_999))
    with raises(FormatError, "duplicate", message="event 0: 'k99999' occurs twice"):
        EventLog.from_json(f"[{{{members}}}]")


@every_case(
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
def test_from_json_of_malformed_json_fails_naming_offset(text: str, offset: int | None) -> None:
    """Malformed JSON, huge numbers and deep nesting are rejected at their offset."""
    with pytest.raises(FormatError) as caught:
        EventLog.from_json(text)
    assert offset is None or caught.value.offset == offset


def test_from_json_over_limits_fails() -> None:
    """A log has at most 65,536 events and 16 Mi characters."""
    one = json.dumps(FIRMWARE)
    most = "[" + ",".join(["0"] * (MAX_EVENTS + 1)) + "]"
    with raises(FormatError, "too_many_records"):
        EventLog.from_json(most)
    with raises(FormatError, "too_long"):
        EventLog.from_json(f"[{one}]" + " " * MAX_TEXT)


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


def runtime_event_error(log: EventLog) -> str:
    """Return the error of its runtime events: here, one with another type in RTMR3."""
    try:
        log.check_events()
    except VerificationError as error:
        return str(error)
    return ""


@thorough(st.lists(EVENTS, max_size=5), few=150, many=1000)
def test_log_round_trips_in_every_variant(events: list[Event]) -> None:
    """A complete, trimmed or stripped log equals itself after writing and reading."""
    log = EventLog(events)
    again = EventLog.from_json(log.to_json().encode())
    assert (again, again.replay()) == (log, log.replay())
    assert runtime_event_error(again) == runtime_event_error(log)
    assert EventLog.from_json(log.trimmed().to_json()).replay() == log.replay()


class SlicingBytes(bytes):
    """Bytes whose slices have another content."""

    def __getitem__(self, key: Any) -> Any:
        """Return other content than the stored bytes."""
        return b"00" * 24 if isinstance(key, slice) else 0


def test_from_json_of_bytes_subclass_reads_stored_bytes() -> None:
    """Events of a bytes subclass come from its stored bytes, not from overridden methods."""
    text = json.dumps([RUNTIME]).encode()
    assert EventLog.from_json(SlicingBytes(text)).events == EventLog.from_json(text).events
