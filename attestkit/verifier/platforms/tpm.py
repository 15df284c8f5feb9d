"""Authentication of a TPM's quote without hardware evidence of a TEE.

Every quote of a message of go-tpm-tools must verify, with the same key and qualifying data;
go-tpm-tools accepts the first that does. Hardware evidence in a message, and its canonical event
log, are not verified.
"""

import hmac
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from attestkit._crypto.hashes import sha256
from attestkit._outcomes.steps import VerificationStep, skipped
from attestkit._sanitize import shown
from attestkit.attestation.go_tpm_tools import GceInstanceInfo, GoTpmToolsMessage
from attestkit.attestation.wire.evidence_parts import Tpm
from attestkit.errors import FormatError, VerificationError
from attestkit.verifier.claims import Authenticated
from attestkit.verifier.platforms.vtpm.ak_chain import read_evidence_certificate, read_gce_instance
from attestkit.verifier.platforms.vtpm.attestation_key import (
    AkTrust,
    AttestationKey,
    CertifiedKey,
    gce_details,
    instance_step,
    read_attestation_key,
)
from attestkit.verifier.platforms.vtpm.quote import Pcrs, VerifiedQuote

_REPORT_DATA: Final = 64  # bytes
_CUT: Final = 32  # bytes of report data that Confidential Containers' attester quotes
WITHOUT_TEE: Final = skipped(
    "hardware_to_ak",
    "no report of a TEE was verified: the PCRs are a statement of the TPM, wherever it is",
)
Details = tuple[tuple[str, str], ...]


def authenticate_tpm(platform: Tpm, report_data: bytes, trust: AkTrust) -> Authenticated:
    """Verify a TPM's quote without hardware evidence; return its content. Logs are not replayed.

    Args:
        platform: The quote, with key and certificates.
        report_data: Report data beside the quote, 64 bytes; the quote may be over their SHA-256.
        trust: Roots and keys that the verifier trusts, and the time.

    Raises:
        FormatError: If quote, signature or key is malformed.
        SignatureError: If the signature is not valid, or nothing certifies the key (`ak_unknown`).
        VerificationError: If the PCR values are not those of the quote, the quote selects only
            SHA-1 PCRs, or its qualifying data are over 64 bytes.
        CollateralError: If a certificate is missing; CollateralExpiredError if one is not valid
            now.
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
    """Return details and step of the Google VM that a verified AK certificate names; or nothing."""
    found = None if certified.certificate is None else certified.certificate.gce
    return ((), ()) if found is None else (gce_details(found), (instance_step(found),))


def signed_report_data(extra: bytes, report_data: bytes) -> bytes:
    """Return the report data of a quote, 64 bytes: its qualifying data, or what they hash.

    Args:
        extra: Qualifying data of the quote.
        report_data: Report data beside the quote, returned if the qualifying data are their
            SHA-256; a TPM need not accept 64 bytes.

    Raises:
        VerificationError: If the qualifying data have over 64 bytes (`tpm_qualifying_data`).
    """
    if hmac.compare_digest(extra, sha256(report_data)):
        return report_data
    if len(extra) > _REPORT_DATA:
        message = f"TPM quote: {len(extra)} bytes of qualifying data, at most {_REPORT_DATA}"
        raise VerificationError(message, reason="tpm_qualifying_data")
    return extra.ljust(_REPORT_DATA, b"\0")


def restore_report_data(signed: bytes, expected: bytes, *, is_hash: bool) -> bytes:
    """Return the expected report data if a quote has their hash, else the signed ones.

    CoCo's JSON and messages of go-tpm-tools do not have the report data beside the quote. The
    qualifying data may be their SHA-256, or their first 32 bytes, which suffice only if the report
    data are a hash.

    Args:
        signed: Report data, as returned by `signed_report_data`.
        expected: Report data that the caller expects, 64 bytes.
        is_hash: Whether the expected report data are a hash of 64 bytes, such as that of a nonce.
    """
    accepted = [sha256(expected), expected[:_CUT]] if is_hash else [sha256(expected)]
    found = [hmac.compare_digest(signed, one.ljust(_REPORT_DATA, b"\0")) for one in accepted]
    return expected if any(found) else signed


def require_strong_bank(quotes: Sequence[VerifiedQuote]) -> None:
    """Check that one of the quotes selects a PCR of a bank other than SHA-1.

    Raises:
        VerificationError: If none does (`pcr_selection`).
    """
    if all(bank == "sha1" for quote in quotes for bank, _, _ in quote.pcrs):
        message = "TPM quote: must select PCRs of SHA-256 or a longer hash, not only of SHA-1"
        raise VerificationError(message, reason="pcr_selection")


def authenticate_go_tpm_tools(data: bytes, trust: AkTrust) -> Authenticated:
    """Verify go-tpm-tools' message `attest.Attestation`; return its content, without its logs.

    Args:
        data: The message in protobuf.
        trust: Roots and keys that the verifier trusts, and the time.

    Raises:
        FormatError: If the message or a structure in it is malformed.
        SignatureError: If a signature is not valid, the key could sign data that the TPM did not
            make (`ak_attributes`), or nothing certifies the key (`ak_unknown`).
        VerificationError: If two quotes differ in qualifying data or the value of a PCR, PCR
            values are not those signed, all quotes are of SHA-1 banks, or the claims about a VM are
            not those of the certificate (`instance_info`).
        CollateralError: If a certificate is missing; CollateralExpiredError if it is not valid.
    """
    message = GoTpmToolsMessage.parse(data)
    found = (message.ak_certificate, *message.intermediates)
    certificates = found if message.ak_certificate else ()
    key = read_attestation_key(message.ak_public, certificates)
    quotes = _verify_quotes(message, key)
    extra, pcrs = _common_extra(quotes), _merged_pcrs(quotes)
    certified = trust.verify_key(key, certificates)
    details, instance = _instance(message, certified)
    quoted = [step for quote in quotes for step in quote.steps]
    facts = quotes[-1].facts(certified.trust, details=details)
    return Authenticated(
        report_data=signed_report_data(extra, b""),
        chain=certified.chain,
        steps=(*quoted, *certified.steps, *instance, WITHOUT_TEE, *_left_out(message)),
        simulated=certified.simulated or any(quote.attest.is_simulated for quote in quotes),
        vtpm=replace(facts, pcrs=pcrs),
    )


def _verify_quotes(message: GoTpmToolsMessage, key: AttestationKey) -> list[VerifiedQuote]:
    """Verify all quotes of a message, one of which must be over a bank other than SHA-1."""
    quotes = [key.verify_quote(one) for one in message.quotes]
    if not quotes:
        raise FormatError("attest.Attestation: must have a quote; request one", reason="missing")
    require_strong_bank(quotes)
    return quotes


def _common_extra(quotes: Sequence[VerifiedQuote]) -> bytes:
    """Return the qualifying data of the quotes; VerificationError if they differ."""
    first = quotes[0].attest.extra_data
    for quote in quotes[1:]:
        if not hmac.compare_digest(quote.attest.extra_data, first):
            raise VerificationError(
                f"TPM quotes: must have equal qualifying data, not {first.hex()} and "
                f"{quote.attest.extra_data.hex()}; request new evidence",
                reason="tpm_qualifying_data",
            )
    return first


def _merged_pcrs(quotes: Sequence[VerifiedQuote]) -> Pcrs:
    """Return the PCR values of all quotes; VerificationError if two quotes differ in one."""
    found: dict[tuple[str, int], bytes] = {}
    for quote in quotes:
        for bank, index, value in quote.pcrs:
            known = found.setdefault((bank, index), value)
            if known != value:
                raise VerificationError(
                    f"TPM quotes: must have equal values of {bank} PCR {index}, not {known.hex()} "
                    f"and {value.hex()}; request new evidence",
                    reason="pcr_digest",
                )
    return tuple([(bank, index, value) for (bank, index), value in found.items()])


def _instance(
    message: GoTpmToolsMessage, certified: CertifiedKey
) -> tuple[Details, tuple[VerificationStep, ...]]:
    """Return details and step of the VM that the AK certificate names, as `instance_facts`.

    Args:
        message: The message, whose claims about the VM must be those of the certificate.
        certified: What certifies the key.

    Raises:
        VerificationError: If the claims differ (`instance_info`).
    """
    if message.instance is not None:
        if message.ak_certificate:
            _check_claims(message.instance, message.ak_certificate)
        if certified.certificate is None or certified.certificate.gce is None:
            text = "claims about a VM were left out: no verified certificate confirms them"
            return (), (skipped("instance", text),)
    return instance_facts(certified)


def _check_claims(claimed: GceInstanceInfo, ak_certificate: bytes) -> None:
    """Compare claims about a VM with those in the key's certificate, verified or not.

    Args:
        claimed: Claims of the message: project, zone and instance.
        ak_certificate: Certificate of the key, DER.

    Raises:
        VerificationError: If the certificate names no instance or a different one
            (`instance_info`).
        SignatureError: If the certificate is malformed.
    """
    named = read_gce_instance(read_evidence_certificate("AK certificate", ak_certificate))
    if named is None:
        raise VerificationError(
            "instance info: the AK certificate must name an instance to compare it with",
            reason="instance_info",
        )
    for name in claimed._fields:
        found, stated = getattr(named, name), getattr(claimed, name)
        if found != stated:
            raise VerificationError(
                f"instance info: {name} must be the certificate's {shown(found)}, not "
                f"{shown(stated)}",
                reason="instance_info",
            )


def _left_out(message: GoTpmToolsMessage) -> tuple[VerificationStep, ...]:
    """Return steps for the parts of a message that are not verified."""
    steps = []
    if message.tee:
        text = f"the {message.tee} evidence in the message was not verified"
        steps.append(skipped("ak_to_hardware", f"{text}; verify it on its own"))
    if message.canonical_event_log:
        text = "the canonical event log in the message was not replayed"
        steps.append(skipped("event_log", text))
    if message.unknown_fields:
        numbers = ", ".join(map(str, message.unknown_fields[:8]))
        text = f"unknown fields of the message were ignored; no signature covers them: {numbers}"
        steps.append(skipped("unknown_fields", text))
    return tuple(steps)
