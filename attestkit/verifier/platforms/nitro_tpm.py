"""Authentication of AWS NitroTPM evidence.

The document of a NitroTPM has all PCRs of the SHA-384 bank and is signed by the hypervisor under
AWS's root; `nitro` verifies the signature. There is no evidence of a TEE: the hypervisor is
trusted. The evidence of a dstack guest has in addition the runtime events that its PCR 14 replays
to; a bare document, as AWS's tools write it, has none.

A document may also be in place of the certificate of a plain TPM's key, beside its quote. The
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
from attestkit._outcomes.steps import VerificationStep, caution, passed, skipped
from attestkit.attestation import Attestation
from attestkit.attestation.nitro import NitroDocument
from attestkit.attestation.wire.evidence_parts import NitroTpm, Tpm, VtpmQuote
from attestkit.errors import FormatError, ReplayError, SignatureError, VerificationError
from attestkit.event_log.journal_protocols import ZERO, replay_from
from attestkit.event_log.runtime_events import check_runtime_events
from attestkit.tpm.pcrs import EVENT_PCR
from attestkit.verifier.claims import Authenticated, VtpmFacts
from attestkit.verifier.platforms.nitro import Nitro
from attestkit.verifier.platforms.tpm import signed_report_data
from attestkit.verifier.platforms.vtpm.attestation_key import AttestationKey, read_attestation_key
from attestkit.verifier.platforms.vtpm.pcr_logs import unexplained_steps
from attestkit.verifier.platforms.vtpm.quote import VerifiedQuote

BANK: Final = "sha384"
WITHOUT_TEE: Final = skipped(
    "hardware_to_ak",
    "the evidence has no report of a TEE: the PCRs are a statement of the hypervisor, which is "
    "trusted",
)
_REPORT_DATA_SIZE: Final = 64  # bytes
_UNCOMPRESSED: Final = 0x04  # first byte of an uncompressed point
_SPKI_HEADS: Final = {65: P256_SPKI_HEAD, 97: P384_SPKI_HEAD}  # by the size of a point

_KEY_STEP: Final = caution(
    "attestation_key",
    "a NitroTPM document names the attestation key; a program on the instance chose it, so that it "
    "is a key of the TPM is not proven",
)


def authenticate_nitro_tpm(aws: Nitro, attestation: Attestation, now: datetime) -> Authenticated:
    """Verify the evidence of a NitroTPM, and return its signed content.

    Args:
        aws: Authenticator of the document.
        attestation: Evidence whose platform is `NitroTpm`.
        now: Time of the verification, with a time zone.

    Raises:
        FormatError: If the document is malformed, of an enclave, or without PCR 14.
        VerificationError: As for `Nitro.verify_document`, and if the document's user data are
            missing, or not the report data of the evidence (`report_data_mismatch`), or the digest
            of a runtime event is ambiguous (`event`).
        ReplayError: If PCR 14 is not the replay of the runtime events (`pcr_mismatch`).
    """
    platform = attestation.evidence.platform
    assert isinstance(platform, NitroTpm)
    signed = aws.verify_document(platform.attestation_doc, now, tpm=True)
    found = signed.content
    user_data = _check_user_data(found, attestation)
    events = _replay_runtime_events(attestation)
    facts = _facts(found, ((BANK, EVENT_PCR),) if events.outcome == "passed" else ())
    rest = unexplained_steps(
        {(bank, index): value for bank, index, value in facts.pcrs}, facts.replayed
    )
    return Authenticated(
        report_data=found.user_data,
        device=found.module_id.encode(),
        chain=signed.chain,
        steps=(*signed.steps, user_data, WITHOUT_TEE, *rest, events),
        vtpm=facts,
    )


def _facts(document: NitroDocument, replayed: tuple[tuple[str, int], ...]) -> VtpmFacts:
    """Return the facts of a document: its PCRs, and no attestation key, because it has none.

    Args:
        document: The verified document.
        replayed: Bank and index of the PCRs that runtime events replay to.
    """
    return VtpmFacts(
        attestation_key=b"",
        key_trust="certificate",
        joins=(),
        pcrs=tuple([(BANK, index, value) for index, value in sorted(document.pcrs.items())]),
        replayed=replayed,
        details=_details(document),
    )


def _details(document: NitroDocument) -> tuple[tuple[str, str], ...]:
    """Return the names and values of module id, nonce and public key, as `VtpmFacts.details`.

    The requester of the document chose nonce and public key.
    """
    found = [("module_id", document.module_id)]
    if document.nonce:
        found.append(("nonce", document.nonce.hex()))
    if document.public_key:
        found.append(("public_key", document.public_key.hex()))
    return tuple(found)


def _replay_runtime_events(attestation: Attestation) -> VerificationStep:
    """Compare PCR 14 with the replay of the runtime events; skipped for a bare document.

    Raises:
        ReplayError: If PCR 14 differs (`pcr_mismatch`).
        VerificationError: If an event's digest is ambiguous (`event`).
        FormatError: If the document has no PCR 14.
    """
    if attestation.is_bare:
        text = f"replay was left out: a bare document has no events, so PCR {EVENT_PCR} is unproven"
        return skipped("event_log", text)
    document = attestation.nitro_document
    assert document is not None
    quoted, events = document.pcr(EVENT_PCR), attestation.runtime_events
    check_runtime_events(events)
    replayed = replay_from(ZERO, events)
    if not hmac.compare_digest(quoted, replayed):
        raise ReplayError(
            f"NitroTPM document: PCR {EVENT_PCR} must be {replayed.hex()}, to which the runtime "
            f"events replay, not {quoted.hex()}",
            reason="pcr_mismatch",
            expected=replayed,
            actual=quoted,
        )
    text = f"the {len(events)} runtime events replay to PCR {EVENT_PCR} of the SHA-384 bank"
    return passed("event_log", text)


def _check_user_data(document: NitroDocument, attestation: Attestation) -> VerificationStep:
    """Compare the user data of a document with the report data of the evidence."""
    signed, stated = document.user_data, attestation.report_data
    if attestation.is_bare:
        if not hmac.compare_digest(signed, stated):
            raise _user_data_error("must be the report data of the evidence")
        if not signed:
            return skipped("user_data", "the document has no user data, so it is bound to nothing")
        return passed("user_data", f"the document has user data of {len(signed)} bytes")
    if not signed:
        raise _user_data_error("missing, so nothing signs the report data")
    if len(signed) != _REPORT_DATA_SIZE or not hmac.compare_digest(signed, stated):
        raise _user_data_error("must be the report data of the evidence")
    return passed("user_data", "the document's user data is the report data of the evidence")


def _user_data_error(problem: str) -> VerificationError:
    return VerificationError(
        f"NitroTPM document: user_data: {problem}; request a document over the report data",
        reason="report_data_mismatch",
    )


def authenticate_quote_with_document(
    aws: Nitro, platform: Tpm, report_data: bytes, now: datetime
) -> Authenticated:
    """Verify a TPM's quote and the NitroTPM document that has its key; return their content.

    Args:
        aws: Authenticator of the document.
        platform: The quote; its `ak_certificates` is the document, its `ak_public` may be empty.
        report_data: Report data beside the quote, 64 bytes; the quote may be over their SHA-256.
        now: Time of the verification, with a time zone.

    Raises:
        FormatError: If document, quote, signature or key is malformed.
        SignatureError: If a signature or certificate is not valid, or the quote's key is not the
            document's (`ak_mismatch`).
        VerificationError: If the document is too old (`document_expired`), the quote selects a
            bank other than the document's (`pcr_selection`), a PCR of the quote is not the
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
        vtpm=_quote_facts(quote, signed.content),
    )


def _quote_facts(quote: VerifiedQuote, document: NitroDocument) -> VtpmFacts:
    """Return the facts of a quote that the document confirms; not its clock, which may be false."""
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
    """Return the key of a quote, which must be the `public_key` of the document.

    Args:
        public: Key stated beside the quote: TPMT_PUBLIC, SubjectPublicKeyInfo or point; empty if
            none is.
        document: The verified document.

    Raises:
        FormatError: If the document has no key, or a key is malformed.
        SignatureError: If the keys differ (`ak_mismatch`).
    """
    if not document.public_key:
        message = "NitroTPM document: public_key missing; it must be the quote's key"
        raise FormatError(message, reason="missing")
    named = read_attestation_key(_public_area(document.public_key), ())
    if not public:
        return named
    key = read_attestation_key(_public_area(public), ())
    if not hmac.compare_digest(key.spki, named.spki):
        message = "TPM quote: its key must be the public_key of the NitroTPM document"
        raise SignatureError(message, reason="ak_mismatch")
    return key


def _public_area(key: bytes) -> bytes:
    """Return a bare point of P-256 or P-384 as SubjectPublicKeyInfo (DER), other keys unchanged.

    Args:
        key: TPMT_PUBLIC, SubjectPublicKeyInfo, or an uncompressed point.
    """
    head = _SPKI_HEADS.get(len(key))
    if head is None or key[0] != _UNCOMPRESSED:
        return key
    return PublicVerificationKey(head + key[1:]).spki


def _check_pcrs(quote: VerifiedQuote, document: NitroDocument) -> None:
    """Check that the quoted PCRs are of the document's bank, with the document's values."""
    for bank, index, value in quote.pcrs:
        if bank != BANK:
            message = f"TPM quote: PCRs must be of {BANK}, as in the NitroTPM document, not {bank}"
            raise VerificationError(message, reason="pcr_selection")
        if not hmac.compare_digest(value, document.pcr(index)):
            raise VerificationError(
                f"TPM quote: PCR {index} of {bank} must be {document.pcr(index).hex()}, as in the "
                f"NitroTPM document, not {value.hex()}",
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
            f"TPM quote: qualifying data must be the nonce of the NitroTPM document, "
            f"{document.nonce.hex()}, not {extra.hex()}",
            reason="tpm_qualifying_data",
        )
    return passed("user_data", "quote and document are over the same nonce")
