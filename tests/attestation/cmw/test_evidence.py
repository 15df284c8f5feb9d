"""Evidence as a CMW: every platform in every encoding, rejected input, and enclosed collateral."""

import copy
import json
import re
from pathlib import Path
from typing import Any, Final, get_args

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.attestation import MAX_SIZE, Attestation, Encoding
from attestkit.attestation.cmw import evidence as cmw_evidence
from attestkit.attestation.cmw.evidence import COLLECTION_TYPE, MEDIA_TYPES, CmwEncoding
from attestkit.attestation.wire import evidence_parts as wire
from attestkit.attestation.wire import v1_cbor, v1_document
from attestkit.attestation.wire.evidence_parts import Evidence, Stack, Tdx
from attestkit.errors import CollateralError, FormatError, UsageError
from attestkit.event_log import WireEvent
from attestkit.verifier import Verifier
from tests.attestation.samples import (
    DSTACK_ENCODINGS,
    EVENTS,
    KINDS,
    POD,
    STACK,
    V2,
    is_rejected,
)
from tests.raising import raises, repeated_subjects
from tests.runner.cases import every_case
from tests.untyped import untyped
from tests.verifier.platforms import intel

DATA: Final = Path(__file__).parents[2] / "data/cmw"
FORMS: Final[tuple[CmwEncoding, ...]] = get_args(CmwEncoding)
SMALL: Final = [*KINDS[:-1], V2, POD]

_U32: Final = st.integers(0, 2**32 - 1)
_SHORT: Final = st.binary(max_size=20)
_TEXT: Final = st.text(max_size=8)
_EVENTS: Final = st.lists(
    st.builds(
        WireEvent,
        *(_U32, _U32, _SHORT, _TEXT, _SHORT),
        st.sampled_from([1, 2]),
        st.none() | _TEXT,
    ),
    max_size=3,
).map(tuple)
TPM_QUOTES: Final = st.builds(
    wire.TpmQuote,
    *(_SHORT, _SHORT),
    st.lists(st.builds(wire.PcrValue, _U32, _TEXT, _SHORT), max_size=2).map(tuple),
    _SHORT,
    st.sampled_from(["dstack", "gcp"]),
    st.lists(st.builds(wire.TpmEventDigest, _U32, _SHORT), max_size=2).map(tuple),
)
_PLATFORMS: Final[st.SearchStrategy[wire.Platform]] = st.one_of(
    st.builds(Tdx, _SHORT, _EVENTS),
    st.builds(wire.GcpTdx, _SHORT, _EVENTS, TPM_QUOTES),
    st.builds(wire.NitroEnclave, _SHORT),
    st.builds(wire.SevSnp, _SHORT, st.lists(_SHORT, max_size=3).map(tuple), _TEXT),
    st.builds(wire.NitroTpm, _SHORT),
)
_RUNTIME: Final = st.builds(wire.RuntimeEvent, _TEXT, _SHORT, st.sampled_from([1, 2]))
PARCELS: Final = st.builds(
    Evidence,
    _PLATFORMS,
    st.builds(Stack, _SHORT, st.lists(_RUNTIME, max_size=3).map(tuple), _TEXT, st.none() | _TEXT),
)


@given(PARCELS, st.sampled_from(FORMS))
def test_cmw_of_every_platform_round_trips(evidence: Evidence, form: CmwEncoding) -> None:
    """Evidence of every platform round-trips in every encoding, byte for byte."""
    attestation = Attestation(evidence)
    written = attestation.to_bytes(form)
    again = Attestation.from_bytes(written)
    assert again == attestation
    assert again.encoding == form
    assert again.to_bytes() == written


@every_case("evidence", SMALL)
def test_cmw_parts_are_readable_by_other_decoders(evidence: Evidence) -> None:
    """cbor2 and json find one record per part, with the documented media type."""
    parts = cbor2.loads(Attestation(evidence).to_bytes("cbor"))
    tree = v1_document.build_tree(evidence)
    assert parts.pop("__cmwc_t") == COLLECTION_TYPE
    assert parts.keys() == tree["platform"]["data"].keys() | tree["stack"]["data"].keys()
    for label, (media_type, value, ind) in parts.items():
        assert (media_type, ind) == (MEDIA_TYPES[label], 4)
        assert isinstance(value, bytes)
    if isinstance(evidence.platform, (Tdx, wire.GcpTdx)):
        assert parts["quote"][1] == evidence.platform.quote
        log = json.loads(parts["event_log"][1])
        assert [event["event"] for event in log] == [e.event for e in evidence.platform.event_log]
    in_json = json.loads(Attestation(evidence).to_bytes("json"))
    assert {label: record[0] for label, record in in_json.items() if label in MEDIA_TYPES} == {
        label: MEDIA_TYPES[label] for label in parts
    }
    tagged = cbor2.loads(Attestation(evidence).to_bytes("cbor-tag"))
    assert tagged == cbor2.CBORTag(0x6374013D, v1_cbor.encode_evidence(evidence))
    record = cbor2.loads(Attestation(evidence).to_bytes("cbor-record"))
    assert record == [
        "application/vnd.attestkit.evidence+cbor",
        v1_cbor.encode_evidence(evidence),
        4,
    ]


@every_case("evidence", SMALL)
def test_from_bytes_of_v1_cbor_document_round_trips(evidence: Evidence) -> None:
    """A V1 document behind tag 55799 is read as v1-cbor, and rewritten identically."""
    old = v1_cbor.encode_evidence(evidence)
    assert old.startswith(b"\xd9\xd9\xf7")
    assert Attestation.from_bytes(old).evidence == evidence
    assert Attestation.from_bytes(old).encoding == "v1-cbor"
    assert Attestation.from_bytes(old).to_bytes() == old


@every_case("path", sorted(DATA.glob("*.cmw")), ids=lambda path: path.name)
def test_cmw_sample_files_round_trip(path: Path) -> None:
    """Each sample file is read and rewritten identically."""
    found = Attestation.from_bytes(path.read_bytes())
    assert found.encoding == path.name.split(".")[1]
    assert found.evidence == {"tdx": KINDS[0], "snp": KINDS[3]}[path.name.split(".")[0]]
    assert found.to_bytes() == path.read_bytes()


# -- collections of other producers ----------------------------------------------------------------


def sample_parts(kind: int = 0) -> dict[Any, Any]:
    """Return the collection of a sample, decoded by cbor2."""
    found = cbor2.loads(Attestation(KINDS[kind]).to_bytes("cbor"))
    assert isinstance(found, dict)
    return found


def read_collection(collection: object) -> Attestation:
    """Read a collection encoded by cbor2."""
    return Attestation.from_bytes(cbor2.dumps(collection))


def test_collection_with_unknown_labels_or_without_type_is_read() -> None:
    """Unknown labels, a missing collection type and missing indicators are accepted."""
    others = {"x": ["a/b", b""], 7: {"y": [0, b"", 8]}, "z": cbor2.CBORTag(0x6374013D, b"")}
    assert read_collection(sample_parts() | others) == Attestation(KINDS[0])
    without_type = {
        label: part[:2] for label, part in sample_parts().items() if label != "__cmwc_t"
    }
    assert read_collection(without_type) == Attestation(KINDS[0])
    assert (
        read_collection(sample_parts() | {"config": [MEDIA_TYPES["config"], b"", 12]}).config == ""
    )


@every_case(
    "media_type",
    [
        18,
        'application/cose; cose-type="cose-sign1"',
        'application/cose;cose-type="cose-sign1"',
        'Application/COSE \t;  cose-type="cose-sign1"',
    ],
)
def test_collection_accepts_equivalent_media_types(media_type: str | int) -> None:
    """Content-Format, letter case and spaces around the semicolon do not matter."""
    entry = [media_type, b"\x84", 4]
    assert read_collection(sample_parts(2) | {"nsm_quote": entry}) == Attestation(KINDS[2])
    tagged = cbor2.CBORTag(0x63740101 + 18, b"\x84")
    assert read_collection(sample_parts(2) | {"nsm_quote": tagged}) == Attestation(KINDS[2])


@every_case(
    ("changes", "reason", "subject"),
    [
        ({"__cmwc_t": "urn:uuid:0"}, "unrecognized", "CMW collection: "),
        ({"quote": ["application/octet-stream", b"", 4]}, "wrong_value", "quote: "),
        ({"quote": [18, b""]}, "wrong_value", "quote: "),
        ({"quote": [MEDIA_TYPES["quote"], b"", 8]}, "inconsistent", "quote: "),
        ({"quote": {"a": [0, b""]}}, "wrong_type", "quote: "),
        ({"report": [MEDIA_TYPES["report"], b""]}, "inconsistent", "CMW collection: report "),
        ({"nsm_quote": [18, b"\x84"]}, "inconsistent", "CMW collection: nsm_quote "),
        ({"tpm_quote": [MEDIA_TYPES["tpm_quote"], b"\xa0"]}, "missing", "tpm_quote: message: "),
        ({"event_log": [MEDIA_TYPES["event_log"], b"[", 4]}, "syntax", "event_log: "),
        ({"event_log": [MEDIA_TYPES["event_log"], b"{}", 4]}, "wrong_type", "event_log: "),
        (
            {"event_log": [MEDIA_TYPES["event_log"], b"[1]", 4]},
            "wrong_type",
            "event_log: event 0: ",
        ),
        ({"event_log": [MEDIA_TYPES["event_log"], b"[{}]", 4]}, "missing", "event_log: event 0: "),
        ({"config": [MEDIA_TYPES["config"], b"\xff"]}, "encoding", "config: "),
        (
            {"runtime_events": [MEDIA_TYPES["runtime_events"], b"\x80\x80"]},
            "trailing_data",
            "runtime_events: ",
        ),
        (
            {"runtime_events": [MEDIA_TYPES["runtime_events"], b"\xa0"]},
            "wrong_type",
            "runtime_events: ",
        ),
        ({"collateral": [MEDIA_TYPES["collateral"], b"", 4]}, "inconsistent", "collateral: "),
        ({"collateral": [MEDIA_TYPES["config"], b""]}, "wrong_value", "collateral: "),
        ({"report_data_payload": ["a/b", b""]}, "wrong_value", "report_data_payload: "),
        (
            {"report_data_payload": [MEDIA_TYPES["report_data_payload"], b"\xff"]},
            "encoding",
            "report_data_payload: ",
        ),
    ],
)
def test_decode_of_unsuitable_part_names_its_label(
    changes: dict[str, Any], reason: str, subject: str
) -> None:
    """A part of the wrong type, platform or format is rejected with its label."""
    with raises(FormatError, reason, start=subject):
        read_collection(sample_parts() | changes)


@every_case("label", ["event_log", "report_data", "runtime_events", "config", "quote"])
def test_collection_with_missing_part_fails_naming_it(label: str) -> None:
    """The error names the missing part."""
    rest = {name: part for name, part in sample_parts().items() if name != label}
    with raises(FormatError, "missing", part=label):
        read_collection(rest)


@every_case(
    ("change", "reason", "subject"),
    [
        ({"imr": -1}, "wrong_value", "event 1: imr: "),
        ({"imr": 2**32}, "wrong_value", "event 1: imr: "),
        ({"event_type": True}, "wrong_type", "event 1: event_type: "),
        ({"digest": "0"}, "encoding", "event 1: digest: "),
        ({"event_payload": None}, "missing", "event 1: event_payload: "),
        ({"event": 7}, "wrong_type", "event 1: event: "),
        ({"event": "\ud800"}, "encoding", ""),
        ({"version": 3}, "unsupported_version", "event 1: "),
        ({"preimage": 1}, "wrong_type", "event 1: preimage: "),
    ],
)
def test_decode_of_invalid_event_names_its_field(
    change: dict[str, Any], reason: str, subject: str
) -> None:
    """An invalid field of an event is rejected with label, index and name."""
    event = {"imr": 3, "event_type": 1, "digest": "", "event": "", "event_payload": ""}
    log = json.dumps([event, event | change]).encode()
    with raises(FormatError, reason, start=f"event_log: {subject}"):
        read_collection(sample_parts() | {"event_log": [MEDIA_TYPES["event_log"], log]})


@every_case(
    "message",
    [
        ["application/json", b""],
        [60, b""],
        [60, v1_cbor.encode_evidence(KINDS[0])[3:]],
        ["application/vnd.attestkit.evidence+cbor", v1_cbor.encode_evidence(KINDS[0]), 8],
        ["application/vnd.attestkit.tdx-quote", b"", 4],
        cbor2.CBORTag(0x63740101, v1_cbor.encode_evidence(KINDS[0])),
        cbor2.CBORTag(0x63740100, v1_cbor.encode_evidence(KINDS[0])),
    ],
)
def test_record_of_other_type_fails(message: object) -> None:
    """A record or tag must have the media type of evidence, and contain evidence."""
    with pytest.raises(FormatError):
        read_collection(message)


def test_collection_with_over_65536_events_fails() -> None:
    """An event log has at most 65,536 events."""
    event = b'{"imr":0,"event_type":0,"event":"","event_payload":""}'
    for count, accepted in ((65_536, True), (65_537, False)):
        log = b"[%b]" % b",".join([event] * count)
        assert (
            is_rejected(
                read_collection,
                untyped(sample_parts() | {"event_log": [MEDIA_TYPES["event_log"], log]}),
            )
            != accepted
        )


def test_cmw_over_10_mib_is_neither_read_nor_written() -> None:
    """Evidence is at most 10 MiB long."""
    large = Attestation(Evidence(wire.NitroTpm(bytes(MAX_SIZE)), STACK))
    for form in ("cbor", "json"):
        with raises(UsageError, "too_large"):
            large.to_bytes(untyped(form))
    with raises(FormatError, "too_large"):
        Attestation.from_bytes(b"{" * (MAX_SIZE + 1))


def test_to_bytes_of_lone_surrogate_is_usage_error() -> None:
    """Text without a UTF-8 encoding is a usage error in every field."""
    event = EVENTS[0]._replace(event="\ud800")
    for evidence in (
        Evidence(KINDS[2].platform, STACK._replace(config="\ud800")),
        Evidence(Tdx(b"", (event,)), STACK),
    ):
        for encoding in DSTACK_ENCODINGS:
            with raises(UsageError, "encoding"):
                Attestation(evidence).to_bytes(encoding)


# -- enclosed collateral ---------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["cbor", "json"])
def test_with_collateral_encloses_collateral_without_changing_evidence(encoding: Encoding) -> None:
    """A collection carries collateral, which does not take part in equality."""
    bare = Attestation(KINDS[0])
    attestation = bare.with_collateral(intel.collateral())
    again = Attestation.from_bytes(attestation.to_bytes(encoding))
    assert bare.enclosed_collateral is None
    assert again.enclosed_collateral == intel.collateral()
    assert again.to_bytes() == attestation.to_bytes(encoding)
    assert again == bare
    assert hash(again) == hash(bare)
    assert copy.copy(again).enclosed_collateral == intel.collateral()
    assert again.stripped().enclosed_collateral is None
    assert again.with_collateral(None).enclosed_collateral is None
    assert attestation.to_bytes() == attestation.to_bytes("cbor")


@pytest.mark.parametrize("form", ["json", "json-record"])
def test_from_bytes_accepts_whitespace_around_json_only(form: CmwEncoding) -> None:
    """JSON may have whitespace around it within 10 MiB; the other encodings may not."""
    written = Attestation(KINDS[0]).to_bytes(form)
    for blanks in (b" ", b"\r\n\t ", b"\n" * (MAX_SIZE - len(written))):
        for data in (blanks + written, written + blanks):
            found = Attestation.from_bytes(data)
            assert (found, found.encoding) == (Attestation(KINDS[0]), form)
    with raises(FormatError, "too_large"):
        Attestation.from_bytes(b" " * MAX_SIZE + written)
    for data in (b" ", b"\n" * 99, b"\x0b" + written, b"\0 " + written):
        with pytest.raises(FormatError):
            Attestation.from_bytes(data)
    for other in ("v0", "v1", "v1-cbor", "cbor", "cbor-record", "cbor-tag"):
        with raises(FormatError, "unrecognized"):
            Attestation.from_bytes(b" " + Attestation(KINDS[0]).to_bytes(untyped(other)))


@every_case("collateral", [b"x", "{}", {}, 5])
def test_cmw_arguments_of_other_type_are_usage_errors(collateral: object) -> None:
    """Collateral must be a Collateral, and an encoding one of the known names."""
    with raises(UsageError, "wrong_type"):
        Attestation(KINDS[0]).with_collateral(untyped(collateral))
    for encoding in (["x"], {"v0": 1}, b"v0", 5):
        with raises(UsageError, "unknown_name"):
            Attestation(KINDS[0]).to_bytes(untyped(encoding))


def test_collateral_is_written_in_collections_only() -> None:
    """The other encodings drop the enclosed collateral."""
    attestation = Attestation(KINDS[0]).with_collateral(intel.collateral())
    for encoding in DSTACK_ENCODINGS:
        again = Attestation.from_bytes(attestation.to_bytes(encoding))
        assert again == attestation
        assert (again.enclosed_collateral is None) == (encoding not in {"cbor", "json"})


@every_case("text", [b"", b"{", b"{}", b"[]", b"\xff", b'{"tcb_info":1}'])
def test_enclosed_collateral_if_malformed_fails_on_access(text: bytes) -> None:
    """The evidence is read; access to the collateral raises the error."""
    found = read_collection(sample_parts() | {"collateral": [MEDIA_TYPES["collateral"], text, 2]})
    assert found == Attestation(KINDS[0])
    with raises(FormatError, "wrong_value", start="collateral: ") as caught:
        _ = found.enclosed_collateral
    assert not repeated_subjects(caught.value)


def test_verifier_ignores_enclosed_collateral() -> None:
    """A verifier uses enclosed collateral only if the caller passes it, and then verifies it."""
    genuine = intel.evidence()
    sent = genuine.with_collateral(intel.collateral()).to_bytes("cbor")
    without = Verifier(trust_anchor=intel.PKI.root_der)
    with pytest.raises(CollateralError):
        without.verify(sent, report_data=None, now=intel.NOW)
    enclosed = Attestation.from_bytes(sent).enclosed_collateral
    with_enclosed = Verifier(trust_anchor=intel.PKI.root_der, collateral=enclosed)
    assert with_enclosed.verify(sent, report_data=None, now=intel.NOW) == intel.verifier().verify(
        genuine, report_data=None
    )


def test_to_bytes_accepts_every_encoding_and_names_them_on_error() -> None:
    """Every encoding can be requested; the error for another name lists them."""
    assert set(FORMS) < set(get_args(Encoding))
    with raises(UsageError, "unknown_name") as caught:
        Attestation(KINDS[0]).to_bytes(untyped("cwt"))
    assert all(form in str(caught.value) for form in FORMS)
    assert cmw_evidence.is_cmw(b"\x83\x6aapplication")
    for other in (b"", b"\x83", b"\x83\xa7version", b"\x00", b"\xd9\xd9\xf7", b"\xda\x00"):
        assert not cmw_evidence.is_cmw(other)


def test_cmw_page_lists_labels_encodings_and_types() -> None:
    """docs/guides/cmw.md names each label's media type, each encoding, and the collection type."""
    page = (Path(__file__).parents[3] / "docs/guides/cmw.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| `([^|]+)` \|", page, re.MULTILINE)
    assert {label: text for label, text in rows if "/" in text and label in MEDIA_TYPES} == (
        MEDIA_TYPES
    )
    assert COLLECTION_TYPE in page
    assert all(f"\n| `{form}` | " in page for form in FORMS)
