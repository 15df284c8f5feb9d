"""Tests of a TPM's quote beside a NitroTPM document that has its key."""

import hashlib
import json
from typing import Any, Final

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestkit._crypto.ecdsa import P256_SPKI_HEAD
from attestkit._crypto.x509.vendor_roots import AWS_ROOT
from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import Evidence, PcrValue, Stack, Tpm, VtpmQuote
from attestkit.errors import FormatError, SignatureError, VerificationError
from attestkit.tpm import PcrSelection, TpmsAttest, TpmtSignature
from attestkit.verifier import AppraisalPolicy, Verifier
from attestkit.verifier.authenticators import Authenticators
from attestkit.verifier.evidence.checks import ParsedEvidence
from attestkit.verifier.platforms.nitro import Nitro
from attestkit.verifier.platforms.nitro_tpm import authenticate_quote_with_document
from tests.raising import raises
from tests.vectors import data, needs_shared
from tests.verifier.platforms import aws
from tests.verifier.platforms.test_nitro_tpm import GENUINE_AT, genuine

SAMPLE: Final[dict[str, Any]] = json.loads(
    data("vtpm/aws/vaportpm/test-nitro-fixture.json") or b"{}"
)


def sample(**changes: Any) -> Tpm:
    """Return the genuine quote, whose signature the sample has in DER."""
    quoted = SAMPLE["attestation"]["tpm"]["ecc_p256"]
    r, s = decode_dss_signature(bytes.fromhex(quoted["signature"]))
    signature = TpmtSignature(
        "ecdsa", "sha256", r=r.to_bytes(32, "big"), s=s.to_bytes(32, "big")
    ).encode()
    values = [
        PcrValue(int(index), "sha384", bytes.fromhex(value))
        for index, value in SAMPLE["pcrs"]["sha384"].items()
    ]
    quote = VtpmQuote(
        bytes.fromhex(quoted["attest_data"]),
        signature,
        tuple(values),
        ak_certificates=(bytes.fromhex(SAMPLE["attestation"]["nitro"]["document"]),),
    )
    return Tpm(quote._replace(**changes))


def point() -> bytes:
    """Return the key of the sample, x and y."""
    key = SAMPLE["ak_pubkeys"]["ecc_p256"]
    return bytes.fromhex(key["x"] + key["y"])


@needs_shared
def test_nitro_tpm_quote_of_sample_verifies_with_its_document() -> None:
    """Quote and document of one instance have the same key, nonce and PCRs."""
    assert sample().vtpm_quote.ak_certificates == (genuine(),)
    spki = P256_SPKI_HEAD + point()
    for public in (b"", b"\4" + point(), spki):
        found = authenticate_quote_with_document(
            Nitro(), sample(ak_public=public), bytes(64), GENUINE_AT
        )
        assert found.report_data == bytes.fromhex(SAMPLE["nonce"]).ljust(64, b"\0")
        assert found.vtpm is not None
        assert found.vtpm.attestation_key == spki
        assert found.vtpm.reset_count is None  # only the document is proven
        assert found.vtpm.key_trust == "certificate"
        assert [step.check for step in found.steps if step.outcome == "caution"] == [
            "attestation_key"
        ]


@needs_shared
def test_nitro_tpm_quote_needs_the_root_of_aws_among_the_roots_of_the_verifier() -> None:
    """Roots of `ak_roots` replace AWS's root for a TPM alone, unless it is one of them."""
    nonce = bytes.fromhex(SAMPLE["nonce"])
    evidence = Attestation(Evidence(sample(), Stack(nonce.ljust(64, b"\0"), (), "")))
    policy = AppraisalPolicy.default().replace(platforms={"tpm"})
    other = aws.root()
    for roots in ((), (AWS_ROOT,), (other, AWS_ROOT)):
        verifier = Verifier(policy=policy, ak_roots=roots)
        assert not verifier.verify(evidence, report_data=nonce, now=GENUINE_AT).simulated
    with raises(SignatureError, "untrusted_root"):
        Verifier(policy=policy, ak_roots=[other]).verify(
            evidence, report_data=nonce, now=GENUINE_AT
        )


@needs_shared
def test_nitro_tpm_quote_by_another_key_is_rejected() -> None:
    """A key other than the document's is refused, and so is its signature."""
    other = aws.key("another key", ec.SECP256R1).public_key()
    spki = other.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    with raises(SignatureError, "ak_mismatch"):
        authenticate_quote_with_document(Nitro(), sample(ak_public=spki), bytes(64), GENUINE_AT)
    message = bytearray(sample().vtpm_quote.message)
    message[-1] ^= 1
    changed = sample(message=bytes(message))
    with raises(SignatureError, "tpm_quote_bad_signature"):
        authenticate_quote_with_document(Nitro(), changed, bytes(64), GENUINE_AT)
    with pytest.raises(VerificationError):
        authenticate_quote_with_document(Nitro(), sample(), bytes(64), aws.NOW)


@needs_shared
@pytest.mark.parametrize(
    ("changes", "altered", "kind", "reason"),
    [
        ({"public_key": None}, None, FormatError, "missing"),
        ({"nonce": b"another nonce"}, None, VerificationError, "tpm_qualifying_data"),
        ({}, 4, VerificationError, "pcr_digest"),
        ({}, None, None, ""),
        ({"nonce": None}, None, VerificationError, "tpm_qualifying_data"),
    ],
)
def test_nitro_tpm_quote_must_agree_with_its_document(
    changes: dict[str, Any],
    altered: int | None,
    kind: type[VerificationError | FormatError] | None,
    reason: str,
) -> None:
    """Key, nonce and every PCR of quote and document are compared."""
    pcrs = {int(at): bytes.fromhex(value) for at, value in SAMPLE["pcrs"]["sha384"].items()}
    if altered is not None:
        pcrs[altered] = bytes(48)
    nonce = bytes.fromhex(SAMPLE["nonce"])
    own = {"pcrs": ..., "nitrotpm_pcrs": pcrs, "public_key": b"\4" + point(), "nonce": nonce}
    document = aws.document(aws.payload(**{**own, **changes}))
    evidence = sample(ak_certificates=(document,))
    if kind is None:
        authenticate_quote_with_document(Nitro(aws.root()), evidence, bytes(64), aws.NOW)
        return
    with raises(kind, reason):
        authenticate_quote_with_document(Nitro(aws.root()), evidence, bytes(64), aws.NOW)


@needs_shared
def test_nitro_tpm_quote_is_verified_as_evidence_of_a_tpm() -> None:
    """The verifier finds the document in place of a certificate, under AWS's root."""
    report_data = bytes.fromhex(SAMPLE["nonce"]).ljust(64, b"\0")
    evidence = Attestation(Evidence(sample(), Stack(report_data, (), "")))
    verifier = Verifier()
    for given in (evidence, evidence.to_bytes("cbor")):
        found = verifier.examine(given, now=GENUINE_AT)
        assert found.authenticate().chain[-1] == AWS_ROOT
    parsed = ParsedEvidence.of(evidence)
    assert Authenticators(None).genuine(parsed)
    assert not Authenticators(aws.root()).genuine(parsed)


@needs_shared
def test_nitro_tpm_quote_over_another_bank_is_rejected() -> None:
    """PCRs that the document does not have are not proven, whatever key signed them."""
    own = aws.key("own", ec.SECP256R1)
    spki = own.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    selection = PcrSelection("sha256", (7,))
    digest = hashlib.sha256(bytes(32)).digest()
    message = TpmsAttest.parse(sample().vtpm_quote.message)._replace(
        selections=(selection,), pcr_digest=digest, extra_data=b"nonce"
    )
    r, s = decode_dss_signature(own.sign(message.encode(), ec.ECDSA(SHA256())))
    signature = TpmtSignature(
        "ecdsa", "sha256", r=r.to_bytes(32, "big"), s=s.to_bytes(32, "big")
    ).encode()
    pcrs = {index: bytes(48) for index in range(24)}
    fields = {"pcrs": ..., "nitrotpm_pcrs": pcrs, "public_key": spki, "nonce": b"nonce"}
    evidence = sample(
        message=message.encode(),
        signature=signature,
        pcr_values=(PcrValue(7, "sha256", bytes(32)),),
        ak_certificates=(aws.document(aws.payload(**fields)),),
    )
    with raises(VerificationError, "pcr_selection"):
        authenticate_quote_with_document(Nitro(aws.root()), evidence, bytes(64), aws.NOW)
