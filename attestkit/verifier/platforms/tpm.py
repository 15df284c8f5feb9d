"""Authentication of a TPM's quote without hardware evidence of a TEE (vtpm.md, section 10)."""

import hmac
from collections.abc import Sequence
from typing import Final

from attestkit._crypto.hashes import sha256
from attestkit._verification_steps import VerificationStep
from attestkit.attestation.wire.evidence_parts import Tpm
from attestkit.errors import VerificationError
from attestkit.verifier.claims import Authenticated, skipped
from attestkit.verifier.platforms.vtpm.attestation_key import (
    AkTrust,
    CertifiedKey,
    gce_details,
    instance_step,
    read_attestation_key,
)
from attestkit.verifier.platforms.vtpm.quote import VerifiedQuote

_REPORT_DATA: Final = 64  # bytes
_CUT: Final = 32  # bytes of report data that Confidential Containers' attester quotes

WITHOUT_TEE: Final = skipped(
    "hardware_to_ak",
    "no report of a TEE was verified: the PCRs are a statement of the TPM, wherever it is",
)

Details = tuple[tuple[str, str], ...]


def authenticate_tpm(platform: Tpm, report_data: bytes, trust: AkTrust) -> Authenticated:
    """Verify the quote of a TPM, and return its content. Logs are not replayed.

    Args:
        platform: The quote, with key and certificates.
        report_data: Report data beside the quote, 64 bytes; the quote may be over their SHA-256.
        trust: Roots and keys that the verifier trusts, and the time.

    Raises:
        FormatError: If quote, signature or key is malformed.
        SignatureError: If the signature is not valid, or nothing certifies the key (`ak_unknown`).
        VerificationError: If the PCR values are not those of the quote, it selects only SHA-1
            PCRs, or its qualifying data are not report data.
        CollateralError: If a certificate is missing; CollateralExpiredError if it is not valid.
    """
    evidence = platform.vtpm_quote
    key = read_attestation_key(evidence.ak_public, evidence.ak_certificates)
    quote = key.verify_quote(evidence)
    require_strong_bank([quote])
    certified = trust.verify_key(key, evidence.ak_certificates)
    details, instance = instance_facts(certified)
    return Authenticated(
        report_data=signed_report_data(quote.attest.extra_data, report_data),
        chain=certified.chain,
        steps=(*quote.steps, *certified.steps, *instance, WITHOUT_TEE),
        simulated=certified.simulated or quote.attest.is_simulated,
        vtpm=quote.facts(certified.trust, details=details),
    )


def instance_facts(certified: CertifiedKey) -> tuple[Details, tuple[VerificationStep, ...]]:
    """Return what a verified certificate says of a VM of Google, and the step."""
    found = None if certified.certificate is None else certified.certificate.gce
    return ((), ()) if found is None else (gce_details(found), (instance_step(found),))


def signed_report_data(extra: bytes, report_data: bytes) -> bytes:
    """Return the report data that the qualifying data of a quote stand for, 64 bytes.

    Args:
        extra: Qualifying data.
        report_data: Report data beside the quote, returned if the qualifying data are their
            SHA-256; a TPM need not accept 64 bytes (vtpm.md, section 3.5).

    Raises:
        VerificationError: If there are more than 64 bytes (`tpm_qualifying_data`).
    """
    if hmac.compare_digest(extra, sha256(report_data)):
        return report_data
    if len(extra) > _REPORT_DATA:
        message = f"TPM quote: {len(extra)} bytes of qualifying data, over {_REPORT_DATA}"
        raise VerificationError(message, reason="tpm_qualifying_data")
    return extra.ljust(_REPORT_DATA, b"\0")


def restore_report_data(signed: bytes, expected: bytes, *, is_hash: bool) -> bytes:
    """Return the expected report data if a quote stands for them, else the signed ones.

    CoCo's JSON and messages of go-tpm-tools do not have the report data beside the quote. The
    qualifying data may be their SHA-256, or their first 32 bytes, which suffice only if the report
    data are a hash.

    Args:
        signed: Report data as of `signed_report_data`.
        expected: Report data that the caller expects, 64 bytes.
        is_hash: Whether these are a hash of 64 bytes, such as of a nonce.
    """
    accepted = [sha256(expected), expected[:_CUT]] if is_hash else [sha256(expected)]
    found = [hmac.compare_digest(signed, one.ljust(_REPORT_DATA, b"\0")) for one in accepted]
    return expected if any(found) else signed


def require_strong_bank(quotes: Sequence[VerifiedQuote]) -> None:
    """Check that a quote selects a PCR of another bank than SHA-1.

    Raises:
        VerificationError: If none does (`pcr_selection`).
    """
    if all(bank == "sha1" for quote in quotes for bank, _, _ in quote.pcrs):
        message = "TPM quote: only SHA-1 PCRs; it must select PCRs of SHA-256 or a longer hash"
        raise VerificationError(message, reason="pcr_selection")
