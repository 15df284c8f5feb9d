"""Evidence with a TPM that dstack does not define: collections, refusals, and copies of it."""

import pickle
from typing import Any, Final

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.attestation import Attestation, Encoding
from attestkit.attestation.cmw.evidence import MEDIA_TYPES
from attestkit.attestation.wire import evidence_parts as parts
from attestkit.attestation.wire.evidence_parts import Evidence
from attestkit.errors import FormatError, UsageError
from tests.attestation.samples import STACK, is_rejected, mutations
from tests.attestation.vtpm_samples import VTPM_KINDS, VTPM_QUOTE, vtpm_platforms
from tests.raising import raises
from tests.runner.cases import every_case

COLLECTIONS: Final[tuple[Encoding, ...]] = ("cbor", "json")
OF_DSTACK: Final[tuple[Encoding, ...]] = (
    *("v0", "v1", "v1-cbor"),
    *("cbor-record", "json-record", "cbor-tag"),
)
IDS: Final = [parts.PLATFORM_NAMES[type(one.platform)] for one in VTPM_KINDS]

of_each_kind = pytest.mark.parametrize("evidence", VTPM_KINDS, ids=IDS)


def collection_of(evidence: Evidence) -> dict[Any, Any]:
    """Return the collection of evidence, decoded by cbor2."""
    found = cbor2.loads(Attestation(evidence).to_bytes("cbor"))
    assert isinstance(found, dict)
    return found


@given(vtpm_platforms(), st.sampled_from(COLLECTIONS))
def test_collection_of_every_platform_round_trips(
    platform: parts.Platform, encoding: Encoding
) -> None:
    """Evidence of each platform round-trips as a collection, byte for byte."""
    attestation = Attestation(Evidence(platform, STACK))
    written = attestation.to_bytes(encoding)
    again = Attestation.from_bytes(written)
    assert (again, again.encoding, again.to_bytes()) == (attestation, encoding, written)


@of_each_kind
def test_default_encoding_is_a_collection_in_cbor(evidence: Evidence) -> None:
    """New evidence is encoded as `cbor`, with one record for each part."""
    attestation = Attestation(evidence)
    assert attestation.to_bytes() == attestation.to_bytes("cbor")
    labels = {*evidence.platform._fields, *evidence.stack._fields} - {"report_data_payload"}
    found = collection_of(evidence)
    del found["__cmwc_t"]
    assert found.keys() == labels
    assert all(record[0] == MEDIA_TYPES[label] for label, record in found.items())


@every_case("encoding", OF_DSTACK)
@of_each_kind
def test_encodings_of_dstack_refuse_other_platforms(evidence: Evidence, encoding: Encoding) -> None:
    """Formats of dstack, and the records around them, refuse what dstack does not define."""
    with raises(UsageError, "not_applicable"):
        Attestation(evidence).to_bytes(encoding)


@of_each_kind
def test_missing_part_is_refused(evidence: Evidence) -> None:
    """Each part is required: a collection without one is not of this platform."""
    for label in (*evidence.platform._fields, "report_data", "runtime_events", "config"):
        found = collection_of(evidence)
        del found[label]
        with raises(FormatError, "missing", "inconsistent"):
            Attestation.from_bytes(cbor2.dumps(found))


@of_each_kind
@every_case("other", VTPM_KINDS, ids=IDS)
def test_parts_of_two_platforms_are_refused(evidence: Evidence, other: Evidence) -> None:
    """A collection with a part that its platform does not have is refused."""
    for label in set(other.platform._fields) - set(evidence.platform._fields):
        found = collection_of(evidence) | {label: collection_of(other)[label]}
        assert is_rejected(Attestation.from_bytes, cbor2.dumps(found)), label


@given(mutations(*(Attestation(one).to_bytes() for one in VTPM_KINDS)))
def test_changed_collection_is_refused_or_read_again(data: bytes) -> None:
    """A changed collection is refused with an AttestKitError, or round-trips."""
    try:
        found = Attestation.from_bytes(data)
    except (FormatError, UsageError):
        return
    assert Attestation.from_bytes(found.to_bytes()) == found


@of_each_kind
def test_truncated_collection_is_refused(evidence: Evidence) -> None:
    """Every proper prefix of a collection is refused."""
    written = Attestation(evidence).to_bytes()
    for size in range(len(written)):
        assert is_rejected(Attestation.from_bytes, written[:size])


def test_optional_members_of_a_vtpm_quote_may_be_missing() -> None:
    """Key, certificates and logs of a quote are optional, also when reading."""
    bare = VTPM_QUOTE._replace(ak_public=b"", ak_certificates=(), boot_log=b"", ima_log=b"")
    found = collection_of(Evidence(parts.Tpm(VTPM_QUOTE), STACK))
    quote = cbor2.loads(found["vtpm_quote"][1])
    for name in ("ak_public", "ak_certificates", "boot_log", "ima_log"):
        del quote[name]
    found["vtpm_quote"][1] = cbor2.dumps(quote)
    assert Attestation.from_bytes(cbor2.dumps(found)).evidence.platform == parts.Tpm(bare)


@of_each_kind
def test_evidence_pickles_and_has_a_name(evidence: Evidence) -> None:
    """Evidence pickles, equals its copy, and is named in its repr."""
    attestation = Attestation(evidence)
    again = pickle.loads(pickle.dumps(attestation))
    assert again == attestation
    assert hash(again) == hash(attestation)
    assert repr(attestation) == f"<Attestation {attestation.platform}, new, 0 events>"


def test_evidence_of_equal_parts_of_two_platforms_differs() -> None:
    """The platform is part of equality: a tuple of equal parts of another platform differs."""
    one = Attestation(Evidence(parts.GoTpmTools(b"x"), STACK))
    assert one != Attestation(Evidence(parts.NitroTpm(b"x"), STACK))


@of_each_kind
def test_stripped_evidence_has_no_logs(evidence: Evidence) -> None:
    """A stripped copy has no log of firmware and IMA, and all else; its encoding is the same."""
    stripped = Attestation.from_bytes(Attestation(evidence).to_bytes("json")).stripped()
    assert stripped.encoding == "json"
    platform = evidence.platform
    if isinstance(platform, (parts.GcpSnp, parts.AzureSnp, parts.AzureTdx, parts.Tpm)):
        quote = VTPM_QUOTE._replace(boot_log=b"", ima_log=b"")
        platform = platform._replace(vtpm_quote=quote)
    assert stripped.evidence == Evidence(platform, STACK)


@of_each_kind
def test_with_report_data_replaces_those_of_a_report(evidence: Evidence) -> None:
    """The report data of a plain SEV-SNP report are replaced, signed documents are unchanged."""
    other = bytes(reversed(range(64)))
    found = Attestation(evidence).with_report_data(other).evidence
    assert found.stack == STACK._replace(report_data=other)
    platform = evidence.platform
    if isinstance(platform, parts.GcpSnp):
        platform = platform._replace(report=b"\xff" * 80 + other + b"\xff" * 1040)
    assert found.platform == platform
