"""Attestation reads and writes evidence byte for byte, and returns its fields."""

import hashlib
import json
import pickle
from contextlib import nullcontext
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit.attestation import MAX_SIZE, Attestation, Encoding
from attestkit.attestation.wire import evidence_parts as parts
from attestkit.attestation.wire import v1_msgpack
from attestkit.attestation.wire.evidence_parts import Evidence, Tdx, stripped, with_report_data
from attestkit.errors import FormatError, UsageError, VerificationError
from attestkit.event_log import EventLog, WireEvent
from attestkit.event_log.runtime_events import check_runtime_events, runtime_event
from attestkit.report_data import ReportData
from tests.attestation.samples import (
    ENCODINGS,
    EVENTS,
    FIXTURE,
    KINDS,
    POD,
    STACK,
    TPM_QUOTE,
    V2,
    is_rejected,
)
from tests.raising import raises
from tests.runner.cases import every_case
from tests.vectors import data, load, needs_shared

SIMULATOR: dict[str, Any] = load("attestation_v0_simulator.json")
AS_V1: dict[str, Any] = load("attestation_encodings.json").get("simulator_fixture_as_v1", {})
DECODE_ERRORS: list[dict[str, str]] = load("attestation_encodings.json").get("decode_errors", [])
NAMES = [
    "dstack-tdx",
    "dstack-gcp-tdx",
    "dstack-nitro-enclave",
    "dstack-amd-sev-snp",
    "dstack-aws-nitro-tpm",
]
ENCODING_NAMES: tuple[Encoding, ...] = ("v1", "cbor")
FILES = ["nitro_attestation.bin", "nitro_attestation_dbg.bin", "sev_snp_attestation.bin"]


def sha256(data: bytes) -> str:
    """Return the digest in the notation of the vectors."""
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(name="fixture")
def _fixture() -> Attestation:
    return Attestation.from_bytes(FIXTURE)


@needs_shared
def test_attestation_fields_match_vectors(fixture: Attestation) -> None:
    """Quote, events, runtime events, report data and configuration match."""
    assert (sha256(FIXTURE), len(FIXTURE)) == (SIMULATOR["sha256"], SIMULATOR["length"])
    assert (fixture.platform, fixture.encoding) == ("dstack-tdx", "v0")
    quote = fixture.quote
    assert quote is not None
    raw = Tdx(*fixture.evidence.platform).quote
    assert raw == quote.raw + bytes(quote.padding)
    assert (sha256(raw), len(raw)) == (SIMULATOR["quote"]["sha256"], SIMULATOR["quote"]["length"])
    assert quote.version == SIMULATOR["quote"]["version"]
    for name, value in SIMULATOR["quote"]["td_report"].items():
        assert (
            getattr(quote.body, name.replace("rt_mr", "rtmr").replace("mr_td", "mrtd")).hex()
            == value
        ), name
    assert [
        {
            "imr": event.register,
            "event_type": event.event_type,
            "digest": event.digest.hex(),
            "event": event.name,
            "event_payload": event.payload.hex(),
        }
        for event in fixture.event_log.events
    ] == SIMULATOR["event_log"]
    assert [
        {"event": event.name, "payload": event.payload.hex()} for event in fixture.runtime_events
    ] == SIMULATOR["runtime_events"]
    assert fixture.report_data.hex() == SIMULATOR["report_data"]
    assert fixture.config == SIMULATOR["config"]
    assert json.loads(fixture.config)["vm_config"] == SIMULATOR["nested_vm_config"]


@needs_shared
def test_fixture_log_replays_to_quote(fixture: Attestation) -> None:
    """Log and quote agree in all four registers."""
    assert fixture.quote is not None
    fixture.event_log.check(fixture.quote)
    replayed = SIMULATOR["intermediate"]["replayed_rtmr3"]
    assert EventLog(fixture.runtime_events).replay()[3].hex() == replayed


@needs_shared
def test_get_quote_log_matches_agent_text(fixture: Attestation) -> None:
    """The trimmed log for GetQuote and the complete log have the agent's text."""
    expected = SIMULATOR["get_quote_event_log"]
    log = fixture.event_log
    assert sha256(log.trimmed().to_json().encode()) == expected["attestkit_sha256"]
    assert sha256(log.to_json().encode()) == expected["simulator_unstripped_sha256"]


@needs_shared
@pytest.mark.parametrize("encoding", ["v0", "v1", "cbor"])
def test_attestation_round_trips_in_every_encoding(
    fixture: Attestation, encoding: Encoding
) -> None:
    """Evidence keeps its encoding, and is equal in each."""
    encoded = fixture.to_bytes(encoding)
    again = Attestation.from_bytes(encoded)
    assert again == fixture
    assert again.encoding == encoding
    assert again.to_bytes() == encoded
    assert again.to_bytes("v0") == FIXTURE
    assert again.event_log == fixture.event_log


@needs_shared
def test_to_v1_matches_vector(fixture: Attestation) -> None:
    """V0 converted to V1 has the expected bytes, also with replaced report data."""
    encoded = fixture.to_bytes("v1")
    assert (len(encoded), sha256(encoded)) == (AS_V1["length"], AS_V1["sha256"])
    assert encoded.hex().startswith(AS_V1["first_bytes"])
    patched = AS_V1["patched"]
    report_data = bytes.fromhex(patched["report_data"])
    encoded = fixture.with_report_data(report_data).to_bytes("v1")
    assert (len(encoded), sha256(encoded)) == (patched["length"], patched["sha256"])


@needs_shared
@pytest.mark.parametrize("row", SIMULATOR.get("patched", []))
def test_with_report_data_matches_vectors(fixture: Attestation, row: dict[str, Any]) -> None:
    """The field and the quote contain the new report data, in the expected bytes."""
    report_data = bytes.fromhex(row["report_data"])
    patched = fixture.with_report_data(report_data)
    assert patched.quote is not None
    assert patched.report_data == patched.quote.report_data == report_data
    encoded = patched.to_bytes()
    assert (len(encoded), sha256(encoded)) == (row["encoded_length"], row["encoded_sha256"])


@needs_shared
def test_stripped_matches_vector(fixture: Attestation) -> None:
    """Stripping keeps the listed events in the expected bytes; digests can be recomputed."""
    expected = SIMULATOR["stripped_for_certificate"]
    stripped = fixture.stripped()
    encoded = stripped.to_bytes()
    assert (len(encoded), sha256(encoded)) == (
        expected["encoded_length"],
        expected["encoded_sha256"],
    )
    assert len(Tdx(*stripped.evidence.platform).event_log) == expected["event_count"]
    again = Attestation.from_bytes(encoded)
    assert again.to_bytes() == encoded
    assert again.stripped() == again
    assert again.event_log.replay()[3] == fixture.event_log.replay()[3]
    assert again.app_info == fixture.app_info


@needs_shared
@pytest.mark.parametrize("case", ENCODINGS, ids=lambda case: case["name"])
def test_v0_and_v1_vectors_convert_to_each_other(case: dict[str, Any]) -> None:
    """V0 and V1 of the same evidence convert to each other; a pod exists in V1 only."""
    v1 = Attestation.from_bytes(bytes.fromhex(case["v1_msgpack"]))
    assert v1.to_bytes().hex() == case["v1_msgpack"]
    assert Attestation.from_bytes(v1.to_bytes("cbor")) == v1
    if case["v0_scale"] is None:
        with raises(UsageError, "not_applicable"):
            v1.to_bytes("v0")
        return
    v0 = Attestation.from_bytes(bytes.fromhex(case["v0_scale"]))
    assert v0 == v1
    assert v0.to_bytes("v1").hex() == case["v1_msgpack"]
    assert v1.to_bytes("v0").hex() == case["v0_scale"]
    pod = Attestation.from_bytes(bytes.fromhex(case["v1_msgpack_dstack_pod"]))
    assert pod.to_bytes().hex() == case["v1_msgpack_dstack_pod"]
    assert pod != v1
    with raises(UsageError, "not_applicable"):
        pod.to_bytes("v0")


@needs_shared
@pytest.mark.parametrize("row", DECODE_ERRORS, ids=lambda row: row["error"])
def test_decode_error_matches_upstream_text(row: dict[str, str]) -> None:
    """Each malformed encoding is rejected with the upstream text."""
    with pytest.raises(FormatError) as caught:
        Attestation.from_bytes(bytes.fromhex(row["hex"]))
    assert str(caught.value) == row["error"]
    assert str(pickle.loads(pickle.dumps(caught.value))) == row["error"]


@every_case("first", [1, 0x7F, 0x90, 0xD8, 0xDA, 0xDD, 0xFF])
def test_from_bytes_of_unknown_first_byte_fails(first: int) -> None:
    """The first byte selects the encoding; other values are rejected."""
    with raises(FormatError, "unrecognized"):
        Attestation.from_bytes(bytes([first]) + bytes(100))


def test_from_bytes_over_10_mib_fails() -> None:
    """10 MiB are read, one byte more is not."""
    good = Attestation(Evidence(parts.NitroEnclave(b""), STACK)).to_bytes()
    room = MAX_SIZE - len(good) - 3  # the length grows from 1 byte to 4
    largest = Attestation(Evidence(parts.NitroEnclave(bytes(room)), STACK)).to_bytes()
    assert len(largest) == MAX_SIZE
    assert Attestation.from_bytes(largest).platform == "dstack-nitro-enclave"
    with raises(FormatError, "too_large", text="attestation bytes too large: 10485761 > 10485760"):
        Attestation.from_bytes(largest + b"\0")


def test_to_bytes_over_reader_limits_is_usage_error() -> None:
    """Evidence over 10 MiB or 65,536 events is rejected when it is written."""
    large = Evidence(parts.NitroEnclave(bytes(MAX_SIZE)), STACK)
    long = Evidence(Tdx(b"", EVENTS * 32_769), STACK)
    for evidence, reason in ((large, "too_large"), (long, "too_many")):
        for encoding in ("v0", "cbor"):
            with raises(UsageError, reason):
                Attestation(evidence).to_bytes(encoding)
    most = Attestation(Evidence(Tdx(b"", EVENTS * 32_768), STACK))
    assert Attestation.from_bytes(most.to_bytes()) == most


@every_case("value", [bytearray(FIXTURE), memoryview(FIXTURE), "00", None])
def test_from_bytes_of_other_type_is_usage_error(value: Any) -> None:
    """Evidence is bytes."""
    with pytest.raises(UsageError):
        Attestation.from_bytes(value)


@every_case(("evidence", "name"), list(zip(KINDS, NAMES, strict=True)))
def test_platform_properties_of_each_kind(evidence: Evidence, name: str) -> None:
    """The name identifies the platform; absent fields are None or empty."""
    attestation = Attestation(evidence)
    assert attestation.platform == name
    if "tdx" not in name:
        assert attestation.quote is None
        assert attestation.event_log == EventLog(())
    if "snp" not in name:
        assert attestation.snp_report is None
    assert [event.name for event in attestation.runtime_events] == ["app-id"]


def test_evidence_of_different_platforms_is_not_equal() -> None:
    """Evidence of two platforms differs even with equal fields."""
    enclave, tpm = Attestation(KINDS[2]), Attestation(KINDS[4])
    same = Attestation(Evidence(parts.NitroEnclave(b"\x84" * 70_000), STACK))
    assert same != tpm
    assert same != enclave
    assert len({same, tpm, enclave, Attestation(KINDS[2], "v1")}) == 3
    assert enclave != "evidence"


@every_case("evidence", [*KINDS, V2, POD])
def test_attestation_pickles(evidence: Evidence) -> None:
    """Pickling keeps evidence and encoding."""
    encoded = Attestation(evidence).to_bytes("v1")
    attestation = Attestation.from_bytes(encoded)
    again = pickle.loads(pickle.dumps(attestation))
    assert again == attestation
    assert again.to_bytes() == encoded


@needs_shared
def test_from_quote_of_captured_td_equals_capture(fixture: Attestation) -> None:
    """A TD's quote and log give the captured evidence, except for the quote's padding."""
    assert fixture.quote is not None
    platform, stack = fixture.evidence
    unpadded = Evidence(Tdx(*platform)._replace(quote=fixture.quote.raw), stack)
    made = Attestation.for_tdx(fixture.quote, fixture.event_log, fixture.config)
    assert made.encoding is None
    assert made.to_bytes() == Attestation(unpadded).to_bytes("v0")
    assert made.event_log is fixture.event_log
    assert made.quote is fixture.quote
    assert "new" in repr(made)
    assert "33 events" in repr(fixture)


@needs_shared
def test_from_quote_with_version_2_event_is_v1(fixture: Attestation) -> None:
    """Evidence with a version 2 event is written as V1, with the event's preimage."""
    assert fixture.quote is not None
    event = runtime_event("a:b", b"c", 2)
    log = fixture.event_log.with_runtime([event])
    made = Attestation.for_tdx(fixture.quote, log)
    encoded = made.to_bytes()
    assert encoded[0] in v1_msgpack.FIRST_BYTES
    again = Attestation.from_bytes(encoded)
    again.event_log.check_events()
    assert again.event_log == log
    assert again.runtime_events[-1] == event
    with raises(UsageError, "not_applicable"):
        made.to_bytes("v0")
    # Stripping keeps digest and preimage, which verifiers compare.
    last = Tdx(*again.stripped().evidence.platform).event_log[-1]
    assert (last.digest, last.preimage) == (event.digest, event.preimage().hex())


@needs_shared
def test_report_data_of_other_size_is_usage_error(fixture: Attestation) -> None:
    """Report data has 64 bytes in new and in changed evidence."""
    assert fixture.quote is not None
    other = bytes(range(64))
    made = Attestation.for_tdx(fixture.quote, fixture.event_log, report_data=other)
    assert made.report_data == other
    with raises(UsageError, "wrong_size"):
        Attestation.for_tdx(fixture.quote, fixture.event_log, report_data=bytes(63))
    with raises(UsageError, "wrong_size"):
        fixture.with_report_data(bytes(65))


@every_case(
    "event",
    [
        WireEvent(4, 10, bytes(48), "", b""),
        WireEvent(0, 10, bytes(47), "", b""),
        WireEvent(0, 10, b"", "", b""),
        WireEvent(3, 0x08000001, bytes(3), "x", b""),
    ],
)
def test_event_log_with_invalid_event_fails_on_access(event: WireEvent) -> None:
    """Register and digest are checked on access to the log; the bytes are kept."""
    encoded = Attestation(Evidence(Tdx(b"", (event,)), STACK)).to_bytes()
    attestation = Attestation.from_bytes(encoded)
    assert attestation.to_bytes() == encoded
    with pytest.raises(FormatError):
        _ = attestation.event_log
    with pytest.raises(FormatError):
        _ = attestation.quote


def test_event_log_recomputes_runtime_digests() -> None:
    """The log has the computed digest; the encoding keeps the received one."""
    event = WireEvent(3, 0x08000001, bytes(48), "name", b"payload")
    encoded = Attestation(Evidence(Tdx(b"", (event,)), STACK)).to_bytes()
    attestation = Attestation.from_bytes(encoded)
    assert attestation.event_log.events == (runtime_event("name", b"payload"),)
    assert attestation.to_bytes() == encoded


def test_check_events_of_evidence_with_wrong_preimage_fails() -> None:
    """A missing or wrong preimage in the evidence fails the check."""
    (event,) = Tdx(*V2.platform).event_log
    for wrong in (event._replace(preimage=None), event._replace(preimage="7b7d")):
        evidence = Attestation(Evidence(Tdx(b"", (wrong,)), STACK))
        encoded = evidence.to_bytes()
        with pytest.raises(VerificationError) as caught:
            Attestation.from_bytes(encoded).event_log.check_events()
        assert str(caught.value).startswith("V2 runtime event 0 ")
    Attestation(Evidence(Tdx(b"", (event._replace(digest=b""),)), STACK)).event_log.check_events()


@needs_shared
@pytest.mark.parametrize("name", FILES)
def test_captures_of_other_platforms_round_trip(name: str) -> None:
    """Nitro and SNP captures are rewritten byte for byte, and convert to V1 and CBOR."""
    raw = data(f"dstack/dstack-attest/{name}")
    attestation = Attestation.from_bytes(raw)
    assert attestation.to_bytes() == raw
    assert attestation.stripped().to_bytes() == raw
    for encoding in ENCODING_NAMES:
        assert Attestation.from_bytes(attestation.to_bytes(encoding)).to_bytes("v0") == raw
    report = attestation.snp_report
    assert (report is not None) == name.startswith("sev")
    if report is not None:
        assert report.report_data == attestation.report_data
        patched = attestation.with_report_data(bytes(64)).snp_report
        assert patched is not None
        assert patched.report_data == bytes(64)


def test_with_report_data_honours_quote_version() -> None:
    """Version 5 quotes have it 6 bytes later; signed documents and short reports are unchanged."""
    new = bytes(range(64))
    v5 = with_report_data(Tdx(b"\5\0" + bytes(700), ()), new)
    assert v5 == Tdx(b"\5\0" + bytes(572) + new + bytes(64), ())
    v4 = with_report_data(parts.GcpTdx(b"\4\0" + bytes(700), (), TPM_QUOTE), new)
    assert v4 == parts.GcpTdx(b"\4\0" + bytes(566) + new + bytes(70), (), TPM_QUOTE)
    for evidence in (KINDS[2], KINDS[4]):
        assert with_report_data(evidence.platform, new) is evidence.platform
    for short in (KINDS[0].platform, parts.SevSnp(bytes(0x8F), (), "")):
        with raises(UsageError, "wrong_size"):
            with_report_data(short, new)


def test_stripped_of_gcp_keeps_rtmr3_only() -> None:
    """On GCP the events of the ACPI tables are stripped too; events of RTMR3 remain."""
    other = WireEvent(3, 6, b"\7" * 48, "", b"payload")
    platform = stripped(parts.GcpTdx(b"", (*EVENTS, other), TPM_QUOTE))
    assert isinstance(platform, parts.GcpTdx)
    events = platform.event_log
    assert [event.event for event in events] == ["app-id", ""]
    assert events[0].digest == b""
    assert events[1] == other._replace(event_payload=b"")


@needs_shared
@pytest.mark.parametrize("row", load("app_key_attestation.json").get("cases", []))
def test_evidence_for_app_key_has_its_report_data(
    fixture: Attestation, row: dict[str, Any]
) -> None:
    """Evidence for an app key has exactly the expected 64 bytes of report data."""
    algorithm = row["request"]["algorithm"]
    report_data = ReportData.for_app_key(algorithm, bytes.fromhex(row["public_key"]))
    bound = Attestation.from_bytes(fixture.with_report_data(report_data).to_bytes())
    assert bound.report_data.hex() == row["report_data"]
    assert bound.report_data.rstrip(b"\0").decode() == row["report_data_text"]


@settings(deadline=None)  # shared machines are slow
@given(st.binary(max_size=100))
def test_from_bytes_of_arbitrary_bytes_raises_only_attestkit_errors(data: bytes) -> None:
    """Arbitrary bytes are read or raise an AttestKitError."""
    is_rejected(Attestation.from_bytes, data)


@pytest.mark.parametrize("version", [1, 2])
def test_runtime_events_without_log_check_names(version: int) -> None:
    """A colon in a version 1 name is rejected even if no log measures the events."""
    stack = STACK._replace(runtime_events=(parts.RuntimeEvent("a:b", b"c", version),))
    found = Attestation(Evidence(parts.NitroEnclave(b""), stack)).runtime_events
    expectation = pytest.raises(VerificationError) if version == 1 else nullcontext()
    with expectation:
        check_runtime_events(found)
