"""Authentication of a TPM's quote beside a NitroTPM document that has its key (vtpm.md, 8.1).

The evidence is that of a plain TPM, with the document in place of the key's certificate. The
document alone proves the PCRs of the instance. A program on the instance chose the key in it, which
need not be a key of the TPM. So the quote must not prove more than the document: only PCRs of its
bank are accepted, with the document's values.
"""

import hmac
from datetime import datetime
from typing import Final

from attestkit._crypto.ecdsa import P256_SPKI_HEAD
from attestkit._crypto.p384 import P384_SPKI_HEAD
from attestkit._crypto.public_key import PublicVerificationKey
from attestkit._verification_steps import VerificationStep
from attestkit.attestation.nitro import NitroDocument
from attestkit.attestation.wire.evidence_parts import Tpm, VtpmQuote
from attestkit.errors import FormatError, SignatureError, VerificationError
from attestkit.verifier.claims import Authenticated, VtpmFacts, caution, passed
from attestkit.verifier.platforms.nitro import Nitro
from attestkit.verifier.platforms.nitro_tpm import BANK, WITHOUT_TEE
from attestkit.verifier.platforms.tpm import signed_report_data
from attestkit.verifier.platforms.vtpm.attestation_key import AttestationKey, read_attestation_key
from attestkit.verifier.platforms.vtpm.quote import VerifiedQuote

_UNCOMPRESSED: Final = 0x04  # first byte of an uncompressed point
_SPKI_HEADS: Final = {65: P256_SPKI_HEAD, 97: P384_SPKI_HEAD}  # by the size of a point

_KEY_STEP: Final = caution(
    "attestation_key",
    "a NitroTPM document names the attestation key; a program on the instance chose it, so that it "
    "is a key of the TPM is not proven",
)


def authenticate_quote_with_document(
    aws: Nitro, platform: Tpm, report_data: bytes, now: datetime
) -> Authenticated:
    """Verify a quote and the NitroTPM document that has its key, and return their content.

    Args:
        aws: Authenticator of the document.
        platform: The quote; `ak_certificates` is the document. Its key may be empty.
        report_data: Report data beside the quote, 64 bytes; the quote may be over their SHA-256.
        now: Time of the verification, with a time zone.

    Raises:
        FormatError: If document, quote, signature or key is malformed.
        SignatureError: If a signature or certificate is not valid, or the quote's key is not the
            document's (`ak_mismatch`).
        VerificationError: If the document is too old (`document_expired`), the quote selects
            another bank than the document's (`pcr_selection`), a PCR of the quote is not the
            document's (`pcr_digest`), or the document is not over the quote's nonce
            (`tpm_qualifying_data`).
    """
    evidence = platform.vtpm_quote
    (document,) = evidence.ak_certificates
    signed = aws.verify_document(document, now, tpm=True)
    quote, step = _verify_quote(evidence, signed.content)
    return Authenticated(
        report_data=signed_report_data(quote.attest.extra_data, report_data),
        device=signed.content.module_id.encode(),
        chain=signed.chain,
        steps=(*signed.steps, *quote.steps, step, _KEY_STEP, WITHOUT_TEE),
        vtpm=_facts(quote, signed.content),
    )


def _facts(quote: VerifiedQuote, document: NitroDocument) -> VtpmFacts:
    """Return the facts of a quote that the document proves; clock and counts may be invented."""
    return VtpmFacts(
        attestation_key=quote.key.spki,
        key_trust="certificate",
        joins=(),
        pcrs=quote.pcrs,
        details=(("module_id", document.module_id),),
    )


def _verify_quote(
    evidence: VtpmQuote, document: NitroDocument
) -> tuple[VerifiedQuote, VerificationStep]:
    """Verify a quote by the key of a document, and compare PCRs and nonce of both."""
    key = _find_key(evidence.ak_public, document)
    quote = key.verify_quote(evidence)
    _check_pcrs(quote, document)
    return quote, _check_nonce(quote.attest.extra_data, document)


def _find_key(public: bytes, document: NitroDocument) -> AttestationKey:
    """Return the key of a quote, which the document must have."""
    if not document.public_key:
        message = "NitroTPM document: public_key missing, which must be the quote's key"
        raise FormatError(message, reason="missing")
    named = read_attestation_key(_public_area(document.public_key), ())
    if not public:
        return named
    key = read_attestation_key(_public_area(public), ())
    if not hmac.compare_digest(key.spki, named.spki):
        message = "TPM quote: its key is not the public_key of the NitroTPM document"
        raise SignatureError(message, reason="ak_mismatch")
    return key


def _public_area(key: bytes) -> bytes:
    """Return a key as TPMT_PUBLIC or SubjectPublicKeyInfo; it may be a point of P-256 or P-384."""
    head = _SPKI_HEADS.get(len(key))
    if head is None or key[0] != _UNCOMPRESSED:
        return key
    return PublicVerificationKey(head + key[1:]).spki


def _check_pcrs(quote: VerifiedQuote, document: NitroDocument) -> None:
    """Check that the quoted PCRs are of the document's bank, with the document's values."""
    for bank, index, value in quote.pcrs:
        if bank != BANK:
            message = f"TPM quote: PCRs of {bank}; the NitroTPM document has those of {BANK} only"
            raise VerificationError(message, reason="pcr_selection")
        if not hmac.compare_digest(value, document.pcr(index)):
            raise VerificationError(
                f"TPM quote: PCR {index} of {bank} is {value.hex()}, but the NitroTPM document has "
                f"{document.pcr(index).hex()}",
                reason="pcr_digest",
            )


def _check_nonce(extra: bytes, document: NitroDocument) -> VerificationStep:
    if not document.nonce:
        # The quote's key may be software; only the nonce of the document proves freshness.
        raise VerificationError(
            "NitroTPM document: nonce missing; request the document over the quote's qualifying "
            "data",
            reason="tpm_qualifying_data",
        )
    if not hmac.compare_digest(document.nonce, extra):
        raise VerificationError(
            f"TPM quote: qualifying data are {extra.hex()}, must be the nonce of the NitroTPM "
            f"document, {document.nonce.hex()}",
            reason="tpm_qualifying_data",
        )
    return passed("user_data", "quote and document are over the same nonce")
