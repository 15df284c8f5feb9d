"""Verification of a TPM's quote: signature, selection and PCR values.

The message is TPMS_ATTEST (TPM 2.0 Library, Part 2, section 10.12.12). The qualifying data, what
certifies the key, and the logs depend on the platform.
"""

import hmac
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from attestkit._crypto.public_key import (
    SIGNATURE_HASHES,
    PublicVerificationKey,
    load_verification_key,
)
from attestkit._outcomes.reasons import SignatureReason, VerificationReason
from attestkit._outcomes.steps import VerificationStep, caution, passed
from attestkit._sanitize import shown
from attestkit.attestation.wire.evidence_parts import PcrValue
from attestkit.errors import SignatureError, VerificationError
from attestkit.tpm import PcrSelection, TpmsAttest, TpmtPublic, TpmtSignature, pcr_digest
from attestkit.tpm.algorithms import hash_size
from attestkit.tpm.pcrs import EVERY_PCR, format_pcrs
from attestkit.verifier.claims import Join, KeyTrust, VtpmFacts

ALL_PCRS: Final = PcrSelection("sha256", EVERY_PCR)
"""The selection of most formats: PCRs 0 to 23 of the SHA-256 bank."""

Pcrs = tuple[tuple[str, int, bytes], ...]
"""Bank, index and value of each PCR."""


class _Selected(NamedTuple):
    """The PCRs that a quote selects."""

    pcrs: Pcrs  # in the order of the selection
    digest: bytes  # of their values
    names: str  # such as `sha256 PCRs 0-23`


class VerifiedQuote(NamedTuple):
    """A quote whose signature and PCR values are valid; its key is not yet trusted."""

    attest: TpmsAttest
    key: PublicVerificationKey
    pcrs: Pcrs  # in the order of the quote's selection
    steps: tuple[VerificationStep, ...]  # tpm_quote and tpm_clock

    def facts(
        self,
        key_trust: KeyTrust,
        joins: tuple[Join, ...] = (),
        details: tuple[tuple[str, str], ...] = (),
    ) -> VtpmFacts:
        """Return the facts of this quote for the claims, before the replay of logs.

        Args:
            key_trust: What certifies the key.
            joins: Directions in which hardware evidence and TPM are joined.
            details: Further names and values, such as of the cloud instance.
        """
        return VtpmFacts(
            attestation_key=self.key.spki,
            key_trust=key_trust,
            joins=joins,
            pcrs=self.pcrs,
            clock_ms=self.attest.clock_ms,
            reset_count=self.attest.reset_count,
            restart_count=self.attest.restart_count,
            details=details,
        )


def quote_scheme(public: TpmtPublic) -> tuple[str, str] | None:
    """Return a key's signing scheme, such as ("rsassa", "sha256"); None if the key has none."""
    return (public.scheme, public.scheme_hash) if public.scheme else None


def verify_tpm_quote(
    message: bytes,
    signature: bytes,
    key_spki: bytes,
    *,
    scheme: tuple[str, str] | None = None,
    pcr_values: Iterable[PcrValue],
    wanted: Sequence[PcrSelection] = (),
) -> VerifiedQuote:
    """Verify signature, selection and PCR values of a TPM's quote, not its qualifying data.

    Args:
        message: TPMS_ATTEST.
        signature: TPMT_SIGNATURE.
        key_spki: The attestation key as SubjectPublicKeyInfo in DER.
        scheme: Algorithm and hash of the key's TPMT_PUBLIC; None accepts RSASSA of RSA keys and
            ECDSA of others, with SHA-256, SHA-384 or SHA-512.
        pcr_values: The delivered PCR values, in any order: exactly those that the quote selects.
        wanted: Banks and PCRs that the quote must select at least.

    Raises:
        FormatError: If message or signature is malformed.
        SignatureError: If the key is not valid (`invalid_key`), the algorithm does not fit it
            (`tpm_quote_algorithm`), or the signature is not valid (`tpm_quote_bad_signature`).
        VerificationError: If the selection (`pcr_selection`) or the values (`pcr_digest`) are not
            the expected ones.
    """
    attest = TpmsAttest.parse(message)
    signed = TpmtSignature.parse(signature)
    key = load_verification_key(key_spki)
    _check_algorithm(signed, key, scheme)
    _check_signature(signed, key, message)
    _check_wanted(attest.selections, tuple(wanted))
    found = _check_values(attest, signed, pcr_values)
    return VerifiedQuote(attest, key, found.pcrs, _steps(attest, signed, key, found.names))


def _check_algorithm(
    signed: TpmtSignature, key: PublicVerificationKey, scheme: tuple[str, str] | None
) -> None:
    """Check that algorithm and hash of a signature fit the key, and that the hash is not SHA-1.

    Args:
        signed: The signature.
        key: The attestation key.
        scheme: Algorithm and hash of the key, such as ("rsassa", "sha256"); None accepts the
            algorithm of its kind with any hash that is allowed.

    Raises:
        SignatureError: If they do not fit.
    """
    stated = signed.algorithm, signed.hash_name
    fitting = scheme or ("rsassa" if key.kind == "rsa" else "ecdsa", signed.hash_name)
    if stated != fitting or signed.hash_name not in SIGNATURE_HASHES:
        raise SignatureError(
            f"TPM quote: signature by this key must be {fitting[0]} with {_hashes(fitting[1])}, "
            f"not {' with '.join(stated)}",
            reason="tpm_quote_algorithm",
        )
    if key.kind != "rsa" and not signed.fits_curve(key.kind):
        message = f"TPM quote: r or s is too long for a signature of {key.kind}"
        raise SignatureError(message, reason="tpm_quote_bad_signature")


def _hashes(name: str) -> str:
    return name if name in SIGNATURE_HASHES else " or ".join(SIGNATURE_HASHES)


def _check_signature(signed: TpmtSignature, key: PublicVerificationKey, message: bytes) -> None:
    content = signed.der if signed.algorithm == "ecdsa" else signed.signature
    try:
        key.verify(signed.algorithm, signed.hash_name, content, message)
    except SignatureError as error:
        reason: SignatureReason = "tpm_quote_algorithm"
        if error.reason == "bad_signature":
            reason = "tpm_quote_bad_signature"
        raise SignatureError(f"TPM quote: {error}", reason=reason) from error


@lru_cache(maxsize=64)
def _check_wanted(selections: tuple[PcrSelection, ...], wanted: tuple[PcrSelection, ...]) -> None:
    """Check that a quote selects PCRs, and at least the wanted ones of each bank.

    Args:
        selections: Banks and PCRs that the quote selects.
        wanted: Banks and PCRs that it must select.

    Raises:
        VerificationError: If one is not selected (`pcr_selection`).
    """
    selected = {one.bank: frozenset(one.pcrs) for one in selections}
    if not any(selected.values()):
        raise _refused("must select PCRs; request one over PCRs", "pcr_selection")
    for one in wanted:
        if missing := sorted(frozenset(one.pcrs) - selected.get(one.bank, frozenset())):
            numbers = ", ".join(map(str, missing))
            raise _refused(f"must select {one.bank} PCRs {numbers}; add them", "pcr_selection")


def _check_values(
    attest: TpmsAttest, signed: TpmtSignature, values: Iterable[PcrValue]
) -> _Selected:
    """Check that the values are of exactly the selected PCRs, and have the signed digest."""
    found = _selected_values(attest.selections, tuple(values), signed.hash_name)
    if not hmac.compare_digest(found.digest, attest.pcr_digest):
        problem = f"digest of the PCR values must be {attest.pcr_digest.hex()}, as signed, not"
        raise _refused(f"{problem} {found.digest.hex()}", "pcr_digest")
    return found


@lru_cache(maxsize=64)  # a machine's PCRs seldom change after its boot
def _selected_values(
    selections: tuple[PcrSelection, ...], delivered: tuple[PcrValue, ...], hash_name: str
) -> _Selected:
    selected = [(one.bank, pcr) for one in selections for pcr in one.pcrs]
    found = {(bank, number): value for number, bank, value in delivered}
    if len(delivered) != len(found) or found.keys() != frozenset(selected):
        raise _mismatch(selected, delivered)
    for number, bank, value in delivered:
        if len(value) != hash_size(bank):
            problem = f"{bank} PCR {number}: must be {hash_size(bank)} bytes, not {len(value)}"
            raise _refused(problem, "pcr_digest")
    pcrs = tuple([(*name, found[name]) for name in selected])
    return _Selected(pcrs, pcr_digest(selections, found, hash_name), format_pcrs(selected))


def _mismatch(
    selected: Sequence[tuple[str, int]], delivered: Sequence[PcrValue]
) -> VerificationError:
    """Return the error for values that are not exactly those of the selected PCRs."""
    found = set()
    for number, bank, _ in delivered:
        if (bank, number) not in selected:
            name = f"{shown(bank)} PCR {shown(number)}"
            return _refused(f"{name} is delivered, but not selected", "pcr_selection")
        if (bank, number) in found:
            return _refused(f"{bank} PCR {number} is delivered twice", "pcr_selection")
        found.add((bank, number))
    bank, number = next(name for name in selected if name not in found)
    problem = f"{bank} PCR {number} is selected, but its value is missing"
    return _refused(problem, "pcr_selection")


def _steps(
    attest: TpmsAttest, signed: TpmtSignature, key: PublicVerificationKey, quoted: str
) -> tuple[VerificationStep, VerificationStep]:
    quote = passed(
        "tpm_quote",
        f"the TPM quote's signature is valid ({signed.algorithm} with {signed.hash_name}, "
        f"{key.kind}), and the values are the signed ones: {quoted}",
    )
    counts = (
        f"{attest.clock_ms} ms of operation, reset count {attest.reset_count}, restart count "
        f"{attest.restart_count}; no proof of freshness"
    )
    if attest.safe:
        return quote, passed("tpm_clock", f"the TPM's clock did not go back: {counts}")
    return quote, caution("tpm_clock", f"the TPM's clock may have gone back: {counts}")


def _refused(problem: str, reason: VerificationReason) -> VerificationError:
    return VerificationError(f"TPM quote: {problem}", reason=reason)
