"""A TD's event log in any format replays to the registers of its quote, or names the mismatch."""

import hashlib
import json
import pickle
import struct
from typing import Any, NamedTuple

import pytest

from attestkit.errors import FormatError, ReplayError, UsageError, VerificationError
from attestkit.event_log import Event, EventLog, Rtmrs, TpmEventLog, WireEvent
from attestkit.event_log.runtime_events import (
    RUNTIME_EVENT_TYPE,
    parse_runtime_lines,
    runtime_event,
    runtime_line,
)
from attestkit.quote import Quote
from tests.raising import raises
from tests.runner.cases import every_case
from tests.untyped import untyped
from tests.vectors import data, load, needs_shared

VECTORS = load("eventlogs.json")
CCELS = [log for log in VECTORS.get("logs", []) if log["kind"] == "ccel"]
AGENT_LOGS = VECTORS.get("runtime_json_logs", [])
SIMULATOR = load("attestation_v0_simulator.json")

COS = "ccel/go-eventlog/cos-113-intel-tdx.bin"


class Registers(NamedTuple):
    """Unsigned registers to check a log against."""

    rtmrs: Rtmrs


def fixture_log() -> EventLog:
    """Return the complete log of a captured attestation, 33 events."""
    return EventLog.from_json(json.dumps(SIMULATOR["event_log"]))


def quote_of(path: str) -> Quote:
    """Read a sample quote: raw, in hex, or inside a response."""
    raw = data(path)
    if path.endswith(".json"):
        return Quote.parse(bytes.fromhex(json.loads(raw)["quote"]))
    return Quote.parse(bytes.fromhex(raw.decode()) if path.endswith(".hex") else raw)


@needs_shared
@pytest.mark.parametrize("log", CCELS, ids=[log["path"] for log in CCELS])
def test_from_ccel_of_every_sample_replays_to_its_registers(log: dict[str, Any]) -> None:
    """Each of the seven CCELs has its number of events, and replays to its recorded registers."""
    found = EventLog.parse(data(log["path"]))
    found.check_events()
    assert found == EventLog.from_ccel(data(log["path"]))
    assert [value.hex() for value in found.replay()] == list(log["rtmr"].values())
    assert len(found.events) == log["events"]
    assert found.warnings == ()
    for relation in log["quotes"]:
        quote = quote_of(relation["quote"])
        for register, match in enumerate(relation["rtmr_match"]):
            if match:
                found.check(quote, registers=[register])
            else:
                with raises(
                    ReplayError,
                    "rtmr_mismatch",
                    register=register,
                    expected=found.replay()[register],
                    actual=quote.rtmrs[register],
                ):
                    found.check(quote, registers=[register])


@needs_shared
@pytest.mark.parametrize("vector", AGENT_LOGS, ids=[log["path"] for log in AGENT_LOGS])
def test_from_json_of_every_agent_log_replays_to_its_quote(vector: dict[str, Any]) -> None:
    """Both captured responses match, including the one with empty runtime digests."""
    response = json.loads(data(vector["path"]))
    for text in (response["event_log"], response["event_log"].encode()):
        log = EventLog.parse(text)
        assert [value.hex() for value in log.replay()] == list(vector["replay_sha384"].values())
        log.check(quote_of(vector["path"]))
        assert [
            [event.register for event in log.events].count(register) for register in range(4)
        ] == vector["events_per_rtmr"]
        assert [(event.name, event.payload.hex(), event.digest.hex()) for event in log.runtime] == [
            (event["name"], event["payload_hex"], event["digest"])
            for event in vector["runtime_events_rtmr3"]
        ]


@needs_shared
def test_captured_log_matches_its_trimmed_and_stripped_vectors() -> None:
    """The complete, trimmed (GetQuote) and stripped (certificate) logs match byte for byte."""
    log, forms = fixture_log(), SIMULATOR["get_quote_event_log"]
    complete = log.to_json()
    assert complete == json.dumps(SIMULATOR["event_log"], separators=(",", ":"))
    assert hashlib.sha256(complete.encode()).hexdigest() == forms["simulator_unstripped_sha256"]
    trimmed = log.trimmed()
    assert len(trimmed.to_json()) == forms["attestkit_length"]
    assert hashlib.sha256(trimmed.to_json().encode()).hexdigest() == forms["attestkit_sha256"]
    stripped = json.loads(log.stripped().to_json())
    assert stripped == SIMULATOR["stripped_for_certificate"]["event_log"]
    assert trimmed.replay() == log.replay()
    assert log.stripped().replay()[3] == log.replay()[3]


@needs_shared
def test_from_json_of_upstream_agent_format_replays_equally() -> None:
    """The upstream agent's text with empty runtime digests replays to the same registers."""
    log = fixture_log()
    emptied = [
        event._replace(digest=b"") if event.is_runtime else event for event in log.trimmed().events
    ]
    text = EventLog(emptied).to_json()
    real = SIMULATOR["get_quote_event_log"]["real_platform_sha256"]
    assert hashlib.sha256(text.encode()).hexdigest() == real
    assert EventLog.parse(text) == log.trimmed()


@needs_shared
def test_from_ccel_matches_upstream_snapshot() -> None:
    """The events of a CCEL match the upstream snapshot, except for names of the ACPI tables."""
    vector = load("tcg_logs.json")["ccel"]
    log = EventLog.from_ccel(data("dstack/cc-eventlog/ccel.bin"))
    assert len(log.events) == vector["event_count"]
    expected = [dict(event, event="") for event in vector["events"]]
    assert json.loads(EventLog([e._replace(name="") for e in log.events]).to_json()) == expected
    assert [event.name for event in log.events if event.name] == [
        "acpi-loader",
        "acpi-rsdp",
        "acpi-tables",
    ]
    assert [event["event"] for event in vector["events"]] == [event.name for event in log.events]


def test_event_fields_type_name_and_preimage() -> None:
    """A firmware event and a runtime event have the documented fields."""
    event = runtime_event("app-id", b"\xde\xad")
    assert event == (3, 0x08000001, event.digest, "app-id", b"\xde\xad", 1)
    assert event.preimage() == b"\x01\x00\x00\x08:app-id:\xde\xad"
    assert event.digest == hashlib.sha384(event.preimage()).digest()
    assert event.type_name == "RUNTIME_EVENT"
    firmware = Event(1, 0x80000007, bytes(48), "", b"Exit Boot Services Invocation")
    assert firmware.type_name == "EV_EFI_ACTION"
    assert Event(1, 0x12345678, bytes(48), "", b"").type_name == "0x12345678"
    with raises(UsageError, "not_applicable"):
        firmware.preimage()


def test_replay_ignores_no_action_events() -> None:
    """EV_NO_ACTION is kept and never replayed, whatever its digest."""
    log = EventLog([Event(0, 3, b"\1" * 48, "", b""), Event(3, 3, b"\1" * 48, "", b"")])
    assert log.replay() == (bytes(48),) * 4
    assert len(log.events) == 2


def test_replay_many_equals_single_replays() -> None:
    """A batch, including an empty log, gives the results of the single logs."""
    logs = [EventLog([runtime_event(str(i), b"")] * i) for i in range(4)]
    assert EventLog.replay_many(logs) == [log.replay() for log in logs]
    assert EventLog.replay_many([]) == []


def test_with_runtime_appends_runtime_events_only() -> None:
    """`with_runtime` appends, and accepts runtime events only."""
    boot = EventLog([Event(0, 4, bytes(48), "", bytes(4))])
    event = runtime_event("model-loaded", b"\1", version=2)
    log = boot.with_runtime([event]).with_runtime([])
    assert log.events == (*boot.events, event)
    assert log.runtime == (event,)
    assert log.replay()[0] == boot.replay()[0]
    assert log.replay()[3] == hashlib.sha384(bytes(48) + event.digest).digest()
    with raises(UsageError, "wrong_value"):
        log.with_runtime(boot.events)
    with raises(UsageError, "wrong_value"):
        log.with_runtime([event, event._replace(register=2)])


def test_stripped_keeps_version_2_digests() -> None:
    """Version 2 events keep their digest; other events of RTMR3 lose their payload."""
    acpi = Event(0, 10, b"\1" * 48, "acpi-rsdp", b"ACPI DATA")
    firmware = Event(0, 10, b"\2" * 48, "", b"something else")
    other = Event(3, 6, b"\3" * 48, "", b"tagged")
    old, new = runtime_event("a", b"1"), runtime_event("b", b"2", version=2)
    log = EventLog([acpi, firmware, other, old, new])
    stripped = log.stripped()
    assert stripped.events == (
        acpi,
        other._replace(payload=b""),
        old._replace(digest=b""),
        new,
    )
    assert stripped.replay()[3] == log.replay()[3]
    assert EventLog.parse(stripped.to_json()).replay() == stripped.replay()
    assert log.trimmed().events == (
        acpi,
        firmware._replace(payload=b""),
        other._replace(payload=b""),
        old,
        new,
    )
    assert EventLog.parse(log.to_json()) == log


def test_parse_of_runtime_lines_is_rtmr3_log() -> None:
    """Lines of the agent's runtime log are a log of RTMR3."""
    events = [runtime_event("one", b"\1"), runtime_event("zwei ⅔", b"", version=2)]
    lines = b"\n" + b"".join(map(runtime_line, events))
    for form in (lines, lines.decode()):
        assert EventLog.parse(form).events == tuple(events)


ACPI_TABLE = b"CCEL" + (56).to_bytes(4, "little") + bytes(48)


@every_case(
    ("log", "reason", "name"),
    [
        (ACPI_TABLE, "other_log", "ACPI table"),
        (b" 2 67c7 ima-ng sha384:cd01 boot_aggregate\n", "other_log", "IMA"),
        (b"\0" * 99, "header", "Spec ID"),
        (b"", "missing", "event log"),
        ("", "missing", "event log"),
        ("event", "unrecognized", "event log"),
        (b"\xff" * 99, "index", "index"),
        (b"\xef\xbb\xbf[]", "truncated", "log"),
        (b'["\xff"]', "encoding", "event log"),
        ('{"event":"\ud800","payload":""}', "encoding", "event log"),
    ],
)
def test_parse_of_other_log_fails_naming_it(log: bytes | str, reason: str, name: str) -> None:
    """A log of another kind is rejected by its name."""
    with raises(FormatError, reason, part=name):
        EventLog.parse(log)


@needs_shared
def test_parse_of_tpm_log_names_tpm_log_class() -> None:
    """The error for a TPM log names the class that reads it."""
    logs = [log for log in VECTORS["logs"] if log["kind"].startswith("tpm")]
    assert len(logs) == 12
    for log in logs:
        with raises(FormatError, "other_log") as caught:
            EventLog.parse(data(log["path"]))
        assert caught.value.offset is not None
        assert "TpmEventLog" in caught.value.message


@every_case("wrong", [bytearray(b"[]"), memoryview(b"[]"), None, [], 7])
def test_parse_of_other_type_is_usage_error(wrong: Any) -> None:
    """Mutable buffers and other types are rejected."""
    for read in (
        EventLog.parse,
        EventLog.from_ccel,
        EventLog.from_json,
        EventLog.from_cel,
        TpmEventLog.parse,
        parse_runtime_lines,
    ):
        with raises(UsageError, "wrong_type"):
            read(wrong)
    with raises(UsageError, "wrong_type"):
        EventLog.from_ccel(untyped("text"))


@every_case(
    ("event", "reason", "subject"),
    [
        (Event(4, 4, bytes(48), "", b""), "wrong_value", "imr"),
        (Event(0, 1 << 32, bytes(48), "", b""), "wrong_value", "event type"),
        (Event(0, 4, bytes(47), "", b""), "wrong_value", "digest"),
        (Event(0, 4, b"", "", b""), "wrong_value", "digest"),
        (Event(0, 4, untyped("0" * 48), "", b""), "wrong_type", "digest"),
        (Event(3, RUNTIME_EVENT_TYPE, bytes(48), "a", b""), "conflict", "digest"),
        (Event(3, RUNTIME_EVENT_TYPE, b"", "a", b"", 3), "wrong_value", "version"),
        (Event(0, 4, bytes(48), "", b"", 2), "not_applicable", "version"),
        (Event(3, RUNTIME_EVENT_TYPE, b"", "\ud800", b""), "wrong_value", "event name"),
        (Event(3, RUNTIME_EVENT_TYPE, b"", untyped(None), b""), "wrong_type", "type"),
        ((0, 4, bytes(48), "", b""), "wrong_type", "Event"),
    ],
)
def test_log_of_invalid_event_is_rejected(event: Any, reason: str, subject: str) -> None:
    """The constructor of EventLog validates each event."""
    with raises(UsageError, reason, start="event 1", part=subject):
        EventLog([Event(0, 4, bytes(48), "", b""), event])


@every_case("registers", [(), (4,), (0, -1), ("0",), [None]])
def test_check_without_registers_is_usage_error(registers: Any) -> None:
    """A check that compares no register must not pass."""
    with raises(UsageError, "out_of_range"):
        EventLog([]).check(Registers((bytes(48),) * 4), registers=registers)


ACPI = Event(0, 0x0A, bytes(48), "acpi-rsdp", b"ACPI DATA")


def test_explained_registers_follow_from_events() -> None:
    """RTMR3 is always covered; RTMR0 to 2 are covered if an event remains that trimming removes."""
    runtime = runtime_event("app-id", b"\1")
    measured = Event(3, 0x80000001, bytes(48), "", b"by firmware")
    for events in ((), (runtime,), (measured,), (ACPI,), (ACPI, ACPI, runtime, measured)):
        assert EventLog(events).explained_registers() == (3,), events
    for event in (
        *(Event(register, 4, bytes(48), "", b"") for register in (0, 1, 2)),
        ACPI._replace(register=1),
        ACPI._replace(event_type=4),
        ACPI._replace(payload=b""),
        Event(0, 3, bytes(48), "", b"does not even extend"),
    ):
        assert EventLog([ACPI, runtime, event]).explained_registers() == (0, 1, 2, 3), event


@needs_shared
def test_explained_registers_of_stripped_log_are_rtmr3() -> None:
    """A CCEL covers all registers; its stripped form covers RTMR3 only."""
    log = EventLog.from_ccel(data(COS)).with_runtime([runtime_event("app-id", b"\1")])
    assert log.explained_registers() == (0, 1, 2, 3)
    assert log.trimmed().explained_registers() == (0, 1, 2, 3)
    assert log.stripped().explained_registers() == (3,)


def test_check_events_of_version_1_name_with_colon_fails() -> None:
    """`a:b` with `c` and `a` with `b:c` have equal digests, so such a name fails the check."""
    good = EventLog([runtime_event("a", b"b:c")])
    moved = EventLog([Event(3, RUNTIME_EVENT_TYPE, b"", "a:b", b"c")])
    assert good.replay() == moved.replay()
    quoted = Registers(good.replay())
    good.check(quoted)
    for log in (moved, EventLog.parse(moved.to_json())):
        with raises(VerificationError, "event"):
            log.check(quoted)
        with raises(VerificationError, "event"):
            log.check(quoted, registers=[0])
    EventLog([runtime_event("a:b", b"c", version=2)]).check_events()


def test_check_events_of_runtime_event_outside_rtmr3_fails() -> None:
    """A measurement by the host into RTMR0 cannot pass as an app's identity."""
    event = runtime_event("app-id", b"\0" * 20)
    log = EventLog.from_wire([WireEvent(0, RUNTIME_EVENT_TYPE, b"", "app-id", event.payload)])
    assert log.replay()[0] == hashlib.sha384(bytes(48) + event.digest).digest()
    assert log.runtime == ()
    with raises(VerificationError, "event"):
        log.check(Registers(log.replay()))


def test_check_events_of_wrong_version_2_preimage_fails() -> None:
    """Missing, wrong and foreign preimages are parsed and fail the check."""
    event = runtime_event("app-id", b"\1", version=2)
    good = WireEvent(
        3, RUNTIME_EVENT_TYPE, event.digest, "app-id", b"\1", 2, event.preimage().hex()
    )
    foreign = b'{"type":134217729,"name":"app-id","payload":"01"}'
    invalid = {
        "is missing its digest preimage": good._replace(preimage=None),
        "has a malformed digest preimage": good._replace(preimage="0"),
        "digest does not match its preimage": good._replace(digest=bytes(48)),
        "preimage is not the canonical event representation": good._replace(
            digest=hashlib.sha384(foreign).digest(), preimage=foreign.hex()
        ),
    }
    for wire in (good, good._replace(digest=b"")):
        log = EventLog.from_wire([wire])
        assert log.events == (event,)
        log.check(Registers(log.replay()))
    for text, wire in invalid.items():
        log = EventLog.from_wire([good, wire])
        for form in (log, log.trimmed(), log.stripped(), log.with_runtime([])):
            with raises(VerificationError, "event", text=f"V2 runtime event 1 {text}"):
                form.check(Registers(log.replay()))


def test_wrong_version_1_digest_is_warning() -> None:
    """A version 1 digest is computed from name and payload; another one is a warning."""
    event = runtime_event("a", b"")
    log = EventLog.from_wire([WireEvent(3, RUNTIME_EVENT_TYPE, bytes(48), "a", b"")])
    assert log.events == (event,)
    (warning,) = log.warnings
    with raises(ReplayError, "rtmr_mismatch", register=3) as caught:
        log.check(Registers((bytes(48),) * 4))
    assert str(caught.value).endswith(f"; {warning}")


@needs_shared
def test_from_ccel_with_invalid_fill_is_warning() -> None:
    """Bytes other than fill after the end of a CCEL are ignored with a warning."""
    area = bytearray(data("ccel/dstack/ccel.bin"))
    area[40000] = 0
    log = EventLog.parse(bytes(area))
    assert log == EventLog.parse(data("ccel/dstack/ccel.bin"))
    assert log.warnings == ("padding after the last record (byte 1933) is not one repeated byte",)
    assert log.trimmed().warnings == log.warnings


@needs_shared
def test_log_is_value_object() -> None:
    """Equal logs are equal, hash alike and pickle; repr does not contain their events."""
    ccel = EventLog.parse(data(COS))
    copy = pickle.loads(pickle.dumps(ccel))
    assert (copy, hash(copy), copy.replay()) == (ccel, hash(ccel), ccel.replay())
    assert EventLog(ccel.events) == ccel
    assert EventLog(ccel.events[1:]) != ccel
    assert ccel != "a log"
    assert repr(ccel) == "<EventLog of 43 events>"


def test_check_events_result_is_independent_of_format() -> None:
    """A firmware event in RTMR3 fails in a CCEL as it does in JSON."""
    text = json.dumps([{"imr": 3, "event_type": 4, "digest": "ab" * 48, "event": ""}])
    [event] = EventLog.from_json(text.replace('""}', '"", "event_payload": "78"}')).events
    body = b"Spec ID Event03\0" + struct.pack("<I4BIHHB", 0, 0, 2, 105, 2, 1, 12, 48, 0)
    area = struct.pack("<II20xI", 1, 3, len(body)) + body
    area += struct.pack("<IIIH", 4, 4, 1, 12) + event.digest + struct.pack("<I", 1) + b"x"
    ccel = EventLog.from_ccel(area)
    assert ccel.events == (event,)
    for log in (ccel, EventLog.from_ccel(area), EventLog.from_json(ccel.to_json())):
        assert log == ccel
        with raises(VerificationError, "event"):
            log.check_events()
