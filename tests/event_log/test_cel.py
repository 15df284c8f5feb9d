"""Canonical Event Logs say the same in TLV, CBOR and JSON, and replay as what they were made of."""

import json
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit.errors import FormatError, UsageError, VerificationError
from attestkit.event_log import Event, EventLog, cel
from attestkit.event_log.cel import ENCODINGS
from attestkit.event_log.event import ACPI_DATA
from attestkit.event_log.event_types import ACPI_CONFIG, NO_ACTION, RUNTIME_EVENT_TYPE
from attestkit.event_log.runtime_events import runtime_event
from tests.event_log.cel_samples import DIGEST, EXAMPLE, FULL, number, record, text, tlv
from tests.event_log.make_cel_vectors import FOLDER, made
from tests.untyped import untyped
from tests.vectors import data, load, needs_shared

every_encoding = pytest.mark.parametrize("encoding", ENCODINGS)


def unnamed(log: EventLog) -> EventLog:
    """Return the log without the names of firmware's events, which a CEL does not have."""
    return EventLog(
        [
            event if event.event_type == RUNTIME_EVENT_TYPE else event._replace(name="")
            for event in log.events
        ]
    )


UNNAMED = unnamed(FULL)


@every_encoding
def test_the_example_is_written_and_read(encoding: str) -> None:
    """One record is the same bytes in each encoding, and the same event again."""
    log = EventLog([Event(1, 4, DIGEST, "", bytes(4))])
    assert log.to_cel(encoding) == EXAMPLE[encoding]
    assert EventLog.parse(EXAMPLE[encoding]) == EventLog.from_cel(EXAMPLE[encoding]) == log
    assert not EventLog.parse(EXAMPLE[encoding]).warnings


def test_text_is_read_as_its_bytes_are() -> None:
    """JSON may come as text."""
    written = FULL.to_cel("json").decode()
    assert EventLog.parse(written) == EventLog.parse(" \n" + written) == UNNAMED


@pytest.mark.parametrize("way", list(permutations(ENCODINGS)), ids=" ".join)
def test_every_event_survives_every_way(way: tuple[str, ...]) -> None:
    """From encoding to encoding, events and registers stay, runtime events with all they have."""
    log = FULL
    for encoding in (*way, way[0]):
        log = EventLog.parse(log.to_cel(encoding))
        assert log == UNNAMED
        assert (log.replay(), log.warnings) == (FULL.replay(), ())
        log.check_events()
    assert log.to_json() == UNNAMED.to_json()


events = st.one_of(
    st.builds(
        Event,
        st.integers(0, 3),
        st.integers(0, 2**32 - 1).filter(lambda kind: kind != RUNTIME_EVENT_TYPE)
        | st.sampled_from([NO_ACTION, 4, 0x8000000A]),
        st.binary(min_size=48, max_size=48),
        st.just(""),
        st.binary(max_size=80),
        st.just(1),
    ),
    st.builds(
        Event,
        st.just(0),
        st.just(ACPI_CONFIG),
        st.binary(min_size=48, max_size=48),
        st.sampled_from(["", "acpi-loader", "acpi-rsdp", "acpi-tables", "another"]),
        st.just(ACPI_DATA),
        st.just(1),
    ),
    st.builds(
        runtime_event,
        st.text(max_size=20).filter(lambda name: ":" not in name),
        st.binary(max_size=300),
        st.just(1),
    ),
    st.builds(runtime_event, st.text(max_size=20), st.binary(max_size=80), st.just(2)),
)


@settings(deadline=None, max_examples=60)  # machines are busy
@given(st.lists(events, min_size=1, max_size=6))
def test_any_log_survives_every_encoding(found: list[Event]) -> None:
    """Whatever events there are: agent's JSON, TLV, CBOR, JSON, and the agent's again.

    Names of firmware's events are lost on the first step, and nothing else is.
    """
    log = EventLog.from_json(EventLog(found).to_json())
    whole = unnamed(log)
    for encoding in ENCODINGS:
        log = EventLog.parse(log.to_cel(encoding))
        assert log == whole
        assert log.to_cel(encoding) == whole.to_cel(encoding)
    assert (log.to_json(), log.replay()) == (whole.to_json(), whole.replay())


@every_encoding
def test_a_simulated_guest_is_as_kept(encoding: str) -> None:
    """The kept files are what the simulator makes, and replay to the registers beside them."""
    kept = {path.name: path.read_bytes() for path in FOLDER.iterdir()}
    assert kept == made()
    registers = kept["registers.txt"].decode().split()
    log = EventLog.parse(kept[f"simulator.{encoding}"])
    assert [value.hex() for value in log.replay()] == registers
    assert [event.name for event in log.runtime][-1] == "model-loaded"
    assert log.runtime[-1].payload == b"weights:1"


@needs_shared
def test_real_logs_replay_the_same() -> None:
    """A real guest's CCEL and an agent's log come back out of each encoding as they were."""
    agents = json.loads(data("dstack/verifier/quote-report.json"))["event_log"]
    simulators = json.dumps(load("attestation_v0_simulator.json")["event_log"])
    for raw in (data("ccel/go-eventlog/cos-113-intel-tdx.bin"), agents, simulators):
        log = EventLog.parse(raw)
        for encoding in ENCODINGS:
            again = EventLog.parse(log.to_cel(encoding))
            assert again == unnamed(log)
            assert (again.replay(), again.runtime) == (log.replay(), log.runtime)


@pytest.mark.parametrize(
    "names", [[""], ["acpi-tables"], ["acpi-rsdp", "", "acpi-loader"], [""] * 4]
)
@every_encoding
def test_no_name_is_guessed(encoding: str, names: list[str]) -> None:
    """Events of the ACPI tables come back without a name, in any number and order."""
    found = [Event(0, ACPI_CONFIG, DIGEST, name, ACPI_DATA) for name in names]
    again = EventLog.from_cel(EventLog(found).to_cel(encoding))
    assert [event.name for event in again.events] == [""] * len(names)


@every_encoding
def test_stripped_events_get_their_digests(encoding: str) -> None:
    """A runtime event without a digest is written with its own."""
    log = EventLog([runtime_event("app-id", b"x")])
    assert log.stripped().events[0].digest == b""
    assert EventLog.parse(log.stripped().to_cel(encoding)) == log


def test_what_cannot_be_written_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown encoding, a name that would be cut elsewhere, and what nobody would read."""
    for encoding in ("cbor2", "", None, ["tlv"]):
        with pytest.raises(UsageError, match="tlv, cbor or json"):
            FULL.to_cel(untyped(encoding))
    colon = runtime_event("x", b"")._replace(name="a:b", digest=b"")
    with pytest.raises(UsageError, match=r"event 0, 'a:b', has a colon"):
        EventLog([colon]).to_cel("tlv")
    monkeypatch.setattr(cel, "MAX_RECORDS", len(FULL.events) - 1)
    with pytest.raises(UsageError, match="65,536 records"):
        FULL.to_cel("tlv")
    monkeypatch.undo()
    monkeypatch.setattr(cel, "MAX_SIZE", len(FULL.to_cel("tlv")) - 1)
    with pytest.raises(UsageError, match="16 MiB"):
        FULL.to_cel("tlv")


def test_an_empty_log() -> None:
    """It is an empty array; in TLV nothing is left to read."""
    assert EventLog().to_cel("tlv") == b""
    assert EventLog.parse(EventLog().to_cel("cbor")) == EventLog()
    assert EventLog.parse(EventLog().to_cel("json")) == EventLog()
    with pytest.raises(FormatError, match="must not be empty"):
        EventLog.from_cel(b"")


# -- record numbers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("numbers", "warning"),
    [
        ([(0, 1), (0, 2), (1, 1), (1, 2)], None),
        ([(0, 1), (1, 2), (2, 1), (3, 4)], None),  # through the whole log
        ([(0, 1), (2, 1)], "index 1 have a gap: 2 where 1 was due"),
        ([(1, 1), (2, 1)], "index 1 have a gap: 1 where 0 was due"),
        ([(0, 1), (3, 1), (9, 1)], "index 1 have a gap: 3 where 1 was due"),
    ],
)
def test_gaps_are_told(numbers: list[tuple[int, int]], warning: str | None) -> None:
    """Numbers run from 0 in each register or through the log; else the first gap is a warning."""
    log = EventLog.from_cel(b"".join(record(at, number(1, index)) for at, index in numbers))
    assert len(log.events) == len(numbers)
    assert len(log.warnings) == (warning is not None)
    assert warning is None or warning in log.warnings[0]
    assert log.trimmed().warnings == log.warnings


@pytest.mark.parametrize("second", [0, 1])
def test_numbers_grow(second: int) -> None:
    """A number again, or a smaller one, is refused with its record."""
    with pytest.raises(FormatError, match=r"CEL record 1: .* does not grow") as caught:
        EventLog.from_cel(record(1) + record(second))
    assert caught.value.offset == len(record())


# -- management ------------------------------------------------------------------------------------

VERSION = tlv(1, number(0, 1) + number(1, 1))


@pytest.mark.parametrize(
    "statements", [VERSION, tlv(2, b""), number(80, 9, 8), number(81, 2), VERSION + tlv(2, b"")]
)
def test_management_is_not_extended(statements: bytes) -> None:
    """Version, end of the firmware, timestamps and states are read, counted, and left out."""
    data = record(content=tlv(4, statements), digests=b"") + record(1)
    assert EventLog.parse(data) == EventLog.parse(EXAMPLE["tlv"])
    assert not EventLog.parse(data).warnings


def test_management_with_digests() -> None:
    """A timestamp with one is told of; a measured change of state is nothing that a TD does."""
    log = EventLog.from_cel(record(content=tlv(4, number(80, 1))) + record(1))
    assert log == EventLog.parse(EXAMPLE["tlv"])
    assert log.warnings == ("1 timestamps have digests, which are not replayed",)
    with pytest.raises(FormatError, match="change of state that was measured"):
        EventLog.from_cel(record(content=tlv(4, number(81, 1))))


def test_informative_records_of_index_0_are_left_out() -> None:
    """They are counted; an extended one would have changed MRTD."""
    informative = tlv(5, number(0, NO_ACTION) + tlv(1, b"StartupLocality\0\0"))
    data = record(register=number(1, 0), content=informative) + record()
    assert EventLog.parse(data) == EventLog.parse(EXAMPLE["tlv"])
    with pytest.raises(FormatError, match="index 0 is MRTD"):
        EventLog.from_cel(record(register=number(1, 0)))


@pytest.mark.parametrize("digests", [b"", tlv(0xB, bytes(32)), tlv(0xC, bytes(48))])
def test_informative_records_need_no_digest(digests: bytes) -> None:
    """Nothing extends them, so a log without a digest, or with another bank's, has zero bytes."""
    content = tlv(5, number(0, NO_ACTION) + tlv(1, b"remark"))
    log = EventLog.parse(record(digests=digests, content=content))
    assert log == EventLog([Event(1, NO_ACTION, bytes(48), "", b"remark")])
    assert log.replay() == EventLog().replay()


# -- what is no TD's -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (record(register=number(1, 5)), "no register of index 5"),
        (record(register=number(1, 2**64 - 1, 8)), "no register of index 1844"),
        (record(register=number(2, 1)), "nv_index"),
        (record(digests=tlv(0xB, bytes(32))), "no SHA-384 digest"),
        (record(digests=b""), "no SHA-384 digest"),
        (record(content=tlv(7, tlv(0, b"ima-ng") + tlv(1, b""))), "ima_template"),
        (record(content=tlv(8, b"")), "ima_tlv"),
        (record(content=tlv(9, b"")), "systemd"),
        (record(content=tlv(80, b"")), "Google's containers"),
        (record(content=tlv(6, b"")), "no content type 6"),
        (text(content_type="ima_template"), "ima_template"),
        (text(content_type=11, recnum=None), "systemd"),
        (text(pcr=None, nv_index=1), "nv_index"),
    ],
)
def test_what_is_not_about_registers_of_a_td_is_named(log: bytes, message: str) -> None:
    """TPM's registers and indexes, IMA's and systemd's measurements."""
    with pytest.raises(FormatError, match=f"^CEL record 0: .*{message}"):
        EventLog.parse(log)


def test_googles_register_type_is_read() -> None:
    """Type 108 stands for the same index; other banks beside SHA-384 are let be."""
    data = record(register=number(108, 2), digests=tlv(0xB, bytes(32)) + tlv(0xC, DIGEST))
    assert EventLog.parse(data) == EventLog.parse(EXAMPLE["tlv"])


# -- runtime events --------------------------------------------------------------------------------


def runtime_record(preimage: bytes, digest: bytes = DIGEST, index: int = 4) -> bytes:
    """Return a log of one runtime event."""
    content = tlv(5, number(0, RUNTIME_EVENT_TYPE, 4) + tlv(1, preimage))
    return record(0, number(1, index), tlv(0xC, digest), content)


@pytest.mark.parametrize(
    "preimage",
    [
        b"",
        b"\1\0\0\x08:name",
        b"\1\0\0\x08:\xff:",
        b"\2\0\0\x08:a:",
        b'{"name":"a","payload":"","type":134217730}',
        b'{"name":"a","payload":"", "type":134217729}',
        b'{"name":"a","payload":"AB","type":134217729}',
        b'{"name":"a","payload":"0","type":134217729}',
        b'{"name":"\\ud800","payload":"","type":134217729}',
        b'{"name":1,"payload":"","type":134217729}',
        b'{"' + b"[" * 300,
    ],
)
def test_data_that_are_no_preimage_are_refused(preimage: bytes) -> None:
    """Nobody could tell the event."""
    with pytest.raises(FormatError, match=r"CEL record 0: .*runtime event"):
        EventLog.from_cel(runtime_record(preimage))


def test_digests_of_runtime_events_are_their_own() -> None:
    """A digest that is not the preimage's is a warning in version 1, and a refusal in version 2."""
    for version in (1, 2):
        event = runtime_event("app-id", b"x", version)
        log = EventLog.from_cel(runtime_record(event.preimage()))
        assert log.events == (event,)
        if version == 1:
            assert log.warnings == ("event 0, 'app-id', came with a digest not its own",)
        else:
            with pytest.raises(VerificationError, match="does not match its preimage"):
                log.check_events()
        assert not EventLog.from_cel(runtime_record(event.preimage(), event.digest)).warnings


def test_runtime_events_elsewhere_are_not_believed() -> None:
    """One of RTMR0 can be read, and `check_events` refuses it as in any log."""
    log = EventLog.from_cel(runtime_record(runtime_event("app-id", b"").preimage(), index=1))
    with pytest.raises(VerificationError, match="runtime events are in RTMR3"):
        log.check_events()
