"""Evidence as a CMW: every platform in every form, what is refused, and collateral beside it."""

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
from attestkit.attestation.cmw.evidence import COLLECTION_TYPE, MEDIA_TYPES, Form
from attestkit.attestation.wire import v1_cbor, v1_document
from attestkit.attestation.wire.evidence_parts import (
    Evidence,
    GcpTdx,
    NitroEnclave,
    NitroTpm,
    PcrValue,
    Platform,
    RuntimeEvent,
    SevSnp,
    Stack,
    Tdx,
    TpmEvent,
    TpmQuote,
)
from attestkit.errors import CollateralError, FormatError, UsageError
from attestkit.event_log import WireEvent
from attestkit.verifier import Verifier
from tests.attestation.samples import EVENTS, KINDS, POD, STACK, V2, cuts, mutations, refused, use
from tests.untyped import untyped
from tests.vectors import load, needs_shared
from tests.verifier import parcels

DATA: Final = Path(__file__).parents[2] / "data/cmw"
FORMS: Final[tuple[Form, ...]] = get_args(Form)
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
_TPM: Final = st.builds(
    TpmQuote,
    *(_SHORT, _SHORT),
    st.lists(st.builds(PcrValue, _U32, _TEXT, _SHORT), max_size=2).map(tuple),
    _SHORT,
    st.sampled_from(["dstack", "gcp"]),
    st.lists(st.builds(TpmEvent, _U32, _SHORT), max_size=2).map(tuple),
)
_PLATFORMS: Final[st.SearchStrategy[Platform]] = st.one_of(
    st.builds(Tdx, _SHORT, _EVENTS),
    st.builds(GcpTdx, _SHORT, _EVENTS, _TPM),
    st.builds(NitroEnclave, _SHORT),
    st.builds(SevSnp, _SHORT, st.lists(_SHORT, max_size=3).map(tuple), _TEXT),
    st.builds(NitroTpm, _SHORT),
)
_RUNTIME: Final = st.builds(RuntimeEvent, _TEXT, _SHORT, st.sampled_from([1, 2]))
PARCELS: Final = st.builds(
    Evidence,
    _PLATFORMS,
    st.builds(Stack, _SHORT, st.lists(_RUNTIME, max_size=3).map(tuple), _TEXT, st.none() | _TEXT),
)


@given(PARCELS, st.sampled_from(FORMS))
def test_everything_comes_back(evidence: Evidence, form: Form) -> None:
    """Evidence of every platform says the same again in every form, in the same bytes."""
    attestation = Attestation(evidence)
    written = attestation.to_bytes(form)
    again = Attestation.from_bytes(written)
    assert again == attestation
    assert again.encoding == form
    assert again.to_bytes() == written


@needs_shared
@pytest.mark.parametrize("form", FORMS)
def test_the_vectors_come_back(form: Form) -> None:
    """Those of the older encodings are the same evidence as a CMW; nothing pins CBOR there."""
    for case in load("attestation_encodings.json")["cases"]:
        if text := case.get("v1_msgpack"):
            known = Attestation.from_bytes(bytes.fromhex(text))
            assert Attestation.from_bytes(known.to_bytes(form)).to_bytes("v1").hex() == text


@pytest.mark.parametrize("evidence", SMALL)
def test_another_reader_finds_the_parts(evidence: Evidence) -> None:
    """cbor2 and json find a record for each part, of the media types in the table."""
    parts = cbor2.loads(Attestation(evidence).to_bytes("cbor"))
    tree = v1_document.tree(evidence)
    assert parts.pop("__cmwc_t") == COLLECTION_TYPE
    assert parts.keys() == tree["platform"]["data"].keys() | tree["stack"]["data"].keys()
    for label, (media_type, value, ind) in parts.items():
        assert (media_type, ind) == (MEDIA_TYPES[label], 4)
        assert isinstance(value, bytes)
    if isinstance(evidence.platform, (Tdx, GcpTdx)):
        assert parts["quote"][1] == evidence.platform.quote
        log = json.loads(parts["event_log"][1])
        assert [event["event"] for event in log] == [e.event for e in evidence.platform.event_log]
    in_json = json.loads(Attestation(evidence).to_bytes("json"))
    assert {label: record[0] for label, record in in_json.items() if label in MEDIA_TYPES} == {
        label: MEDIA_TYPES[label] for label in parts
    }
    tagged = cbor2.loads(Attestation(evidence).to_bytes("cbor-tag"))
    assert tagged == cbor2.CBORTag(0x6374013D, v1_cbor.encode(evidence))
    record = cbor2.loads(Attestation(evidence).to_bytes("cbor-record"))
    assert record == ["application/vnd.attestkit.evidence+cbor", v1_cbor.encode(evidence), 4]


@pytest.mark.parametrize("evidence", SMALL)
def test_what_was_called_cbor_before_is_read(evidence: Evidence) -> None:
    """The one document behind tag 55799 is still evidence, and goes out as it came."""
    old = v1_cbor.encode(evidence)
    assert old.startswith(b"\xd9\xd9\xf7")
    assert Attestation.from_bytes(old).evidence == evidence
    assert Attestation.from_bytes(old).encoding == "v1-cbor"
    assert Attestation.from_bytes(old).to_bytes() == old


@pytest.mark.parametrize("path", sorted(DATA.glob("*.cmw")), ids=lambda path: path.name)
def test_committed_files(path: Path) -> None:
    """Files that were written once are read, and are written in the same bytes."""
    found = Attestation.from_bytes(path.read_bytes())
    assert found.encoding == path.name.split(".")[1]
    assert found.evidence == {"tdx": KINDS[0], "snp": KINDS[3]}[path.name.split(".")[0]]
    assert found.to_bytes() == path.read_bytes()


def test_there_are_files() -> None:
    """One of each form at least."""
    assert {path.name.split(".")[1] for path in DATA.glob("*.cmw")} == set(FORMS)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", [0, 3])
def test_cut_anywhere_it_is_refused(form: Form, kind: int) -> None:
    """No prefix of a CMW is evidence."""
    for cut in cuts(Attestation(KINDS[kind]).to_bytes(form)):
        assert refused(Attestation.from_bytes, cut)


@given(mutations(*(Attestation(kind).to_bytes(form) for kind in SMALL for form in FORMS)))
def test_changed_anywhere_only_our_errors_come(data: bytes) -> None:
    """Whatever comes is evidence or refused."""
    refused(use, data)


# -- collections that others make ------------------------------------------------------------------


def parts(kind: int = 0) -> dict[Any, Any]:
    """Return the collection of a sample, as cbor2 has it."""
    found = cbor2.loads(Attestation(KINDS[kind]).to_bytes("cbor"))
    assert isinstance(found, dict)
    return found


def read(collection: object) -> Attestation:
    """Read a collection that cbor2 writes."""
    return Attestation.from_bytes(cbor2.dumps(collection))


def test_what_is_not_ours_is_passed_over() -> None:
    """Labels that nobody here knows, a missing type, and missing indicators change nothing."""
    others = {"x": ["a/b", b""], 7: {"y": [0, b"", 8]}, "z": cbor2.CBORTag(0x6374013D, b"")}
    assert read(parts() | others) == Attestation(KINDS[0])
    untold = {label: part[:2] for label, part in parts().items() if label != "__cmwc_t"}
    assert read(untold) == Attestation(KINDS[0])
    assert read(parts() | {"config": [MEDIA_TYPES["config"], b"", 12]}).config == ""


@pytest.mark.parametrize(
    "media_type",
    [
        18,
        'application/cose; cose-type="cose-sign1"',
        'application/cose;cose-type="cose-sign1"',
        'Application/COSE \t;  cose-type="cose-sign1"',
    ],
)
def test_a_media_type_has_several_spellings(media_type: str | int) -> None:
    """Its Content-Format, other case, and spaces around the semicolon are the same."""
    entry = [media_type, b"\x84", 4]
    assert read(parts(2) | {"nsm_quote": entry}) == Attestation(KINDS[2])
    tagged = cbor2.CBORTag(0x63740101 + 18, b"\x84")
    assert read(parts(2) | {"nsm_quote": tagged}) == Attestation(KINDS[2])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"__cmwc_t": "urn:uuid:0"}, "its type is urn:uuid:0"),
        ({"quote": ["application/octet-stream", b"", 4]}, "quote: .* where application/vnd"),
        ({"quote": [18, b""]}, "quote: 18 where"),
        ({"quote": [MEDIA_TYPES["quote"], b"", 8]}, "quote: ind 8 has none of the bits 4"),
        ({"quote": {"a": [0, b""]}}, "quote: a collection"),
        ({"report": [MEDIA_TYPES["report"], b""]}, "report and quote are of different"),
        ({"nsm_quote": [18, b"\x84"]}, "nsm_quote and quote are of different"),
        ({"tpm_quote": [MEDIA_TYPES["tpm_quote"], b"\xa0"]}, "tpm_quote: field message is missing"),
        ({"event_log": [MEDIA_TYPES["event_log"], b"[", 4]}, "event_log: the log is not"),
        ({"event_log": [MEDIA_TYPES["event_log"], b"{}", 4]}, "event_log: the log is no array"),
        ({"event_log": [MEDIA_TYPES["event_log"], b"[1]", 4]}, "event_log: event 0 is no object"),
        ({"event_log": [MEDIA_TYPES["event_log"], b"[{}]", 4]}, "event_log: event 0: "),
        ({"config": [MEDIA_TYPES["config"], b"\xff"]}, "config: text is not UTF-8"),
        (
            {"runtime_events": [MEDIA_TYPES["runtime_events"], b"\x80\x80"]},
            "runtime_events: 1 byte",
        ),
        ({"runtime_events": [MEDIA_TYPES["runtime_events"], b"\xa0"]}, "runtime_events: no array"),
        ({"collateral": [MEDIA_TYPES["collateral"], b"", 4]}, "collateral: ind 4 has none"),
        ({"collateral": [MEDIA_TYPES["config"], b""]}, "collateral: .* where"),
        ({"report_data_payload": ["a/b", b""]}, "report_data_payload: 'a/b' where"),
        (
            {"report_data_payload": [MEDIA_TYPES["report_data_payload"], b"\xff"]},
            "report_data_payload: text is not UTF-8",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes: dict[str, Any], text: str) -> None:
    """The label is named."""
    with pytest.raises(FormatError, match=text):
        read(parts() | changes)


@pytest.mark.parametrize("label", ["event_log", "report_data", "runtime_events", "config", "quote"])
def test_no_part_may_be_missing(label: str) -> None:
    """What is left out is named, or that there is nothing to judge."""
    rest = {name: part for name, part in parts().items() if name != label}
    with pytest.raises(
        FormatError, match=f"{label} is missing" if label != "quote" else "no quote"
    ):
        read(rest)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"imr": -1}, "imr"),
        ({"imr": 2**32}, "imr"),
        ({"event_type": True}, "event_type"),
        ({"digest": "0"}, "digest"),
        ({"event_payload": None}, "event_payload"),
        ({"event": 7}, "event"),
        ({"event": "\ud800"}, "well-formed"),
        ({"version": 3}, "version 3"),
        ({"preimage": 1}, "preimage"),
    ],
)
def test_events_are_checked(change: dict[str, Any], text: str) -> None:
    """A field that cannot be is refused with the label, and the event's place."""
    event = {"imr": 3, "event_type": 1, "digest": "", "event": "", "event_payload": ""}
    log = json.dumps([event, event | change]).encode()
    with pytest.raises(FormatError, match=f"event_log: .*{text}"):
        read(parts() | {"event_log": [MEDIA_TYPES["event_log"], log]})


@pytest.mark.parametrize(
    "message",
    [
        ["application/json", b""],
        [60, b""],
        [60, v1_cbor.encode(KINDS[0])[3:]],
        ["application/vnd.attestkit.evidence+cbor", v1_cbor.encode(KINDS[0]), 8],
        ["application/vnd.attestkit.tdx-quote", b"", 4],
        cbor2.CBORTag(0x63740101, v1_cbor.encode(KINDS[0])),
        cbor2.CBORTag(0x63740100, v1_cbor.encode(KINDS[0])),
    ],
)
def test_records_of_something_else_are_refused(message: object) -> None:
    """A record or tag must say that it is evidence, and be it."""
    with pytest.raises(FormatError):
        read(message)


def test_the_log_has_at_most_65536_events() -> None:
    """One more is refused, and not written either."""
    event = b'{"imr":0,"event_type":0,"event":"","event_payload":""}'
    for count, good in ((65_536, True), (65_537, False)):
        log = b"[%b]" % b",".join([event] * count)
        assert (
            refused(read, untyped(parts() | {"event_log": [MEDIA_TYPES["event_log"], log]})) != good
        )


def test_ten_mebibytes_are_the_most() -> None:
    """Larger evidence is neither read nor written."""
    large = Attestation(Evidence(NitroTpm(bytes(MAX_SIZE)), STACK))
    for form in ("cbor", "json"):
        with pytest.raises(UsageError, match="over 10485760 bytes"):
            large.to_bytes(untyped(form))
    with pytest.raises(FormatError, match="too large"):
        Attestation.from_bytes(b"{" * (MAX_SIZE + 1))


def test_half_a_surrogate_pair_cannot_be_written() -> None:
    """Text without a UTF-8 form is the caller's mistake, wherever it stands."""
    event = EVENTS[0]._replace(event="\ud800")
    for evidence in (
        Evidence(KINDS[2].platform, STACK._replace(config="\ud800")),
        Evidence(Tdx(b"", (event,)), STACK),
    ):
        for form in FORMS:
            with pytest.raises(UsageError, match="surrogate"):
                Attestation(evidence).to_bytes(form)


# -- collateral beside evidence --------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["cbor", "json"])
def test_collateral_comes_out_again(encoding: Encoding) -> None:
    """A collection carries it; it is no part of what the evidence says."""
    bare = Attestation(KINDS[0])
    parcel = bare.with_collateral(parcels.collateral())
    again = Attestation.from_bytes(parcel.to_bytes(encoding))
    assert bare.enclosed_collateral is None
    assert again.enclosed_collateral == parcels.collateral()
    assert again.to_bytes() == parcel.to_bytes(encoding)
    assert again == bare
    assert hash(again) == hash(bare)
    assert copy.copy(again).enclosed_collateral == parcels.collateral()
    assert again.stripped().enclosed_collateral is None
    assert again.with_collateral(None).enclosed_collateral is None
    assert parcel.to_bytes() == parcel.to_bytes("cbor")


@pytest.mark.parametrize("form", ["json", "json-record"])
def test_blanks_around_json(form: Form) -> None:
    """In front as behind, as many as fit in 10 MiB; before another form they are refused."""
    written = Attestation(KINDS[0]).to_bytes(form)
    for blanks in (b" ", b"\r\n\t ", b"\n" * (MAX_SIZE - len(written))):
        for data in (blanks + written, written + blanks):
            found = Attestation.from_bytes(data)
            assert (found, found.encoding) == (Attestation(KINDS[0]), form)
    with pytest.raises(FormatError, match="too large"):
        Attestation.from_bytes(b" " * MAX_SIZE + written)
    for data in (b" ", b"\n" * 99, b"\x0b" + written, b"\0 " + written):
        with pytest.raises(FormatError):
            Attestation.from_bytes(data)
    for other in ("v0", "v1", "v1-cbor", "cbor", "cbor-record", "cbor-tag"):
        with pytest.raises(FormatError, match="Unknown attestation wire format"):
            Attestation.from_bytes(b" " + Attestation(KINDS[0]).to_bytes(untyped(other)))


@pytest.mark.parametrize("collateral", [b"x", "{}", {}, 5])
def test_other_types_are_usage_errors(collateral: object) -> None:
    """Collateral is parsed before it is put beside evidence, and an encoding is a word."""
    with pytest.raises(UsageError, match="collateral is a Collateral"):
        Attestation(KINDS[0]).with_collateral(untyped(collateral))
    for encoding in (["x"], {"v0": 1}, b"v0", 5):
        with pytest.raises(UsageError, match="unknown encoding"):
            Attestation(KINDS[0]).to_bytes(untyped(encoding))


def test_only_collections_carry_it() -> None:
    """The other encodings have no room for it."""
    parcel = Attestation(KINDS[0]).with_collateral(parcels.collateral())
    for encoding in get_args(Encoding):
        again = Attestation.from_bytes(parcel.to_bytes(encoding))
        assert again == parcel
        assert (again.enclosed_collateral is None) == (encoding not in {"cbor", "json"})


@pytest.mark.parametrize("text", [b"", b"{", b"{}", b"[]", b"\xff", b'{"tcb_info":1}'])
def test_malformed_collateral_shows_when_asked_for(text: bytes) -> None:
    """Evidence beside it is read; whoever asks for the collateral is told."""
    found = read(parts() | {"collateral": [MEDIA_TYPES["collateral"], text, 2]})
    assert found == Attestation(KINDS[0])
    with pytest.raises(FormatError, match=r"^collateral"):
        _ = found.enclosed_collateral


def test_a_verifier_does_not_use_it_unasked() -> None:
    """Without collateral of its own a verifier refuses; handed in, it is checked like any other."""
    genuine = parcels.evidence()
    sent = genuine.with_collateral(parcels.collateral()).to_bytes("cbor")
    unasked = Verifier(parcels.PKI.root_der)
    with pytest.raises(CollateralError):
        unasked.verify(sent, report_data=None, now=parcels.NOW)
    enclosed = Attestation.from_bytes(sent).enclosed_collateral
    asked = Verifier(parcels.PKI.root_der, enclosed)
    assert asked.verify(sent, report_data=None, now=parcels.NOW) == parcels.verifier().verify(
        genuine, report_data=None
    )


def test_the_names_of_forms_are_encodings() -> None:
    """Whatever form there is can be asked for, and another one is refused with their names."""
    assert set(FORMS) < set(get_args(Encoding))
    with pytest.raises(UsageError, match="cbor-record"):
        Attestation(KINDS[0]).to_bytes(untyped("cwt"))
    assert cmw_evidence.is_cmw(b"\x83\x6aapplication")
    for other in (b"", b"\x83", b"\x83\xa7version", b"\x00", b"\xd9\xd9\xf7", b"\xda\x00"):
        assert not cmw_evidence.is_cmw(other)


def test_the_page_has_the_table() -> None:
    """docs/cmw.md names each label's media type, each form, and the collection's type."""
    page = (Path(__file__).parents[3] / "docs/cmw.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| `([^|]+)` \|", page, re.MULTILINE)
    assert {label: text for label, text in rows if "/" in text and label in MEDIA_TYPES} == (
        MEDIA_TYPES
    )
    assert COLLECTION_TYPE in page
    assert all(f"\n| `{form}` | " in page for form in FORMS)
