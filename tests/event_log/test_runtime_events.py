"""Runtime events have the digests of the guest agent, and its log reads back."""

import hashlib
import json
from contextlib import suppress
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
from tests.vectors import load, needs_shared

VECTORS = load("runtime_events.json")
DIGESTS = VECTORS.get("digests", [])
REPLAYS = VECTORS.get("replays", [])


def event_of(vector: dict[str, Any]) -> Event:
    """Make the event of a vector row, also where `runtime_event` refuses to."""
    name, payload = vector["event"], bytes.fromhex(vector["payload"])
    version = vector["version"]
    return Event(
        3, RUNTIME_EVENT_TYPE, runtime_digest(name, payload, version), name, payload, version
    )


@needs_shared
@pytest.mark.parametrize("vector", DIGESTS, ids=lambda v: f"{v['event']!r}-v{v['version']}")
def test_digests_of_both_versions(vector: dict[str, Any]) -> None:
    """Preimage, digest and log line, byte for byte."""
    event = event_of(vector)
    assert runtime_preimage(event.name, event.payload, event.version).hex() == vector["preimage"]
    assert event.preimage().hex() == vector["preimage"]
    assert event.digest.hex() == vector["sha384"]
    assert hashlib.sha256(event.preimage()).hexdigest() == vector["sha256"]
    line = vector["log_line"].encode() + b"\n"
    assert runtime_line(event) == line
    assert parse_runtime_lines(line) == (event,)
    if event.version == 1 and ":" in event.name:
        with pytest.raises(UsageError, match="colon"):
            runtime_event(event.name, event.payload)
    else:
        assert runtime_event(event.name, event.payload, event.version) == event


@needs_shared
@pytest.mark.parametrize("vector", REPLAYS, ids=lambda v: v["name"])
def test_replays(vector: dict[str, Any]) -> None:
    """Whole logs, and up to a boundary event included."""
    events = [event_of(event) for event in vector["events"]]
    assert EventLog(events).replay()[3].hex() == vector["sha384"]
    if until := vector.get("up_to_event"):
        names = [event.name for event in events]
        part = EventLog(events[: names.index(until) + 1])
        assert part.replay()[3].hex() == vector["sha384_up_to"]


def test_names_of_the_boot_are_reserved() -> None:
    """The events from which an app's identity is read, and the borders of the boot."""
    assert len(RESERVED_NAMES) == 12
    assert {"app-id", "compose-hash", "instance-id", "key-provider"} < RESERVED_NAMES
    assert {"system-preparing", "boot-mr-done", "system-ready"} < RESERVED_NAMES
    assert runtime_event("app-id", b"").name == "app-id"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("a:b", b""), "colon"),
        ((":", b"", 1), "colon"),
        (("a", b"", 0), "no version 0"),
        (("a", b"", 3), "no version 3"),
        (("\udfff", b"", 1), "surrogates"),
        (("\udfff", b"", 2), "surrogates"),
        ((b"a", b""), "name"),
        (("a", "payload"), "payload"),
        (("a", bytearray(1)), "payload"),
    ],
)
def test_an_event_that_cannot_be_is_refused(arguments: Any, why: str) -> None:
    """Colons in version 1 names, unknown versions and arguments of other types are refused."""
    with pytest.raises(UsageError, match=why):
        runtime_event(*arguments)


def test_check_v2_passes_what_it_is_not_about() -> None:
    """Firmware's events and version 1 events need no preimage."""
    check_v2(WireEvent(0, 4, bytes(48), "", b"", 2), 0)
    check_v2(WireEvent(3, RUNTIME_EVENT_TYPE, bytes(48), "a", b"", 1), 0)
    with pytest.raises(VerificationError, match=r"^V2 runtime event 7 is missing its digest preim"):
        check_v2(WireEvent(3, RUNTIME_EVENT_TYPE, b"", "a", b"", 2), 7)


def test_a_log_written_out() -> None:
    """Blank lines are skipped, no bytes are no events, and a last line needs no newline."""
    log = b'{"event":"a","payload":"AQI="}\n\n  \t\n{"payload":"","version":2,"event":"b","x":1}'
    assert parse_runtime_lines(log) == (
        runtime_event("a", b"\1\2"),
        runtime_event("b", b"", version=2),
    )
    assert parse_runtime_lines(b"") == parse_runtime_lines(b"\n") == ()


def test_other_events_have_no_line() -> None:
    """The runtime log is for runtime events."""
    with pytest.raises(UsageError, match="EV_SEPARATOR"):
        runtime_line(Event(0, 4, bytes(48), "", b""))


GOOD = b'{"event":"good","payload":""}\n'


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"{", "not a JSON object"),
        (b"[]", "not a JSON object"),
        (b"7", "not a JSON object"),
        (b"{} {}", "not a JSON object"),
        (b"\xff", "not UTF-8"),
        (b"[" * 100_000, "JSON nests deeper"),
        (b'{"x":' + b"9" * 5000 + b"}", "number is too long"),
        (b"{}", "must be texts"),
        (b'{"event":"a"}', "must be texts"),
        (b'{"payload":""}', "must be texts"),
        (b'{"event":1,"payload":""}', "must be texts"),
        (b'{"event":"a","payload":null}', "must be texts"),
        (b'{"event":"a","payload":"","version":"2"}', "must be texts"),
        (b'{"event":"a","payload":"","version":true}', "must be texts"),
        (b'{"event":"a","payload":"","version":3}', "version is 3"),
        (b'{"event":"a","event":"b","payload":""}', "twice"),
        (b'{"event":"a","payload":"","x":{"y":1,"y":1}}', "twice"),
        (b'{"event":"\\ud800","payload":""}', "surrogates"),
        (b'{"event":"a","payload":"AQ"}', "not base64"),
        (b'{"event":"a","payload":"A Q=="}', "not base64"),
        (b'{"event":"a","payload":"A-_="}', "not base64"),
        (b'{"event":"a","payload":"\xc3\xa9"}', "not base64"),
        (b'{"event":"a","payload":"AR=="}', "canonical"),
        (b'{"event":"a","payload":"AQ==AQ=="}', "base64"),
    ],
)
def test_a_bad_line_is_an_error_for_the_whole_log(line: bytes, why: str) -> None:
    """The error names line and offset."""
    with pytest.raises(FormatError, match=f"^runtime log, line 3: .*{why}") as caught:
        parse_runtime_lines(GOOD + b"\n" + line + b"\n" + GOOD)
    assert caught.value.offset == len(GOOD) + 1


def test_a_log_cut_anywhere() -> None:
    """Cut between two lines a log is shorter; cut inside one it is refused, naming that line."""
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


@pytest.mark.parametrize("wrong", ["text", bytearray(), None])
def test_only_bytes_get_in(wrong: Any) -> None:
    """A runtime log is bytes."""
    with pytest.raises(UsageError):
        parse_runtime_lines(wrong)


NAMES = st.text(max_size=12)


@settings(max_examples=500, database=None, deadline=None)
@given(NAMES, st.binary(max_size=40))
def test_version_2_preimages_are_json_of_the_event(name: str, payload: bytes) -> None:
    """The canonical text is JSON, and no two events share one."""
    preimage = runtime_preimage(name, payload, 2)
    members = {"name": name, "payload": payload.hex(), "type": RUNTIME_EVENT_TYPE}
    assert json.loads(preimage) == members
    event = runtime_event(name, payload, 2)
    assert parse_runtime_lines(runtime_line(event) * 2) == (event, event)


@settings(max_examples=500, database=None, deadline=None)
@given(st.binary(max_size=80))
def test_any_bytes_are_a_log_or_a_format_error(anything: bytes) -> None:
    """Any bytes are lines of events or raise FormatError."""
    for log in (anything, b'{"event":"' + anything + b'","payload":"AA=="}'):
        with suppress(FormatError):
            parse_runtime_lines(log)


def test_the_digest_is_that_of_the_preimage() -> None:
    """Digest and preimage cannot drift apart."""
    for version in (1, 2):
        expected = hashlib.sha384(runtime_preimage("n", b"p", version)).digest()
        assert runtime_digest("n", b"p", version) == expected


@pytest.mark.parametrize("event_type", [0, 4, 0x0D, 0x80000007, 0xFFFFFFFF])
def test_rtmr3_has_runtime_events_alone(event_type: int) -> None:
    """Of an event of another type only the digest counts: it could be any runtime event, hidden."""
    hidden = Event(3, event_type, bytes(48), "", b"")
    with pytest.raises(VerificationError, match=r"event 0 of RTMR3 is .*, not a runtime event"):
        check_runtime_events([hidden])
    check_runtime_events([hidden._replace(event_type=3), hidden._replace(register=2)])
