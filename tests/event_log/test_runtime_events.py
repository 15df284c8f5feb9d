"""Runtime events have the guest agent's digests, and the agent's log is read and written."""

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit.errors import FormatError, UsageError, VerificationError
from attestkit.event_log import Event, EventLog, WireEvent
from attestkit.event_log.runtime_events import (
    RESERVED_NAMES,
    RUNTIME_EVENT_TYPE,
    check_runtime_events,
    check_v2,
    parse_runtime_lines,
    runtime_digest,
    runtime_event,
    runtime_line,
    runtime_preimage,
)
from tests.raising import raises
from tests.runner.cases import every_case
from tests.vectors import load, needs_shared

VECTORS = load("runtime_events.json")
DIGESTS = VECTORS.get("digests", [])
REPLAYS = VECTORS.get("replays", [])


def event_of(vector: dict[str, Any]) -> Event:
    """Build the event of a vector, even if `runtime_event` rejects it."""
    name, payload = vector["event"], bytes.fromhex(vector["payload"])
    version = vector["version"]
    return Event(
        3, RUNTIME_EVENT_TYPE, runtime_digest(name, payload, version), name, payload, version
    )


@needs_shared
@every_case("vector", DIGESTS, ids=lambda v: f"{v['event']!r}-v{v['version']}")
def test_runtime_event_matches_vector(vector: dict[str, Any]) -> None:
    """Preimage, digest and log line match byte for byte."""
    event = event_of(vector)
    assert runtime_preimage(event.name, event.payload, event.version).hex() == vector["preimage"]
    assert event.preimage().hex() == vector["preimage"]
    assert event.digest.hex() == vector["sha384"]
    assert hashlib.sha256(event.preimage()).hexdigest() == vector["sha256"]
    line = vector["log_line"].encode() + b"\n"
    assert runtime_line(event) == line
    assert parse_runtime_lines(line) == (event,)
    if event.version == 1 and ":" in event.name:
        with raises(UsageError, "wrong_value"):
            runtime_event(event.name, event.payload)
    else:
        assert runtime_event(event.name, event.payload, event.version) == event


@needs_shared
@pytest.mark.parametrize("vector", REPLAYS, ids=lambda v: v["name"])
def test_replay_matches_vector(vector: dict[str, Any]) -> None:
    """Whole logs, and logs up to a boundary event, replay to the vectors' values."""
    events = [event_of(event) for event in vector["events"]]
    assert EventLog(events).replay()[3].hex() == vector["sha384"]
    if until := vector.get("up_to_event"):
        names = [event.name for event in events]
        part = EventLog(events[: names.index(until) + 1])
        assert part.replay()[3].hex() == vector["sha384_up_to"]


def test_reserved_event_names_are_rejected() -> None:
    """The names that define an app's identity and the boundaries of the boot are reserved."""
    assert len(RESERVED_NAMES) == 12
    assert {"app-id", "compose-hash", "instance-id", "key-provider"} < RESERVED_NAMES
    assert {"system-preparing", "boot-mr-done", "system-ready"} < RESERVED_NAMES
    assert runtime_event("app-id", b"").name == "app-id"


@every_case(
    ("arguments", "reason", "subject"),
    [
        (("a:b", b""), "wrong_value", "event name"),
        ((":", b"", 1), "wrong_value", "event name"),
        (("a", b"", 0), "wrong_value", "event version"),
        (("a", b"", 3), "wrong_value", "event version"),
        (("\udfff", b"", 1), "encoding", "event name"),
        (("\udfff", b"", 2), "encoding", "event name"),
        ((b"a", b""), "wrong_type", "event name"),
        (("a", "payload"), "wrong_type", "event payload"),
        (("a", bytearray(1)), "wrong_type", "event payload"),
    ],
)
def test_runtime_event_with_invalid_argument_fails(
    arguments: Any, reason: str, subject: str
) -> None:
    """Colons in version 1 names, unknown versions and wrong types are rejected."""
    with raises(UsageError, reason, start=f"{subject}:"):
        runtime_event(*arguments)


def test_check_v2_ignores_other_events() -> None:
    """Firmware events and version 1 events need no preimage."""
    check_v2(WireEvent(0, 4, bytes(48), "", b"", 2), 0)
    check_v2(WireEvent(3, RUNTIME_EVENT_TYPE, bytes(48), "a", b"", 1), 0)
    with raises(UsageError, "not_applicable"):
        runtime_line(Event(0, 4, bytes(48), "", b""))
    with raises(VerificationError, "event"):
        check_v2(WireEvent(3, RUNTIME_EVENT_TYPE, b"", "a", b"", 2), 7)


def test_parse_runtime_log_accepts_blank_lines_and_missing_newline() -> None:
    """Blank lines are skipped, an empty log has no events, and the last newline is optional."""
    log = b'{"event":"a","payload":"AQI="}\n\n  \t\n{"payload":"","version":2,"event":"b","x":1}'
    assert parse_runtime_lines(log) == (
        runtime_event("a", b"\1\2"),
        runtime_event("b", b"", version=2),
    )
    assert parse_runtime_lines(b"") == parse_runtime_lines(b"\n") == ()


GOOD = b'{"event":"good","payload":""}\n'


@every_case(
    ("line", "reason"),
    [
        (b"{", "syntax"),
        (b"[]", "wrong_type"),
        (b"\xff", "encoding"),
        (b"[" * 100_000, "too_deep"),
        (b'{"x":' + b"9" * 5000 + b"}", "too_large"),
        (b"{}", "wrong_type"),
        (b'{"event":"a"}', "wrong_type"),
        (b'{"event":1,"payload":""}', "wrong_type"),
        (b'{"event":"a","payload":null}', "wrong_type"),
        (b'{"event":"a","payload":"","version":"2"}', "wrong_type"),
        (b'{"event":"a","payload":"","version":true}', "wrong_type"),
        (b'{"event":"a","payload":"","version":3}', "version"),
        (b'{"event":"a","event":"b","payload":""}', "duplicate"),
        (b'{"event":"a","payload":"","x":{"y":1,"y":1}}', "duplicate"),
        (b'{"event":"\\ud800","payload":""}', "encoding"),
        (b'{"event":"a","payload":"AQ"}', "encoding"),
        (b'{"event":"a","payload":"\xc3\xa9"}', "encoding"),
        (b'{"event":"a","payload":"AR=="}', "not_canonical"),
        (b'{"event":"a","payload":"AQ==AQ=="}', "encoding"),
    ],
)
def test_parse_runtime_log_with_invalid_line_fails(line: bytes, reason: str) -> None:
    """The error names line and offset."""
    with raises(FormatError, reason, offset=len(GOOD) + 1):
        parse_runtime_lines(GOOD + b"\n" + line + b"\n" + GOOD)


def test_parse_runtime_log_truncated_inside_line_fails() -> None:
    """Truncated between two lines a log is shorter; inside a line it is rejected."""
    events = [runtime_event(name, b"\0" * len(name)) for name in ("one", "zwei", "trois")]
    lines = [runtime_line(event) for event in events]
    log = b"".join(lines)
    good = {0: 0}
    for count in range(1, 4):
        end = len(b"".join(lines[:count]))
        good |= {end - 1: count, end: count}
    for size in range(len(log) + 1):
        if size in good:
            assert parse_runtime_lines(log[:size]) == tuple(events[: good[size]])
        else:
            with pytest.raises(FormatError) as caught:
                parse_runtime_lines(log[:size])
            assert caught.value.offset == log.rfind(b"\n", 0, size) + 1


NAMES = st.text(max_size=12)


@settings(max_examples=500, database=None, deadline=None)
@given(NAMES, st.binary(max_size=40))
def test_version_2_preimage_is_unique_json(name: str, payload: bytes) -> None:
    """The preimage is JSON, and no two events share one."""
    preimage = runtime_preimage(name, payload, 2)
    members = {"name": name, "payload": payload.hex(), "type": RUNTIME_EVENT_TYPE}
    assert json.loads(preimage) == members
    event = runtime_event(name, payload, 2)
    assert parse_runtime_lines(runtime_line(event) * 2) == (event, event)


@every_case("event_type", [0, 4, 0x0D, 0x80000007, 0xFFFFFFFF])
def test_check_events_of_other_type_in_rtmr3_fails(event_type: int) -> None:
    """In RTMR3 an event of another type could hide a runtime event, so it is rejected."""
    hidden = Event(3, event_type, bytes(48), "", b"")
    with raises(VerificationError, "event"):
        check_runtime_events([hidden])
    check_runtime_events([hidden._replace(event_type=3), hidden._replace(register=2)])
