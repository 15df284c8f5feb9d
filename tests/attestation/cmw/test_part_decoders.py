"""Fast decoders of a CMW's records, event log and runtime events, beside the full readers."""

from typing import Final

import cbor2
import pytest

from attestkit.attestation.cmw import evidence as cmw_evidence
from attestkit.attestation.cmw import record as cmw
from attestkit.attestation.cmw.evidence import MEDIA_TYPES, decode_evidence, encode_evidence
from attestkit.attestation.wire import evidence_parts, v1_document, v1_structs
from attestkit.attestation.wire.evidence_parts import Evidence, GcpTdx, Tpm
from attestkit.errors import FormatError
from tests.attestation import vtpm_samples
from tests.attestation.samples import KINDS, V2, mutations
from tests.runner.cases import every_case
from tests.thorough import thorough

ENCODED: Final = encode_evidence("cbor", V2)
COLLECTION: Final = cbor2.loads(ENCODED)
EVENT_LOG: Final = COLLECTION["event_log"][1]
RUNTIME_EVENTS: Final = COLLECTION["runtime_events"][1]
OF_TPM: Final = Evidence(Tpm(vtpm_samples.VTPM_QUOTE), V2.stack)
VTPM_QUOTE: Final = cbor2.loads(encode_evidence("cbor", OF_TPM))["vtpm_quote"][1]
OF_GOOGLE: Final = next(one for one in KINDS if isinstance(one.platform, GcpTdx))
OF_GOOGLE_PARTS: Final = cbor2.loads(encode_evidence("cbor", OF_GOOGLE))
CONFIG: Final = MEDIA_TYPES["config"]
LOG: Final = b'[{"imr":3,"event_type":1,"digest":"","event":"a","event_payload":"00"}]'


def read_result(label: str, part: bytes, *, full: bool = False) -> object:
    """Return the part, or reason, offset and message of the error; `full`: by the full reader."""
    with pytest.MonkeyPatch.context() as patch:
        if full:
            patch.setattr(v1_structs, "decode_json_log", lambda _: None)
            patch.setattr(v1_structs, "decode_runtime_events", lambda _: None)
            patch.setattr(v1_structs, "decode_vtpm_quote", lambda _: None)
            patch.setattr(v1_structs, "decode_tpm_quote", lambda _: None)
            patch.setattr(v1_structs, "decode_certificates", lambda _: None)
        try:
            return cmw_evidence._read(label, part)
        except FormatError as error:
            return error.reason, error.offset, str(error)


def read_collection(data: bytes, *, full: bool = False) -> object:
    """Return the content, or reason, offset and message of the error; `full`: by the full reader.

    The native decoder, which reads the usual evidence of TDs, is left out.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evidence_parts, "decode_cmw_td", lambda _: None)
        if full:
            patch.setattr(cmw_evidence, "_read_plain_parts", lambda _: None)
        try:
            return decode_evidence(data)
        except FormatError as error:
            return error.reason, error.offset, str(error)


@thorough(mutations(ENCODED), few=100, many=3000)
def test_cmw_collection_equals_that_of_full_reader(data: bytes) -> None:
    """Parts and errors are those of the full reader."""
    assert read_collection(data) == read_collection(data, full=True)


@every_case(
    "change",
    [
        {cmw.KIND: None},
        {cmw.KIND: "no URI"},
        {cmw.KIND: "urn:other"},
        {1: ["a/b", b"", 4]},
        {True: ["a/b", b"", 4]},
        {"a": ["a/b", b"", 4]},
        {"a": [None, b"", 4]},
        {"a": {"b": ["a/b", b"", 4]}},
        {"config": [CONFIG, b""]},
        {"config": [CONFIG, b"", None]},
        {"config": [CONFIG, b"", True]},
        {"config": [CONFIG, b"", 3]},
        {"config": [CONFIG, b"", 5]},
        {"config": [CONFIG, b"", 32]},
        {"config": [CONFIG, "text", 4]},
        {"config": [CONFIG.upper(), b"", 4]},
        {"config": [[], b"", 4]},
        {"config": [False, b"", 4]},
        {"config": ["no type", b"", 4]},
        {"config": "abc"},
        {"config": {}},
        {"collateral": [MEDIA_TYPES["collateral"], b"", 4]},
        {str(label): ["a/b", b"", 4] for label in range(65)},
    ],
)
def test_cmw_collection_in_other_form_is_left_to_full_reader(change: dict[object, object]) -> None:
    """Other records and labels are left to the full reader, which accepts some of them."""
    data = cbor2.dumps(COLLECTION | change)
    assert cmw_evidence._read_plain_parts(data) is None
    assert read_collection(data) == read_collection(data, full=True)


@every_case("labels", [(), ("config",), ("quote", "report"), ("collateral",)])
def test_cmw_collection_with_other_labels_is_refused_as_by_full_reader(
    labels: tuple[str, ...],
) -> None:
    """Missing parts and parts of several platforms are errors of both readers."""
    found = {cmw.KIND: COLLECTION[cmw.KIND]}
    for label in labels:
        found[label] = [MEDIA_TYPES[label], b"", 3 if label == "collateral" else 4]
    data = cbor2.dumps(found)
    assert isinstance(read_collection(data), tuple)
    assert read_collection(data) == read_collection(data, full=True)


@thorough(mutations(LOG, EVENT_LOG), few=100, many=3000)
def test_cmw_event_log_equals_that_of_full_reader(part: bytes) -> None:
    """Event log and errors are those of the full reader."""
    assert read_result("event_log", part) == read_result("event_log", part, full=True)


@thorough(mutations(RUNTIME_EVENTS), few=100, many=3000)
def test_cmw_runtime_events_equal_those_of_full_reader(part: bytes) -> None:
    """Runtime events and errors are those of the full reader."""
    assert read_result("runtime_events", part) == read_result("runtime_events", part, full=True)


@thorough(mutations(VTPM_QUOTE), few=100, many=3000)
def test_cmw_quote_of_tpm_equals_that_of_full_reader(part: bytes) -> None:
    """A TPM's quote and errors are those of the full reader."""
    assert read_result("vtpm_quote", part) == read_result("vtpm_quote", part, full=True)


@every_case(
    "change",
    [
        {"ak_public": ...},
        {"other": b""},
        {"pcr_values": [{"index": 1 << 32, "algorithm": "sha256", "value": b""}]},
        {"pcr_values": [[0, "sha256", b""]]},
        {"pcr_values": {}},
        {"message": "text"},
        {"ak_certificates": [1]},
    ],
)
def test_cmw_quote_of_tpm_in_other_form_is_left_to_full_reader(change: dict[str, object]) -> None:
    """Missing, unknown and other fields are left to the full reader, which accepts some of them."""
    fields = cbor2.loads(VTPM_QUOTE) | change
    part = cbor2.dumps({name: value for name, value in fields.items() if value is not ...})
    assert v1_structs.decode_vtpm_quote(part) is None
    assert read_result("vtpm_quote", part) == read_result("vtpm_quote", part, full=True)


@thorough(mutations(OF_GOOGLE_PARTS["tpm_quote"][1]), few=100, many=3000)
def test_cmw_quote_of_google_equals_that_of_full_reader(part: bytes) -> None:
    """The quote of Google's TPM and errors are those of the full reader."""
    assert read_result("tpm_quote", part) == read_result("tpm_quote", part, full=True)


@thorough(mutations(cbor2.dumps([b"", b"certificate"])), few=100, many=3000)
def test_cmw_certificates_equal_those_of_full_reader(part: bytes) -> None:
    """Certificates and errors are those of the full reader."""
    assert read_result("cert_chain", part) == read_result("cert_chain", part, full=True)


@every_case(
    "change",
    [
        {"platform": "other"},
        {"platform": ...},
        {"other": b""},
        {"ak_cert": "text"},
        {"event_log": [{"pcr_index": 1 << 32, "digest": b""}]},
        {"event_log": [{"pcr_index": 0, "digest": b"", "name": b""}]},
    ],
)
def test_cmw_quote_of_google_in_other_form_is_left_to_full_reader(
    change: dict[str, object],
) -> None:
    """Missing, unknown and other fields are left to the full reader, which refuses them."""
    fields = cbor2.loads(OF_GOOGLE_PARTS["tpm_quote"][1]) | change
    part = cbor2.dumps({name: value for name, value in fields.items() if value is not ...})
    assert v1_structs.decode_tpm_quote(part) is None
    assert read_result("tpm_quote", part) == read_result("tpm_quote", part, full=True)


@every_case("collateral", [None, b"{}"])
@every_case("evidence", [OF_GOOGLE, OF_TPM, *vtpm_samples.VTPM_KINDS])
def test_cmw_with_tpm_does_not_reach_full_readers(
    evidence: Evidence, collateral: bytes | None
) -> None:
    """Records, quotes and certificates that attestkit writes are read by the fast decoders."""
    encoded = encode_evidence("cbor", evidence, collateral)
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(cmw, "_read")
        patch.delattr(v1_document, "decode_part")
        assert decode_evidence(encoded)[::2] == (evidence, collateral)


@pytest.mark.parametrize("evidence", [OF_GOOGLE, OF_TPM])
def test_cmw_quote_with_key_of_pcr_values_in_it_is_left_to_full_reader(evidence: Evidence) -> None:
    """The bytes of a key inside of an entry do not end the part before the PCR values."""
    platform = evidence.platform
    field = "tpm_quote" if isinstance(platform, GcpTdx) else "vtpm_quote"
    quote = getattr(platform, field)._replace(message=b"\x6apcr_values\x80")
    evidence = evidence._replace(platform=platform._replace(**{field: quote}))
    assert decode_evidence(encode_evidence("cbor", evidence)).evidence == evidence


def test_cmw_parts_over_limit_are_not_kept() -> None:
    """Large parts are decoded each time, so that the cache is bounded in bytes, too."""
    small, large = (cbor2.dumps([bytes(size)]) for size in (16_000, 16_384))
    for part, kept in ((small, True), (large, False)):
        first, second = v1_structs.decode_certificates(part), v1_structs.decode_certificates(part)
        assert first == second
        assert (first is second) == kept


@pytest.mark.parametrize("evidence", [KINDS[0], V2])
def test_cmw_of_td_does_not_reach_full_readers(evidence: Evidence) -> None:
    """The parts that attestkit writes are read by the fast decoders."""
    encoded = encode_evidence("cbor", evidence)
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(cmw, "_read")
        patch.delattr(cmw_evidence, "_event")
        patch.delattr(v1_document, "decode_part")
        assert decode_evidence(encoded).evidence == evidence


@every_case(
    ("common", "variant"),
    [
        (b":3,", b": 3,"),  # a blank
        (b":3,", b":3.0,"),  # an integer as a float
        (b":3,", b":4294967296,"),  # over 32 bits
        (b'"imr":3', b'"imr":3,"imr":3'),  # a duplicate key
        (b'"imr":3', b'"imr":3,"other":[[]]'),  # an unknown key
        (b'"a"', b'"\\u0061"'),  # an escape that is not needed
        (b'"a"', b'"\\ud800"'),  # a lone surrogate
        (b'"a"', b'"\xff"'),  # not UTF-8
        (b'"00"', b'"0"'),  # not hex
        (b'"00"', b"null"),
        (b'"digest":"",', b""),  # a digest may be missing
        (b'"00"}', b'"00","version":1}'),  # a default
        (b'"00"}', b'"00","preimage":null}'),
        (b'"00"}', b'"00","version":3}'),
        (b"}]", b"}]\n"),
    ],
)
def test_cmw_event_log_in_other_form_is_left_to_full_reader(common: bytes, variant: bytes) -> None:
    """Other JSON, duplicate and unknown keys are handled by the strict reader."""
    assert LOG.count(common) == 1
    assert v1_structs.decode_json_log(LOG.replace(common, variant)) is None


@every_case("part", ["8000", "a0", "9800", "818261614100", "9fff"])
def test_cmw_runtime_events_in_other_form_are_left_to_full_reader(part: str) -> None:
    """Trailing bytes, other types, long heads and structs as arrays are left to it."""
    assert v1_structs.decode_runtime_events(bytes.fromhex(part)) is None
