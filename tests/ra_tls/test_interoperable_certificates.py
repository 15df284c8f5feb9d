"""RA-TLS certificates of other implementations: captured ones, and made ones that verify."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any, Final

import cbor2
import pytest

from attestkit._crypto.pem import encode_pem, split_pem
from attestkit._crypto.x509.app_certificates import read_certificate
from attestkit.attestation.wire.evidence_parts import SevSnp
from attestkit.errors import AttestKitError, FormatError, UnsupportedError, VerificationError
from attestkit.quote import Quote
from attestkit.ra_tls.interoperable_certificates import (
    MAX_CERTIFICATE,
    CertificateEvidence,
    has_interoperable_evidence,
    read_interoperable,
)
from attestkit.testing import SimulatedTee
from tests.ra_tls.other_maker import (
    GRAMINE,
    INTEROPERABLE,
    OPEN_ENCLAVE,
    QUOTE_TAG,
    SGX_SDK,
    SNP_TAG,
    SPKI,
    WINDOW,
    certificate,
    claims,
    key_claim,
    report_data,
    tagged,
)
from tests.runner.cases import every_case
from tests.vectors import data, needs_shared

NAMES: Final = ("gramine-cert.pem", "rats-tls-cert.pem")


def captured(name: str) -> tuple[bytes, dict[str, Any]]:
    """Return a captured certificate in PEM, and what is expected of it."""
    expected = json.loads(data("services/expected.json"))["ra-tls"][name]
    return data(f"services/ra-tls/{name}"), expected


def refusal(value: bytes) -> AttestKitError:
    """Return the error by which a certificate is refused."""
    with pytest.raises((FormatError, UnsupportedError, VerificationError)) as caught:
        read_interoperable(value)
    return caught.value


# -- captured certificates -------------------------------------------------------------------------


@needs_shared
@pytest.mark.parametrize("name", NAMES)
def test_captured_certificate(name: str) -> None:
    """The report data of the claims are those of the quote, and the claim is about the key."""
    pem, expected = captured(name)
    found = read_interoperable(pem)
    assert (found.form, found.kind) == ("interoperable", "quote")
    assert hashlib.sha256(found.spki).hexdigest() == expected["spki_sha256"]
    assert f"{found.valid_until:%y%m%d%H%M%SZ}" == expected["not_after"]
    quote = Quote.parse(found.evidence)
    assert quote.version == expected["dice"]["quote_version"]
    assert quote.report_data == found.report_data
    bindings = {binding["name"]: binding for binding in expected["dice"]["bindings"]}
    assert found.report_data[:32].hex() == bindings["claims"]["shown"]
    assert found.report_data[32:] == bytes(32)
    assert bindings["key"]["holds"]
    assert has_interoperable_evidence(pem)
    assert (
        read_interoperable(split_pem(pem.decode())[0]) == read_interoperable(pem.decode()) == found
    )


@needs_shared
def test_older_form_of_gramine() -> None:
    """Without the interoperable extension, the older one of the same certificate is used."""
    pem, expected = captured(NAMES[0])
    der = split_pem(pem.decode())[0]
    # Another identifier of the same length in place of the interoperable one.
    older = der.replace(INTEROPERABLE, INTEROPERABLE[:-1] + b"\x7f")
    found = read_interoperable(older)
    assert (found.form, found.kind, found.claims) == ("gramine", "quote", {})
    quote = Quote.parse(found.evidence)
    assert quote.report_data == found.report_data
    assert quote.report_data.hex() == expected["gramine_legacy"]["report_data"]


@needs_shared
def test_gramine_certificate_is_refused_by_strict_readers() -> None:
    """The reason for a reader of its own: NULL parameters of the signature's algorithm."""
    with pytest.raises(FormatError):
        read_certificate(captured(NAMES[0])[0])
    with pytest.raises(FormatError):
        read_certificate(certificate())


@needs_shared
@pytest.mark.parametrize("name", NAMES)
def test_changed_claims_of_a_capture_do_not_fit_the_quote(name: str) -> None:
    """Any change of key or claims gives other report data, or is refused."""
    der = split_pem(captured(name)[0].decode())[0]
    found = read_interoperable(der)
    key = der.index(found.spki)
    buffer = der.index(b"pubkey-hash")
    for at in (*range(key + 27, key + len(found.spki)), *range(buffer, buffer + 49)):
        changed = bytearray(der)
        changed[at] ^= 1
        try:
            other = read_interoperable(bytes(changed))
        except (FormatError, VerificationError):
            continue
        assert other.report_data != found.report_data


# -- made certificates -----------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["tdx", "snp"])
def tee(request: pytest.FixtureRequest) -> Iterator[SimulatedTee]:
    """Provide a TEE of each platform."""
    with SimulatedTee(platform=request.param) as made:
        yield made


def tag_of(tee: SimulatedTee) -> int:
    """Return the CBOR tag of a TEE's evidence."""
    return QUOTE_TAG if tee.attester.has_quotes else SNP_TAG


def verify(tee: SimulatedTee, found: CertificateEvidence) -> None:
    """Verify the evidence of a certificate."""
    platform = tee.attest(nonce=bytes(8)).evidence.platform
    chain = platform.cert_chain if isinstance(platform, SevSnp) else ()
    tee.verify(found.evidence, report_data=found.report_data, snp_certificates=chain)


@pytest.mark.parametrize(("algorithm", "name"), [(1, "sha256"), (7, "sha384"), (8, "sha512")])
def test_interoperable_certificate_verifies(tee: SimulatedTee, algorithm: int, name: str) -> None:
    """Evidence over the claims verifies, whichever hash the claim about the key has."""
    buffer = cbor2.dumps({"pubkey-hash": key_claim(algorithm, name), "nonce": b"n", "more": "x"})
    evidence = tee.raw_quote(report_data(buffer))
    found = read_interoperable(certificate((INTEROPERABLE, tagged(evidence, buffer, tag_of(tee)))))
    assert (found.spki, found.nonce, found.claims["more"]) == (SPKI, b"n", "x")
    assert (found.valid_from, found.valid_until) == WINDOW
    assert found.kind == ("quote" if tag_of(tee) == QUOTE_TAG else "snp")
    verify(tee, found)


def test_evidence_over_other_claims_does_not_verify(tee: SimulatedTee) -> None:
    """Claims that the evidence is not over are refused by the verifier."""
    evidence = tee.raw_quote(report_data(claims()))
    changed = tagged(evidence, claims(nonce=b"new"), tag_of(tee))
    with pytest.raises(VerificationError) as caught:
        verify(tee, read_interoperable(certificate((INTEROPERABLE, changed))))
    assert caught.value.reason == "report_data"


def test_older_form_verifies() -> None:
    """The older form is over the key itself; another key gives other report data."""
    with SimulatedTee(platform="tdx") as tee:
        evidence = tee.raw_quote(hashlib.sha256(SPKI).digest())
        verify(tee, read_interoperable(certificate((GRAMINE, evidence))))
        other = certificate((GRAMINE, tee.raw_quote(hashlib.sha256(b"other").digest())))
        with pytest.raises(VerificationError) as caught:
            verify(tee, read_interoperable(other))
        assert caught.value.reason == "report_data"


def test_interoperable_form_is_preferred() -> None:
    """A certificate with both forms is read by the newer one, and never by the weaker of two."""
    both = certificate((GRAMINE, b"older"), (INTEROPERABLE, tagged(b"newer", claims())))
    assert read_interoperable(both).evidence == b"newer"
    bad = certificate((GRAMINE, b"older"), (INTEROPERABLE, b""))
    assert refusal(bad).reason == "truncated"


@every_case(
    ("tag", "name"),
    [
        (60001, "Intel report"),
        (60002, "Intel report"),
        (0xC0C000, "Confidential Containers"),
        (0xC0C001, "Confidential Containers"),
        (0x17A000, "Intel Trust Authority"),
        (0x17A001, "Intel Trust Authority"),
        (60003, "tag 60003"),
    ],
)
def test_other_evidence_is_refused_by_name(tag: int, name: str) -> None:
    """Evidence that cannot be verified here is named."""
    error = refusal(certificate((INTEROPERABLE, tagged(b"", claims(), tag))))
    assert (type(error), error.reason) == (UnsupportedError, "feature")
    assert name in str(error)


@pytest.mark.parametrize(("oid", "name"), [(SGX_SDK, "SGX"), (OPEN_ENCLAVE, "Open Enclave")])
def test_other_extension_is_refused_by_name(oid: bytes, name: str) -> None:
    """A bare quote says nothing by itself, and reports of Open Enclave are not supported."""
    made = certificate((oid, b"evidence"))
    error = refusal(made)
    assert (type(error), error.reason) == (UnsupportedError, "feature")
    assert name in str(error)
    assert has_interoperable_evidence(made)
    beside = certificate((oid, b"bare"), (INTEROPERABLE, tagged(b"quote", claims())))
    assert read_interoperable(beside).evidence == b"quote"


def test_certificate_without_evidence() -> None:
    """A certificate without such an extension has no evidence."""
    error = refusal(certificate())
    assert (type(error), error.reason) == (VerificationError, "no_evidence")
    assert not has_interoperable_evidence(certificate())
    assert not has_interoperable_evidence(certificate((b"\x55\x1d\x0e", b"")))


def test_claim_about_another_key_is_refused() -> None:
    """A relay has evidence of another key."""
    buffer = cbor2.dumps({"pubkey-hash": key_claim(spki=b"other")})
    error = refusal(certificate((INTEROPERABLE, tagged(b"", buffer))))
    assert (type(error), error.reason) == (VerificationError, "report_data")


@every_case(
    ("buffer", "reason"),
    [
        (b"", "truncated"),
        (cbor2.dumps({}), "missing"),
        (cbor2.dumps([]), "wrong_type"),
        (cbor2.dumps({1: b""}), "wrong_type"),
        (cbor2.dumps({"pubkey-hash": [1, b""]}), "wrong_type"),
        (cbor2.dumps({"pubkey-hash": b""}), "truncated"),
        (cbor2.dumps({"pubkey-hash": cbor2.dumps([1])}), "wrong_type"),
        (cbor2.dumps({"pubkey-hash": cbor2.dumps([1, "x"])}), "wrong_type"),
        (cbor2.dumps({"pubkey-hash": key_claim(2)}), "unsupported_algorithm"),
        (cbor2.dumps({"pubkey-hash": cbor2.dumps([True, b"x"])}), "unsupported_algorithm"),
        (cbor2.dumps({"pubkey-hash": cbor2.dumps([[], b"x"])}), "unsupported_algorithm"),
        (cbor2.dumps({"pubkey-hash": cbor2.dumps([{}, b"x"])}), "unsupported_algorithm"),
        (cbor2.dumps({"pubkey-hash": key_claim(7)}), "report_data"),
        (claims(nonce="text"), "wrong_type"),
        (claims() + b"\0", "trailing_data"),
        (b"\xa2" + claims()[1:] + claims()[1:], "duplicate"),
    ],
)
def test_malformed_claims_are_refused(buffer: bytes, reason: str) -> None:
    """Claims are a map with names, of which one is about the key."""
    assert refusal(certificate((INTEROPERABLE, tagged(b"", buffer)))).reason == reason


@every_case(
    "value",
    [
        cbor2.dumps([b"", claims()]),
        cbor2.dumps(cbor2.CBORTag(QUOTE_TAG, [b""])),
        cbor2.dumps(cbor2.CBORTag(QUOTE_TAG, [b"", claims(), b""])),
        cbor2.dumps(cbor2.CBORTag(QUOTE_TAG, ["", claims()])),
        cbor2.dumps(cbor2.CBORTag(QUOTE_TAG, {"a": b""})),
        tagged(b"", claims()) + b"\0",
    ],
)
def test_malformed_evidence_is_refused(value: bytes) -> None:
    """Evidence is one tag with an array of two byte strings."""
    assert isinstance(refusal(certificate((INTEROPERABLE, value))), FormatError)


def test_every_cut_length_is_refused() -> None:
    """Each prefix of a certificate, and of its evidence, is a FormatError."""
    value = tagged(b"evidence", claims(nonce=b"n"))
    whole = certificate((INTEROPERABLE, value))
    for size in range(len(whole)):
        assert isinstance(refusal(whole[:size]), FormatError)
    for size in range(len(value)):
        assert isinstance(refusal(certificate((INTEROPERABLE, value[:size]))), FormatError)


def test_extension_that_occurs_twice_is_refused() -> None:
    """It would depend on the reader which one counts."""
    value = tagged(b"", claims())
    error = refusal(certificate((INTEROPERABLE, value), (INTEROPERABLE, value)))
    assert (type(error), error.reason) == (FormatError, "duplicate")


@every_case(
    "value",
    [b"", b"-----BEGIN", b"-----BEGIN CERTIFICATE-----\n\xff-----END CERTIFICATE-----", b"\x30\0"],
)
def test_other_bytes_are_refused(value: bytes) -> None:
    """Malformed certificates are a FormatError, and so is one that is too large."""
    assert isinstance(refusal(value), FormatError)
    large = certificate((b"\x55\x1d\x0e", bytes(MAX_CERTIFICATE)))
    assert refusal(large).reason == "too_large"
    with pytest.raises(FormatError) as caught:
        has_interoperable_evidence(encode_pem("CERTIFICATE", large) + "\n" * MAX_CERTIFICATE)
    assert caught.value.reason == "too_large"
