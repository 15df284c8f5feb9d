"""What certifies the attestation key (AK) of a TPM: a certificate, or the caller's list.

vtpm.md, section 3.4, step 6, and section 10. Evidence of a key that neither certifies is refused.
"""

import hmac
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final, NamedTuple

from attestkit._crypto.hashes import sha256
from attestkit._crypto.public_key import PublicVerificationKey
from attestkit._crypto.x509.ak_certificates.path import AK_USAGE, EK_USAGE, AkPath, find_ak_path
from attestkit._crypto.x509.cert_path import PathCertificate, read_path_certificate
from attestkit._crypto.x509.vendor_roots import google_roots
from attestkit._reasons import VerificationStep
from attestkit.errors import AttestKitError, FormatError, SignatureError
from attestkit.tpm import TpmtPublic
from attestkit.verifier.platforms.tpm_quote import quote_scheme
from attestkit.verifier.result import NO_REVOCATION, KeyTrust, caution, passed, skipped

MAX_CERTIFICATES: Final = 8
"""Most certificates beside a quote."""

_SEQUENCE: Final = 0x30  # first byte of a SubjectPublicKeyInfo; a TPMT_PUBLIC begins with 0
_USAGES: Final = frozenset({EK_USAGE, AK_USAGE})


class AttestationKey(NamedTuple):
    """An attestation key as evidence states it, not yet trusted."""

    spki: bytes  # DER SubjectPublicKeyInfo
    scheme: tuple[str, str] | None  # algorithm and hash of its TPMT_PUBLIC; None if not known
    is_restricted: bool  # its TPMT_PUBLIC says that it signs only what the TPM made


class CertifiedKey(NamedTuple):
    """What certifies an attestation key."""

    trust: KeyTrust  # certificate or listed
    path: AkPath | None  # None unless `trust` is certificate
    steps: tuple[VerificationStep, ...]


def read_attestation_key(public: bytes, certificates: Sequence[bytes]) -> AttestationKey:
    """Return the key of evidence, from its public area or its certificate.

    Args:
        public: TPMT_PUBLIC, or SubjectPublicKeyInfo in DER; empty takes the key of the certificate.
        certificates: DER, that of the key first; may be empty.

    Raises:
        FormatError: If the public area is malformed, or neither is there.
        SignatureError: If the key could sign data that the TPM did not make (`ak_attributes`), it
            is not the certificate's (`ak_mismatch`), or a key or certificate is malformed.
    """
    leaf = _read_certificate(certificates[0]) if certificates else None
    if not public and leaf is None:
        message = "attestation key: missing: the evidence has neither public area nor certificate"
        raise FormatError(message, reason="missing")
    if public and public[0] != _SEQUENCE:
        area = TpmtPublic.parse(public)
        area.require_attestation_key()
        found = AttestationKey(
            PublicVerificationKey(area.spki).spki, quote_scheme(area), is_restricted=True
        )
    else:
        spki = public or (b"" if leaf is None else leaf.spki)
        found = AttestationKey(PublicVerificationKey(spki).spki, None, is_restricted=False)
    if leaf is not None and PublicVerificationKey(leaf.spki).spki != found.spki:
        message = "attestation key: not the key of its certificate"
        raise SignatureError(message, reason="ak_mismatch")
    return found


class AkTrust:
    """Roots for certificates of attestation keys, and further certificates of authorities."""

    def __init__(
        self,
        trust_anchor: bytes | None = None,
        ak_roots: Sequence[bytes] = (),
        ak_certificates: Sequence[bytes] = (),
    ) -> None:
        """Set the roots.

        Args:
            trust_anchor: Certificate in DER that replaces Google's roots; None keeps them.
            ak_roots: Further roots in DER.
            ak_certificates: Certificates of authorities in DER, for evidence without them.

        Raises:
            FormatError: If a certificate is malformed.
        """
        vendor = google_roots() if trust_anchor is None else (trust_anchor,)
        name = "Google's root" if trust_anchor is None else "the trust anchor"
        self._roots: list[tuple[str, PathCertificate]] = [
            *((name, read_path_certificate(der)) for der in vendor),
            *(("a root of ak_roots", read_path_certificate(der)) for der in ak_roots),
        ]
        self._authorities = [read_path_certificate(der) for der in ak_certificates]

    def certify(
        self,
        key: AttestationKey,
        certificates: Sequence[bytes],
        trusted_aks: Iterable[bytes],
        now: datetime,
    ) -> CertifiedKey:
        """Return what certifies a key: its certificate, or else the caller's list.

        Args:
            key: The key of a verified quote.
            certificates: Its certificate and those of authorities, in DER; may be empty.
            trusted_aks: Keys that the caller trusts: SHA-256 of the SubjectPublicKeyInfo, or the
                SubjectPublicKeyInfo.
            now: Time of the verification, with a time zone.

        Raises:
            SignatureError: If nothing certifies the key (`ak_unknown`), or the key is not listed
                and its certificate is not valid.
            CollateralError: If the key is not listed, and the certificate of an authority is
                missing.
            CollateralExpiredError: If the key is not listed, and a certificate is not valid at
                `now`.
        """
        listed = is_listed(key.spki, trusted_aks)
        text = f"the policy lists the attestation key {sha256(key.spki).hex()}"
        if not certificates:
            if not listed:
                raise SignatureError(
                    f"attestation key: unknown: SHA-256 {sha256(key.spki).hex()}; list it in the "
                    "policy's trusted_aks if it is the key of your TPM",
                    reason="ak_unknown",
                )
            return CertifiedKey("listed", None, (passed("attestation_key", text), *_form(key)))
        try:
            path = self._find_path(certificates, now)
        except AttestKitError as error:
            if not listed:
                raise
            problem = skipped("ak_certificate", f"the certificate was not verified: {error}")
            steps = (passed("attestation_key", text), *_form(key), problem)
            return CertifiedKey("listed", None, steps)
        text = f"the certificate of the attestation key leads to {path.root_name} and is valid"
        steps = (passed("attestation_key", text), *_form(key), NO_REVOCATION)
        return CertifiedKey("certificate", path, steps)

    def _find_path(self, certificates: Sequence[bytes], now: datetime) -> AkPath:
        if len(certificates) > MAX_CERTIFICATES:
            message = f"AK certificate: {len(certificates)} certificates, over {MAX_CERTIFICATES}"
            raise SignatureError(message, reason="chain_length")
        leaf, *authorities = map(_read_certificate, certificates)
        return find_ak_path(leaf, (*authorities, *self._authorities), self._roots, now, _USAGES)


def is_listed(spki: bytes, trusted_aks: Iterable[bytes]) -> bool:
    """Return whether a list has a key, or the SHA-256 of its SubjectPublicKeyInfo."""
    hashed = sha256(spki)
    return any(
        hmac.compare_digest(hashed if len(one) == len(hashed) else spki, one) for one in trusted_aks
    )


def _form(key: AttestationKey) -> tuple[VerificationStep, ...]:
    """Return a caution for a key whose attributes are not known, which only its owner can tell."""
    if key.is_restricted:
        return ()
    text = "the evidence lacks the key's public area, so its attributes were not checked"
    return (caution("attestation_key", text),)


def _read_certificate(der: bytes) -> PathCertificate:
    try:
        return read_path_certificate(der)
    except FormatError as error:
        message = f"AK certificate: malformed: {error}"
        raise SignatureError(message, reason="cert_malformed") from error
