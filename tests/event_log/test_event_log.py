"""A TD's log replays to the registers of its quote, in whatever form it comes, or says why not."""

import hashlib
import json
import pickle
import struct
from contextlib import suppress
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit import event_log
from attestkit.errors import FormatError, ReplayError, UsageError, VerificationError
from attestkit.event_log import Event, EventLog, Rtmrs, WireEvent
from attestkit.event_log.runtime_events import RUNTIME_EVENT_TYPE, runtime_event, runtime_line
from attestkit.quote import Quote
from tests.untyped import untyped
from tests.vectors import data, load, needs_shared

VECTORS = load("eventlogs.json")
CCELS = [log for log in VECTORS.get("logs", []) if log["kind"] == "ccel"]
AGENT_LOGS = VECTORS.get("runtime_json_logs", [])
SIMULATOR = load("attestation_v0_simulator.json")

COS = "ccel/go-eventlog/cos-113-intel-tdx.bin"


class Registers(NamedTuple):
    """Something to check a log against that no quoting enclave has signed."""

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
def test_every_ccel_replays_to_its_registers(log: dict[str, Any]) -> None:
    """All seven CCELs: number of events, registers, and the quotes they belong to or do not."""
    found = EventLog.parse(data(log["path"]))
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
                with pytest.raises(ReplayError, match=f"RTMR{register} replays to"):
                    found.check(quote, registers=[register])


@needs_shared
def test_a_ccel_and_the_quote_of_its_boot() -> None:
    """All four registers at once, and one event later none of RTMR2's."""
    log, quote = EventLog.parse(data(COS)), quote_of("quotes/go-tdx-guest/cos-113-tdx-quote.dat")
    log.check(quote)
    more = EventLog([*log.events, Event(2, 13, bytes(48), "", b"")])
    with pytest.raises(ReplayError) as caught:
        more.check(quote)
    assert str(caught.value) == (
        f"RTMR2 replays to {more.replay()[2].hex()}, but the quote has {quote.rtmrs[2].hex()}"
    )
    assert caught.value.reason == "rtmr_mismatch"
    more.check(quote, registers=(0, 1, 3))


@needs_shared
def test_what_the_kernel_measured_later_completes_a_log() -> None:
    """One CCEL needs the IMA record that the kernel extended into RTMR2 after boot."""
    log = EventLog.parse(data("ccel/cc-trusted-api/ccel_data.bin"))
    ima = next(log for log in VECTORS["logs"] if log["kind"] == "ima_ascii")
    (entry,) = ima["entries"]
    later = Event(2, 20, bytes.fromhex(entry["template_digest"]), "", b"boot_aggregate")
    complete = EventLog([*log.events, later])
    assert complete.replay()[2].hex() == ima["rtmr2_after_ccel_then_ima"]
    complete.check(quote_of("quotes/cc-trusted-api/quote.bin"))


@needs_shared
@pytest.mark.parametrize("vector", AGENT_LOGS, ids=[log["path"] for log in AGENT_LOGS])
def test_every_agent_log_replays_to_its_quote(vector: dict[str, Any]) -> None:
    """Both captured responses, one of which has every runtime digest empty."""
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
def test_the_captured_attestation_in_all_its_forms() -> None:
    """Complete, trimmed for GetQuote and stripped for certificates, byte for byte."""
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
def test_the_form_of_the_agent_is_read_alike() -> None:
    """The upstream agent empties runtime digests too; that text replays to the same registers."""
    log = fixture_log()
    emptied = [
        event._replace(digest=b"") if event.is_runtime else event for event in log.trimmed().events
    ]
    text = EventLog(emptied).to_json()
    real = SIMULATOR["get_quote_event_log"]["real_platform_sha256"]
    assert hashlib.sha256(text.encode()).hexdigest() == real
    assert EventLog.parse(text) == log.trimmed()


@needs_shared
def test_tcg_vector_of_the_ccel() -> None:
    """The events of a CCEL are those of the upstream snapshot, names of the ACPI tables apart."""
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


def test_an_event_written_out() -> None:
    """Fields, type name and preimage of events of both origins."""
    event = runtime_event("app-id", b"\xde\xad")
    assert event == (3, 0x08000001, event.digest, "app-id", b"\xde\xad", 1)
    assert event.preimage() == b"\x01\x00\x00\x08:app-id:\xde\xad"
    assert event.digest == hashlib.sha384(event.preimage()).digest()
    assert event.type_name == "RUNTIME_EVENT"
    firmware = Event(1, 0x80000007, bytes(48), "", b"Exit Boot Services Invocation")
    assert firmware.type_name == "EV_EFI_ACTION"
    assert Event(1, 0x12345678, bytes(48), "", b"").type_name == "0x12345678"
    with pytest.raises(UsageError, match="EV_EFI_ACTION is no runtime event"):
        firmware.preimage()


def test_informative_events_do_not_extend() -> None:
    """EV_NO_ACTION is kept and never replayed, whatever its digest."""
    log = EventLog([Event(0, 3, b"\1" * 48, "", b""), Event(3, 3, b"\1" * 48, "", b"")])
    assert log.replay() == (bytes(48),) * 4
    assert len(log.events) == 2


def test_a_batch_is_each_log_by_itself() -> None:
    """Many logs at once, one of them empty."""
    logs = [EventLog([runtime_event(str(i), b"")] * i) for i in range(4)]
    assert EventLog.replay_many(logs) == [log.replay() for log in logs]
    assert EventLog.replay_many([]) == []


def test_runtime_events_go_behind() -> None:
    """`with_runtime` appends, and takes runtime events alone."""
    boot = EventLog([Event(0, 4, bytes(48), "", bytes(4))])
    event = runtime_event("model-loaded", b"\1", version=2)
    log = boot.with_runtime([event]).with_runtime([])
    assert log.events == (*boot.events, event)
    assert log.runtime == (event,)
    assert log.replay()[0] == boot.replay()[0]
    assert log.replay()[3] == hashlib.sha384(bytes(48) + event.digest).digest()
    with pytest.raises(UsageError, match="event 0 is not a runtime event of RTMR3"):
        log.with_runtime(boot.events)
    with pytest.raises(UsageError, match="event 1 is not a runtime event of RTMR3"):
        log.with_runtime([event, event._replace(register=2)])


def test_stripping_keeps_what_a_verifier_needs() -> None:
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


def test_runtime_lines_are_recognised() -> None:
    """Lines of the agent's runtime log are a log of RTMR3."""
    events = [runtime_event("one", b"\1"), runtime_event("zwei ⅔", b"", version=2)]
    lines = b"\n" + b"".join(map(runtime_line, events))
    for form in (lines, lines.decode()):
        assert EventLog.parse(form).events == tuple(events)


ACPI_TABLE = b"CCEL" + (56).to_bytes(4, "little") + bytes(48)


@pytest.mark.parametrize(
    ("log", "name"),
    [
        (ACPI_TABLE, "ACPI table"),
        (b" 2 67c7 ima-ng sha384:cd01 boot_aggregate\n", "IMA"),
        (b"\0" * 99, "Spec ID"),
        (b"", "empty"),
        (b" \n", "empty"),
        ("", "empty"),
        ("event", "neither a JSON array nor lines"),
        (b"\xff" * 99, "index"),
        (b"\xef\xbb\xbf[]", "ends inside"),
        (b'["\xff"]', "not UTF-8"),
        ('{"event":"\ud800","payload":""}', "lone surrogates"),
    ],
)
def test_other_logs_are_refused_by_name(log: bytes | str, name: str) -> None:
    """What is not a TD's log is named."""
    with pytest.raises(FormatError, match=name):
        EventLog.parse(log)


@needs_shared
def test_a_tpm_log_is_refused_by_name() -> None:
    """TPM logs of both formats point to the class that reads them."""
    logs = [log for log in VECTORS["logs"] if log["kind"].startswith("tpm")]
    assert len(logs) == 12
    for log in logs:
        with pytest.raises(FormatError, match="TpmEventLog") as caught:
            EventLog.parse(data(log["path"]))
        assert caught.value.offset is not None


@pytest.mark.parametrize("wrong", [bytearray(b"[]"), memoryview(b"[]"), None, [], 7])
def test_only_bytes_and_text_get_in(wrong: Any) -> None:
    """Buffers that others could change are refused, as is everything else."""
    for read in (EventLog.parse, EventLog.from_ccel, EventLog.from_json):
        with pytest.raises(UsageError):
            read(wrong)
    with pytest.raises(UsageError):
        EventLog.from_ccel(untyped("text"))


@pytest.mark.parametrize(
    ("event", "why"),
    [
        (Event(4, 4, bytes(48), "", b""), "no RTMR4"),
        (Event(-1, 4, bytes(48), "", b""), "no RTMR-1"),
        (Event(0, 1 << 32, bytes(48), "", b""), "32 bits"),
        (Event(0, 4, bytes(47), "", b""), "47 bytes"),
        (Event(0, 4, b"", "", b""), "0 bytes"),
        (Event(0, 4, untyped("0" * 48), "", b""), "are bytes"),
        (Event(3, RUNTIME_EVENT_TYPE, bytes(48), "a", b""), "a digest that is not its own"),
        (Event(3, RUNTIME_EVENT_TYPE, b"", "a", b"", 3), "version is 3"),
        (Event(0, 4, bytes(48), "", b"", 2), "only runtime events have a version"),
        (Event(3, RUNTIME_EVENT_TYPE, b"", "\ud800", b""), "surrogates"),
        (Event(3, RUNTIME_EVENT_TYPE, b"", untyped(None), b""), "cannot be"),
        ((0, 4, bytes(48), "", b""), "no Event"),
    ],
)
def test_an_event_that_cannot_be_is_refused(event: Any, why: str) -> None:
    """A log made of events checks each of them."""
    with pytest.raises(UsageError, match=f"event 1.*{why}"):
        EventLog([Event(0, 4, bytes(48), "", b""), event])


@pytest.mark.parametrize("registers", [(), (4,), (0, -1), ("0",), [None]])
def test_a_check_of_no_register_is_refused(registers: Any) -> None:
    """A check that would compare nothing must not pass."""
    with pytest.raises(UsageError, match="from 0 to 3"):
        EventLog([]).check(Registers((bytes(48),) * 4), registers=registers)


ACPI = Event(0, 0x0A, bytes(48), "acpi-rsdp", b"ACPI DATA")


def test_a_log_explains_the_registers_whose_events_it_has() -> None:
    """RTMR3 always; the others together, by one event that shortening would have taken out."""
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
def test_shortening_a_log_leaves_rtmr3() -> None:
    """A CCEL explains all registers and what certificates carry of it RTMR3 alone."""
    log = EventLog.from_ccel(data(COS)).with_runtime([runtime_event("app-id", b"\1")])
    assert log.explained_registers() == (0, 1, 2, 3)
    assert log.trimmed().explained_registers() == (0, 1, 2, 3)
    assert log.stripped().explained_registers() == (3,)


def test_a_colon_in_a_version_1_name_is_not_believed() -> None:
    """`a:b` with `c` and `a` with `b:c` have one digest: such a log parses and fails its check."""
    good = EventLog([runtime_event("a", b"b:c")])
    moved = EventLog([Event(3, RUNTIME_EVENT_TYPE, b"", "a:b", b"c")])
    assert good.replay() == moved.replay()
    quoted = Registers(good.replay())
    good.check(quoted)
    for log in (moved, EventLog.parse(moved.to_json())):
        with pytest.raises(VerificationError, match="colon in a version 1 name"):
            log.check(quoted)
        with pytest.raises(VerificationError):
            log.check(quoted, registers=[0])
    EventLog([runtime_event("a:b", b"c", version=2)]).check_events()


def test_a_runtime_event_outside_rtmr3_is_not_believed() -> None:
    """What the host had measured into RTMR0 cannot be passed off as an app's identity."""
    event = runtime_event("app-id", b"\0" * 20)
    log = EventLog.from_wire([WireEvent(0, RUNTIME_EVENT_TYPE, b"", "app-id", event.payload)])
    assert log.replay()[0] == hashlib.sha384(bytes(48) + event.digest).digest()
    assert log.runtime == ()
    with pytest.raises(VerificationError, match="event 0, 'app-id', is a runtime event of RTMR0"):
        log.check(Registers(log.replay()))


def test_version_2_events_are_held_to_their_preimage() -> None:
    """Missing, wrong and foreign preimages parse and fail the check, with the verifiers' texts."""
    event = runtime_event("app-id", b"\1", version=2)
    good = WireEvent(
        3, RUNTIME_EVENT_TYPE, event.digest, "app-id", b"\1", 2, event.preimage().hex()
    )
    foreign = b'{"type":134217729,"name":"app-id","payload":"01"}'
    refused = {
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
    for text, wire in refused.items():
        log = EventLog.from_wire([good, wire])
        for form in (log, log.trimmed(), log.stripped(), log.with_runtime([])):
            with pytest.raises(VerificationError) as caught:
                form.check(Registers(log.replay()))
            assert str(caught.value) == f"V2 runtime event 1 {text}"


def test_a_foreign_digest_of_version_1_is_worth_a_warning() -> None:
    """What a runtime event extends follows from its name and payload, whatever is said."""
    event = runtime_event("a", b"")
    log = EventLog.from_wire([WireEvent(3, RUNTIME_EVENT_TYPE, bytes(48), "a", b"")])
    assert log.events == (event,)
    assert log.warnings == ("event 0, 'a', came with a digest not its own",)
    with pytest.raises(ReplayError, match="came with a digest not its own"):
        log.check(Registers((bytes(48),) * 4))


@needs_shared
def test_fill_that_is_none_is_worth_a_warning() -> None:
    """Bytes behind the end of a CCEL do not matter, and are mentioned."""
    area = bytearray(data("ccel/dstack/ccel.bin"))
    area[40000] = 0
    log = EventLog.parse(bytes(area))
    assert log == EventLog.parse(data("ccel/dstack/ccel.bin"))
    assert log.warnings == ("the bytes behind the last record (byte 1933) are not all the same",)
    assert log.trimmed().warnings == log.warnings


@needs_shared
def test_logs_are_values() -> None:
    """Equal logs are equal and hash alike, pickle, and do not print their contents."""
    ccel = EventLog.parse(data(COS))
    copy = pickle.loads(pickle.dumps(ccel))
    assert (copy, hash(copy), copy.replay()) == (ccel, hash(ccel), ccel.replay())
    assert EventLog(ccel.events) == ccel
    assert EventLog(ccel.events[1:]) != ccel
    assert ccel != "a log"
    assert repr(ccel) == "<EventLog of 43 events>"


@settings(max_examples=500, database=None, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.text(max_size=200)))
def test_anything_else_is_a_format_error(anything: bytes | str) -> None:
    """Any bytes and any text parse or raise FormatError."""
    with suppress(FormatError, VerificationError):
        EventLog.parse(anything).check_events()


def test_one_log_gets_one_verdict_however_it_was_read() -> None:
    """A CCEL with a firmware event in RTMR3 is refused as the same events in JSON are."""
    text = json.dumps([{"imr": 3, "event_type": 4, "digest": "ab" * 48, "event": ""}])
    [event] = EventLog.from_json(text.replace('""}', '"", "event_payload": "78"}')).events
    body = b"Spec ID Event03\0" + struct.pack("<I4BIHHB", 0, 0, 2, 105, 2, 1, 12, 48, 0)
    area = struct.pack("<II20xI", 1, 3, len(body)) + body
    area += struct.pack("<IIIH", 4, 4, 1, 12) + event.digest + struct.pack("<I", 1) + b"x"
    ccel = EventLog.from_ccel(area)
    assert ccel.events == (event,)
    for log in (ccel, EventLog.from_ccel(area), EventLog.from_json(ccel.to_json())):
        assert log == ccel
        with pytest.raises(VerificationError, match="not a runtime event"):
            log.check_events()


def test_a_log_lets_go_of_what_it_was_made_from() -> None:
    """Once the events are made, a text of 16 MiB is not kept with them."""

    class Text(NamedTuple):
        """A source that can be watched."""

        regular: bool = True

        def events(self) -> tuple[Event, ...]:
            """Make none."""
            return ()

        def warnings(self) -> tuple[str, ...]:
            """Tell of something."""
            return ("odd",)

    log = event_log._read(EventLog, (b"", b""), Text())
    assert log.warnings == ("odd",)
    assert (log.events, log._source, log.warnings) == ((), None, ("odd",))
    log.check_events()
