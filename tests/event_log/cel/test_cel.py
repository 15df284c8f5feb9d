"""A Canonical Event Log has equal content in TLV, CBOR and JSON, and replays like its source."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit.errors import FormatError, UsageError, VerificationError
from attestkit.event_log import Event, EventLog, cel
from attestkit.event_log.cel import ENCODINGS
from attestkit.event_log.event import ACPI_DATA
from attestkit.event_log.event_types import ACPI_CONFIG, NO_ACTION, RUNTIME_EVENT_TYPE
from attestkit.event_log.runtime_events import runtime_event
from tests.event_log.cel.cel_samples import DIGEST, EXAMPLE, FULL, number, record, text, tlv
from tests.event_log.cel.make_cel_vectors import FOLDER, make_vectors
from tests.raising import raises
from tests.runner.cases import every_case
from tests.untyped import untyped

every_encoding = pytest.mark.parametrize("encoding", ENCODINGS)


def without_firmware_names(log: EventLog) -> EventLog:
    """Return the log without names of firmware events, which a CEL cannot contain."""
    return EventLog(
        [
            event if event.event_type == RUNTIME_EVENT_TYPE else event._replace(name="")
            for event in log.events
        ]
    )


@every_encoding
def test_to_cel_of_sample_record_matches_bytes(encoding: str) -> None:
    """The sample record has its expected bytes in each encoding, and is read back."""
    log = EventLog([Event(1, 4, DIGEST, "", bytes(4))])
    assert log.to_cel(encoding) == EXAMPLE[encoding]
    assert EventLog.parse(EXAMPLE[encoding]) == EventLog.from_cel(EXAMPLE[encoding]) == log
    assert not EventLog.parse(EXAMPLE[encoding]).warnings


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


@settings(deadline=None, max_examples=60)  # shared machines are slow
@given(st.lists(events, min_size=1, max_size=6))
def test_cel_round_trip_of_arbitrary_log_keeps_events(found: list[Event]) -> None:
    """Any log survives conversion from agent JSON through TLV, CBOR and JSON and back.

    The first conversion drops the names of firmware events, and nothing else.
    """
    log = EventLog.from_json(EventLog(found).to_json())
    whole = without_firmware_names(log)
    for encoding in ENCODINGS:
        log = EventLog.parse(log.to_cel(encoding))
        assert log == whole
        assert log.to_cel(encoding) == whole.to_cel(encoding)
    assert (log.to_json(), log.replay()) == (whole.to_json(), whole.replay())


@every_encoding
def test_to_cel_of_simulated_guest_matches_vectors(encoding: str) -> None:
    """The vectors are what the simulator generates, and replay to their registers."""
    files = {path.name: path.read_bytes() for path in FOLDER.iterdir()}
    assert files == make_vectors()
    registers = files["registers.txt"].decode().split()
    log = EventLog.parse(files[f"simulator.{encoding}"])
    assert [value.hex() for value in log.replay()] == registers
    assert [event.name for event in log.runtime][-1] == "model-loaded"
    assert log.runtime[-1].payload == b"weights:1"


@every_encoding
def test_to_cel_of_stripped_event_computes_digest(encoding: str) -> None:
    """A runtime event without a digest is written with its computed digest."""
    log = EventLog([runtime_event("app-id", b"x")])
    assert log.stripped().events[0].digest == b""
    assert EventLog.parse(log.stripped().to_cel(encoding)) == log


def test_to_cel_of_unreadable_log_is_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown encoding, an ambiguous name and a log over the reader's limits are rejected."""
    for encoding in ("cbor2", "", None, ["tlv"]):
        with raises(UsageError, "wrong_value"):
            FULL.to_cel(untyped(encoding))
    colon = runtime_event("x", b"")._replace(name="a:b", digest=b"")
    with raises(UsageError, "wrong_value"):
        EventLog([colon]).to_cel("tlv")
    monkeypatch.setattr(cel, "MAX_RECORDS", len(FULL.events) - 1)
    with raises(UsageError, "too_many"):
        FULL.to_cel("tlv")
    monkeypatch.undo()
    monkeypatch.setattr(cel, "MAX_SIZE", len(FULL.to_cel("tlv")) - 1)
    with raises(UsageError, "too_large"):
        FULL.to_cel("tlv")


def test_cel_of_empty_log_is_empty_array() -> None:
    """An empty log is an empty array; in TLV it is zero bytes, which cannot be read."""
    assert EventLog().to_cel("tlv") == b""
    assert EventLog.parse(EventLog().to_cel("cbor")) == EventLog()
    assert EventLog.parse(EventLog().to_cel("json")) == EventLog()
    with raises(FormatError, "missing", offset=0):
        EventLog.from_cel(b"")


# -- record numbers --------------------------------------------------------------------------------


@every_case(
    ("numbers", "warning"),
    [
        ([(0, 1), (0, 2), (1, 1), (1, 2)], None),
        ([(0, 1), (1, 2), (2, 1), (3, 4)], None),  # numbered over the whole log
        ([(0, 1), (2, 1)], "index 1 have a gap: 2 instead of 1"),
        ([(1, 1), (2, 1)], "index 1 have a gap: 1 instead of 0"),
        ([(0, 1), (3, 1), (9, 1)], "index 1 have a gap: 3 instead of 1"),
    ],
)
def test_from_cel_gap_in_record_numbers_is_warning(
    numbers: list[tuple[int, int]], warning: str | None
) -> None:
    """Numbers run from 0 per register or for the whole log; the first gap is a warning."""
    log = EventLog.from_cel(b"".join(record(at, number(1, index)) for at, index in numbers))
    assert len(log.events) == len(numbers)
    assert len(log.warnings) == (warning is not None)
    assert warning is None or warning in log.warnings[0]
    assert log.trimmed().warnings == log.warnings


@pytest.mark.parametrize("second", [0, 1])
def test_from_cel_non_increasing_record_number_fails(second: int) -> None:
    """A repeated or smaller record number is rejected at its record."""
    with raises(FormatError, "recnum", offset=len(record())):
        EventLog.from_cel(record(1) + record(second))


# -- CEL management records ----------------------------------------------------------------------

VERSION = tlv(1, number(0, 1) + number(1, 1))


@every_case(
    "statements", [VERSION, tlv(2, b""), number(80, 9, 8), number(81, 2), VERSION + tlv(2, b"")]
)
def test_from_cel_management_records_are_not_replayed(statements: bytes) -> None:
    """Version, firmware end, timestamps and state transitions are counted but not replayed."""
    data = record(content=tlv(4, statements), digests=b"") + record(1)
    assert EventLog.parse(data) == EventLog.parse(EXAMPLE["tlv"])
    assert not EventLog.parse(data).warnings


def test_from_cel_management_with_digest_is_warning_or_unsupported() -> None:
    """A timestamp with a digest is a warning; a measured state transition is unsupported."""
    log = EventLog.from_cel(record(content=tlv(4, number(80, 1))) + record(1))
    assert log == EventLog.parse(EXAMPLE["tlv"])
    assert log.warnings == ("1 timestamps have digests, which are not replayed",)
    with raises(FormatError, "unsupported", offset=0):
        EventLog.from_cel(record(content=tlv(4, number(81, 1))))


def test_from_cel_no_action_in_index_0_is_dropped() -> None:
    """EV_NO_ACTION in index 0 is counted but dropped; an extended event there would be MRTD."""
    informative = tlv(5, number(0, NO_ACTION) + tlv(1, b"StartupLocality\0\0"))
    data = record(register=number(1, 0), content=informative) + record()
    assert EventLog.parse(data) == EventLog.parse(EXAMPLE["tlv"])
    with raises(FormatError, "index", offset=0):
        EventLog.from_cel(record(register=number(1, 0)))


@pytest.mark.parametrize("digests", [b"", tlv(0xB, bytes(32)), tlv(0xC, bytes(48))])
def test_from_cel_no_action_needs_no_digest(digests: bytes) -> None:
    """EV_NO_ACTION without a digest of the SHA-384 bank is read with a zero digest."""
    content = tlv(5, number(0, NO_ACTION) + tlv(1, b"remark"))
    log = EventLog.parse(record(digests=digests, content=content))
    assert log == EventLog([Event(1, NO_ACTION, bytes(48), "", b"remark")])
    assert log.replay() == EventLog().replay()


# -- records of other platforms ------------------------------------------------------------------


@every_case(
    ("log", "reason", "offset"),
    [
        (record(register=number(1, 5)), "index", 0),
        (record(register=number(1, 2**64 - 1, 8)), "index", 0),
        (record(register=number(2, 1)), "other_log", 6),
        (record(digests=tlv(0xB, bytes(32))), "missing", 0),
        (record(digests=b""), "missing", 0),
        (record(content=tlv(7, tlv(0, b"ima-ng") + tlv(1, b""))), "other_log", 70),
        (record(content=tlv(8, b"")), "other_log", 70),
        (record(content=tlv(9, b"")), "other_log", 70),
        (record(content=tlv(80, b"")), "other_log", 70),
        (record(content=tlv(6, b"")), "wrong_value", 70),
        (text(content_type="ima_template"), "other_log", 1),
        (text(content_type=11, recnum=None), "other_log", 1),
        (text(pcr=None, nv_index=1), "other_log", 1),
    ],
)
def test_from_cel_of_non_td_record_fails(log: bytes, reason: str, offset: int) -> None:
    """TPM registers and NV indexes, IMA and systemd records are rejected by name."""
    with raises(FormatError, reason, offset=offset):
        EventLog.parse(log)


def test_from_cel_register_type_108_is_read() -> None:
    """Google's register type 108 is the same index; banks other than SHA-384 are ignored."""
    data = record(register=number(108, 2), digests=tlv(0xB, bytes(32)) + tlv(0xC, DIGEST))
    assert EventLog.parse(data) == EventLog.parse(EXAMPLE["tlv"])


# -- runtime events --------------------------------------------------------------------------------


def runtime_record(preimage: bytes, digest: bytes = DIGEST, index: int = 4) -> bytes:
    """Return a log of one runtime event."""
    content = tlv(5, number(0, RUNTIME_EVENT_TYPE, 4) + tlv(1, preimage))
    return record(0, number(1, index), tlv(0xC, digest), content)


@every_case(
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
def test_from_cel_of_invalid_preimage_fails(preimage: bytes) -> None:
    """A runtime event whose data are not a preimage has no name and is rejected."""
    with raises(FormatError, "wrong_value", "encoding", offset=0):
        EventLog.from_cel(runtime_record(preimage))


def test_from_cel_wrong_runtime_digest_is_warning_or_failure() -> None:
    """A digest that is not the preimage's is a warning in version 1 and a failure in version 2."""
    for version in (1, 2):
        event = runtime_event("app-id", b"x", version)
        log = EventLog.from_cel(runtime_record(event.preimage()))
        assert log.events == (event,)
        if version == 1:
            assert len(log.warnings) == 1
        else:
            with raises(VerificationError, "event"):
                log.check_events()
        assert not EventLog.from_cel(runtime_record(event.preimage(), event.digest)).warnings


def test_from_cel_runtime_event_outside_rtmr3_fails_check() -> None:
    """A runtime event in RTMR0 is read, but fails `check_events`."""
    log = EventLog.from_cel(runtime_record(runtime_event("app-id", b"").preimage(), index=1))
    with raises(VerificationError, "event"):
        log.check_events()
