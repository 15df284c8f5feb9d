"""Attestation: evidence goes in and out byte for byte, and shows what is in it."""

import hashlib
import json
import pickle
from contextlib import nullcontext
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit.attestation import MAX_SIZE, Attestation, Encoding
from attestkit.attestation.wire import v1_msgpack
from attestkit.attestation.wire.evidence_parts import (
    Evidence,
    GcpTdx,
    NitroEnclave,
    RuntimeEvent,
    SevSnp,
    Tdx,
)
from attestkit.errors import FormatError, UsageError, VerificationError
from attestkit.event_log import Event, EventLog, WireEvent
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
    cuts,
    mutations,
    refused,
    use,
)
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
    """Return the digest as the vectors give it."""
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(name="fixture")
def _fixture() -> Attestation:
    return Attestation.from_bytes(FIXTURE)


@needs_shared
def test_the_fixture_shows_every_field(fixture: Attestation) -> None:
    """Quote, events, runtime events, report data and configuration are those of the vectors."""
    assert (sha256(FIXTURE), len(FIXTURE)) == (SIMULATOR["sha256"], SIMULATOR["length"])
    assert (fixture.platform, fixture.encoding) == ("dstack-tdx", "v0")
    quote = fixture.quote
    assert quote is not None
    raw = Tdx(*fixture.evidence.platform).quote
    assert raw == quote.raw + bytes(quote.padding)
    assert (sha256(raw), len(raw)) == (SIMULATOR["quote"]["sha256"], SIMULATOR["quote"]["length"])
    assert quote.version == SIMULATOR["quote"]["version"]
    for name, value in SIMULATOR["quote"]["td_report"].items():
        assert getattr(quote.body, name.replace("rt_mr", "rtmr")).hex() == value, name
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
def test_the_fixture_is_laid_out_as_listed() -> None:
    """The numbers at the listed offsets are those of the vectors."""
    assert (FIXTURE[0], FIXTURE[1]) == (SIMULATOR["version_byte"], SIMULATOR["platform_index"])
    offsets = SIMULATOR["offsets"]
    assert [row["at"] for row in offsets] == [0, 1, 2, 4, 572, 5014]
    for row in offsets:
        if "hex" in row:
            assert FIXTURE[row["at"] :].hex().startswith(row["hex"])
    assert FIXTURE[4:5014] == Tdx(*Attestation.from_bytes(FIXTURE).evidence.platform).quote
    assert FIXTURE[572:636] == bytes.fromhex(SIMULATOR["report_data"])


@needs_shared
def test_the_log_replays_to_the_quote(fixture: Attestation) -> None:
    """The capture is whole: log and quote agree in all four registers."""
    assert fixture.quote is not None
    fixture.event_log.check(fixture.quote)
    replayed = SIMULATOR["intermediate"]["replayed_rtmr3"]
    assert EventLog(fixture.runtime_events).replay()[3].hex() == replayed


@needs_shared
def test_the_get_quote_log_is_the_agents(fixture: Attestation) -> None:
    """The log that goes with GetQuote has the pinned text; unstripped it has the other."""
    expected = SIMULATOR["get_quote_event_log"]
    log = fixture.event_log
    assert sha256(log.trimmed().to_json().encode()) == expected["attestkit_sha256"]
    assert sha256(log.to_json().encode()) == expected["simulator_unstripped_sha256"]


@needs_shared
@pytest.mark.parametrize("encoding", ["v0", "v1", "cbor"])
def test_the_fixture_survives_every_encoding(fixture: Attestation, encoding: Encoding) -> None:
    """Evidence that was read keeps its encoding, and says the same in each."""
    encoded = fixture.to_bytes(encoding)
    again = Attestation.from_bytes(encoded)
    assert again == fixture
    assert again.encoding == encoding
    assert again.to_bytes() == encoded
    assert again.to_bytes("v0") == FIXTURE
    assert again.event_log == fixture.event_log


@needs_shared
def test_the_fixture_as_v1_is_pinned(fixture: Attestation) -> None:
    """V0 turned into V1 has the pinned bytes, with replaced report data as well."""
    encoded = fixture.to_bytes("v1")
    assert (len(encoded), sha256(encoded)) == (AS_V1["length"], AS_V1["sha256"])
    assert encoded.hex().startswith(AS_V1["first_bytes"])
    patched = AS_V1["patched"]
    report_data = bytes.fromhex(patched["report_data"])
    encoded = fixture.with_report_data(report_data).to_bytes("v1")
    assert (len(encoded), sha256(encoded)) == (patched["length"], patched["sha256"])


@needs_shared
@pytest.mark.parametrize("row", SIMULATOR.get("patched", []))
def test_replaced_report_data_is_pinned(fixture: Attestation, row: dict[str, Any]) -> None:
    """Field and quote both show the new report data, in the pinned bytes."""
    report_data = bytes.fromhex(row["report_data"])
    patched = fixture.with_report_data(report_data)
    assert patched.quote is not None
    assert patched.report_data == patched.quote.report_data == report_data
    encoded = patched.to_bytes()
    assert (len(encoded), sha256(encoded)) == (row["encoded_length"], row["encoded_sha256"])


@needs_shared
def test_the_stripped_form_is_pinned(fixture: Attestation) -> None:
    """Stripping keeps the listed events in the pinned bytes, and the digests follow from them."""
    expected = SIMULATOR["stripped_for_certificate"]
    stripped = fixture.stripped()
    encoded = stripped.to_bytes()
    assert (len(encoded), sha256(encoded)) == (
        expected["encoded_length"],
        expected["encoded_sha256"],
    )
    kept = Tdx(*stripped.evidence.platform).event_log
    assert len(kept) == expected["event_count"]
    assert [
        {
            "imr": event.imr,
            "event_type": event.event_type,
            "digest": event.digest.hex(),
            "event": event.event,
            "event_payload": event.event_payload.hex(),
        }
        for event in kept
    ] == expected["event_log"]
    again = Attestation.from_bytes(encoded)
    assert again.to_bytes() == encoded
    assert again.stripped() == again
    assert again.event_log.replay()[3] == fixture.event_log.replay()[3]
    assert again.app_info() == fixture.app_info()


@needs_shared
def test_stripping_keeps_the_encoding(fixture: Attestation) -> None:
    """V1 evidence is stripped into V1."""
    again = Attestation.from_bytes(fixture.to_bytes("v1")).stripped()
    assert again.encoding == "v1"
    assert again.to_bytes("v0") == fixture.stripped().to_bytes()


@needs_shared
@pytest.mark.parametrize("case", ENCODINGS, ids=lambda case: case["name"])
def test_vectors_turn_into_each_other(case: dict[str, Any]) -> None:
    """V0 and V1 of the same evidence are each other's projection; a pod has V1 only."""
    v1 = Attestation.from_bytes(bytes.fromhex(case["v1_msgpack"]))
    assert v1.to_bytes().hex() == case["v1_msgpack"]
    assert Attestation.from_bytes(v1.to_bytes("cbor")) == v1
    if case["v0_scale"] is None:
        with pytest.raises(UsageError, match="non-V1 runtime events"):
            v1.to_bytes("v0")
        return
    v0 = Attestation.from_bytes(bytes.fromhex(case["v0_scale"]))
    assert v0 == v1
    assert v0.to_bytes("v1").hex() == case["v1_msgpack"]
    assert v1.to_bytes("v0").hex() == case["v0_scale"]
    pod = Attestation.from_bytes(bytes.fromhex(case["v1_msgpack_dstack_pod"]))
    assert pod.to_bytes().hex() == case["v1_msgpack_dstack_pod"]
    assert pod != v1
    with pytest.raises(UsageError, match="dstack-pod"):
        pod.to_bytes("v0")


@needs_shared
@pytest.mark.parametrize("row", DECODE_ERRORS, ids=lambda row: row["error"])
def test_decode_errors_have_the_listed_texts(row: dict[str, str]) -> None:
    """Each malformed encoding is refused with exactly the listed text."""
    with pytest.raises(FormatError) as caught:
        Attestation.from_bytes(bytes.fromhex(row["hex"]))
    assert str(caught.value) == row["error"]
    assert str(pickle.loads(pickle.dumps(caught.value))) == row["error"]


@pytest.mark.parametrize("first", [1, 0x7F, 0x90, 0xD8, 0xDA, 0xDD, 0xFF])
def test_unknown_first_bytes_are_refused(first: int) -> None:
    """The first byte tells the encoding; no other value is one."""
    with pytest.raises(FormatError, match=r"^Unknown attestation wire format$"):
        Attestation.from_bytes(bytes([first]) + bytes(100))


def test_size_is_limited() -> None:
    """10 MiB are read, a byte more is not."""
    good = Attestation(Evidence(NitroEnclave(b""), STACK)).to_bytes()
    room = MAX_SIZE - len(good) - 3  # the length grows from 1 byte to 4
    largest = Attestation(Evidence(NitroEnclave(bytes(room)), STACK)).to_bytes()
    assert len(largest) == MAX_SIZE
    assert Attestation.from_bytes(largest).platform == "dstack-nitro-enclave"
    with pytest.raises(FormatError, match=r"^attestation bytes too large: 10485761 > 10485760$"):
        Attestation.from_bytes(largest + b"\0")


def test_evidence_that_nobody_would_read_is_not_written() -> None:
    """More than 10 MiB, or more than 65,536 events, are refused when writing already."""
    large = Evidence(NitroEnclave(bytes(MAX_SIZE)), STACK)
    long = Evidence(Tdx(b"", EVENTS * 32_769), STACK)
    for evidence in (large, long):
        for encoding in ("v0", "cbor"):
            with pytest.raises(UsageError, match="evidence is over"):
                Attestation(evidence).to_bytes(encoding)
    most = Attestation(Evidence(Tdx(b"", EVENTS * 32_768), STACK))
    assert Attestation.from_bytes(most.to_bytes()) == most


@pytest.mark.parametrize("value", [bytearray(FIXTURE), memoryview(FIXTURE), "00", None])
def test_only_bytes_get_in(value: Any) -> None:
    """Anything but bytes is the caller's mistake."""
    with pytest.raises(UsageError):
        Attestation.from_bytes(value)


@pytest.mark.parametrize(("evidence", "name"), list(zip(KINDS, NAMES, strict=True)))
def test_platforms_have_names(evidence: Evidence, name: str) -> None:
    """The name tells the platform; what a platform does not have is None or empty."""
    attestation = Attestation(evidence)
    assert attestation.platform == name
    if "tdx" not in name:
        assert attestation.quote is None
        assert attestation.event_log == EventLog(())
    if "snp" not in name:
        assert attestation.snp_report is None
    assert [event.name for event in attestation.runtime_events] == ["app-id"]


def test_equality_tells_platforms_apart() -> None:
    """Evidence of two platforms is not equal although its fields are."""
    enclave, tpm = Attestation(KINDS[2]), Attestation(KINDS[4])
    same = Attestation(Evidence(NitroEnclave(b"\x84" * 70_000), STACK))
    assert same != tpm
    assert same != enclave
    assert len({same, tpm, enclave, Attestation(KINDS[2], "v1")}) == 3
    assert enclave != "evidence"


@pytest.mark.parametrize("evidence", [*KINDS, V2, POD])
def test_it_pickles(evidence: Evidence) -> None:
    """Evidence goes through pickle unchanged, with its encoding."""
    encoded = Attestation(evidence).to_bytes("v1")
    attestation = Attestation.from_bytes(encoded)
    again = pickle.loads(pickle.dumps(attestation))
    assert again == attestation
    assert again.to_bytes() == encoded


@needs_shared
def test_evidence_is_made_from_quote_and_log(fixture: Attestation) -> None:
    """What a TD has makes the evidence that the capture is, but for the quote's padding."""
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
def test_a_version_2_event_makes_it_v1(fixture: Attestation) -> None:
    """With one such event in the log, evidence is written as V1, with the event's preimage."""
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
    with pytest.raises(UsageError, match="non-V1"):
        made.to_bytes("v0")
    # Stripping keeps digest and preimage, which verifiers compare.
    last = Tdx(*again.stripped().evidence.platform).event_log[-1]
    assert (last.digest, last.preimage) == (event.digest, event.preimage().hex())


@needs_shared
def test_report_data_of_other_sizes_is_refused(fixture: Attestation) -> None:
    """Report data has 64 bytes, when evidence is made and when it is replaced."""
    assert fixture.quote is not None
    other = bytes(range(64))
    made = Attestation.for_tdx(fixture.quote, fixture.event_log, report_data=other)
    assert made.report_data == other
    with pytest.raises(UsageError, match="64 bytes"):
        Attestation.for_tdx(fixture.quote, fixture.event_log, report_data=bytes(63))
    with pytest.raises(UsageError, match="64 bytes"):
        fixture.with_report_data(bytes(65))


@pytest.mark.parametrize("encoding", ["v2", "V0", "msgpack"])
def test_unknown_encodings_are_refused(encoding: Any) -> None:
    """There are three encodings."""
    with pytest.raises(UsageError, match="unknown encoding"):
        Attestation(KINDS[0]).to_bytes(encoding)


@pytest.mark.parametrize(
    "event",
    [
        WireEvent(4, 10, bytes(48), "", b""),
        WireEvent(0, 10, bytes(47), "", b""),
        WireEvent(0, 10, b"", "", b""),
        WireEvent(3, 0x08000001, bytes(3), "x", b""),
    ],
)
def test_events_that_cannot_be_are_refused_when_used(event: WireEvent) -> None:
    """Register and digest are checked when the log is asked for; the bytes survive all the same."""
    encoded = Attestation(Evidence(Tdx(b"", (event,)), STACK)).to_bytes()
    attestation = Attestation.from_bytes(encoded)
    assert attestation.to_bytes() == encoded
    with pytest.raises(FormatError):
        _ = attestation.event_log
    with pytest.raises(FormatError):
        _ = attestation.quote


def test_wrong_digests_of_runtime_events_survive_and_count_for_nothing() -> None:
    """The log shows the digest that name and payload give; the wire keeps the one that came."""
    event = WireEvent(3, 0x08000001, bytes(48), "name", b"payload")
    encoded = Attestation(Evidence(Tdx(b"", (event,)), STACK)).to_bytes()
    attestation = Attestation.from_bytes(encoded)
    assert attestation.event_log.events == (runtime_event("name", b"payload"),)
    assert attestation.to_bytes() == encoded


def test_version_2_events_are_held_to_their_preimages() -> None:
    """The log of evidence knows of preimages that came along: missing or wrong ones are refused."""
    (event,) = Tdx(*V2.platform).event_log
    for wrong in (event._replace(preimage=None), event._replace(preimage="7b7d")):
        evidence = Attestation(Evidence(Tdx(b"", (wrong,)), STACK))
        encoded = evidence.to_bytes()
        with pytest.raises(VerificationError, match="V2 runtime event 0"):
            Attestation.from_bytes(encoded).event_log.check_events()
    Attestation(Evidence(Tdx(b"", (event._replace(digest=b""),)), STACK)).event_log.check_events()


@needs_shared
@pytest.mark.parametrize("name", FILES)
def test_captures_of_other_platforms_survive(name: str) -> None:
    """Nitro and SNP captures are written again byte for byte, and go through V1 and CBOR."""
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


def test_report_data_is_replaced_where_it_stands() -> None:
    """Version 5 quotes have it 6 bytes later; signed documents and short reports are left alone."""
    new = bytes(range(64))
    v5 = Tdx(b"\5\0" + bytes(700), ()).with_report_data(new)
    assert v5.quote == b"\5\0" + bytes(572) + new + bytes(64)
    v4 = GcpTdx(b"\4\0" + bytes(700), (), TPM_QUOTE).with_report_data(new)
    assert v4.quote == b"\4\0" + bytes(566) + new + bytes(70)
    for evidence in (KINDS[2], KINDS[4]):
        assert evidence.platform.with_report_data(new) is evidence.platform
    for short in (KINDS[0].platform, SevSnp(bytes(0x8F), (), "")):
        with pytest.raises(UsageError, match="too short"):
            short.with_report_data(new)


def test_gcp_certificates_carry_rtmr3_alone() -> None:
    """On GCP the events of the ACPI tables are stripped as well; other events of RTMR3 stay."""
    other = WireEvent(3, 6, b"\7" * 48, "", b"payload")
    kept = GcpTdx(b"", (*EVENTS, other), TPM_QUOTE).stripped().event_log
    assert [event.event for event in kept] == ["app-id", ""]
    assert kept[0].digest == b""
    assert kept[1] == other._replace(event_payload=b"")


@needs_shared
@pytest.mark.parametrize("row", load("app_key_attestation.json").get("cases", []))
def test_evidence_for_app_keys_is_bound_to_them(fixture: Attestation, row: dict[str, Any]) -> None:
    """Evidence over an app key's report data carries exactly the listed 64 bytes."""
    algorithm = row["request"]["algorithm"]
    report_data = ReportData.for_app_key(algorithm, bytes.fromhex(row["public_key"]))
    bound = Attestation.from_bytes(fixture.with_report_data(report_data).to_bytes())
    assert bound.report_data.hex() == row["report_data"]
    assert bound.report_data.rstrip(b"\0").decode() == row["report_data_text"]


@needs_shared
def test_cuts_of_every_encoding_are_refused(fixture: Attestation) -> None:
    """No prefix of the capture in any encoding is evidence."""
    for encoding in ENCODING_NAMES:
        for cut in cuts(fixture.to_bytes(encoding), every=101):
            with pytest.raises(FormatError):
                Attestation.from_bytes(cut)


@settings(deadline=None)  # machines are busy
@given(st.binary(max_size=100))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    """Whatever comes, only errors of ours come out."""
    refused(Attestation.from_bytes, data)


@needs_shared
@settings(max_examples=200, deadline=None)
@given(
    mutations(
        *([FIXTURE] if FIXTURE else [b"\0"]),
        *[data(f"dstack/dstack-attest/{name}") or b"\0" for name in FILES],
        *[bytes.fromhex(case["v1_msgpack"]) for case in ENCODINGS],
    )
)
def test_mutated_evidence_raises_only_our_errors(data: bytes) -> None:
    """Real evidence with a few bytes changed is read, used and written, or refused."""
    refused(use, data)


def test_events_are_typed() -> None:
    """Runtime events come as the Event of the event log."""
    (event,) = Attestation(KINDS[2]).runtime_events
    assert event == Event(3, 0x08000001, event.digest, "app-id", b"\xde\xad")


@pytest.mark.parametrize("version", [1, 2])
def test_events_beside_the_log_are_held_to_the_same_names(version: int) -> None:
    """A colon is refused in a version 1 name, also where no log measures the events."""
    stack = STACK._replace(runtime_events=(RuntimeEvent("a:b", b"c", version),))
    found = Attestation(Evidence(NitroEnclave(b""), stack)).runtime_events
    refusal = pytest.raises(VerificationError, match="colon") if version == 1 else nullcontext()
    with refusal:
        check_runtime_events(found)
