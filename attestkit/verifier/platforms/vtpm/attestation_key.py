"""Certification of the attestation key (AK) of a TPM: by a certificate, or by the caller's list.

Evidence of a key that neither certifies is refused.
"""

import hmac
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from attestkit._crypto.hashes import sha256
from attestkit._crypto.public_key import load_verification_key
from attestkit._crypto.x509.ak_certificates.gce_extension import GceInstance
from attestkit._crypto.x509.ak_certificates.path import AK_USAGE, EK_USAGE
from attestkit._crypto.x509.simulated.cloud_certificates import names_simulator
from attestkit._outcomes.steps import VerificationStep, caution, passed, skipped
from attestkit._sanitize import one_line
from attestkit.errors import CollateralError, FormatError, SignatureError
from attestkit.tpm import PcrSelection, TpmtPublic
from attestkit.verifier.claims import KeyTrust
from attestkit.verifier.platforms.vtpm.ak_chain import (
    AkChains,
    VerifiedAk,
    read_evidence_certificate,
)
from attestkit.verifier.platforms.vtpm.quote import VerifiedQuote, quote_scheme, verify_tpm_quote

if TYPE_CHECKING:
    from attestkit.attestation.go_tpm_tools import GoTpmToolsQuote
    from attestkit.attestation.wire.evidence_parts import TpmQuote, VtpmQuote

    # A quote in any form of evidence.
    QuoteParts: TypeAlias = "GoTpmToolsQuote | TpmQuote | VtpmQuote"

_LONGEST_NAME: Final = 128  # characters of a name in a step
_SEQUENCE: Final = 0x30  # first byte of a SubjectPublicKeyInfo; a TPMT_PUBLIC begins with 0
_USAGES: Final = frozenset({EK_USAGE, AK_USAGE})
_FATAL: Final = frozenset({"fetch_needed", "cert_revoked"})  # also for a listed key

# A sender can leave out a revoked certificate; then the list alone decides.
_UNCERTIFIED: Final = skipped(
    "ak_revocation",
    "no certificate of the listed key was verified, so whether it was revoked is not known",
)


class AttestationKey(NamedTuple):
    """An attestation key (AK) as evidence states it, not yet trusted."""

    spki: bytes  # DER SubjectPublicKeyInfo
    scheme: tuple[str, str] | None  # algorithm and hash of its TPMT_PUBLIC; None if not known
    is_restricted: bool = False  # by its TPMT_PUBLIC, which nothing signs

    def verify_quote(
        self, quote: "QuoteParts", wanted: Sequence[PcrSelection] = ()
    ) -> VerifiedQuote:
        """Verify the signature of a quote by this key, and its PCRs; errors as `verify_tpm_quote`.

        Args:
            quote: Message, signature and PCR values.
            wanted: Banks and PCRs that the quote must select at least.
        """
        return verify_tpm_quote(
            quote.message,
            quote.signature,
            self.spki,
            scheme=self.scheme,
            pcr_values=quote.pcr_values,
            wanted=wanted,
        )


class CertifiedKey(NamedTuple):
    """What certifies an attestation key: a verified certificate, or the policy's list."""

    trust: KeyTrust  # certificate or listed
    certificate: VerifiedAk | None  # None unless `trust` is certificate
    steps: tuple[VerificationStep, ...]
    simulated: bool  # a certificate of the evidence or the path names attestkit's simulator

    @property
    def chain(self) -> tuple[bytes, ...]:
        """DER of the certificates, leaf first, root last; empty without a verified one."""
        return () if self.certificate is None else self.certificate.path.chain


class AkTrust(NamedTuple):
    """Roots and keys by which a verifier trusts attestation keys, and the time."""

    chains: AkChains
    trusted_aks: Collection[bytes]  # SHA-256 of the SubjectPublicKeyInfo, or that itself
    now: datetime  # with a time zone
    before_fetch: Callable[[], object] = lambda: None  # called before each request

    def verify_key(self, key: AttestationKey, certificates: Sequence[bytes]) -> CertifiedKey:
        """Return the certification of a key: by its certificate, else by `trusted_aks`.

        Args:
            key: The key of a verified quote.
            certificates: Certificate of the key, then those of CAs, in DER; may be empty.

        Raises:
            SignatureError: If nothing certifies the key (`ak_unknown`), the certificate is revoked
                (`cert_revoked`), or the key is not listed and the certificate is not valid.
            CollateralError: If the key is not listed, and a certificate is missing or cannot be
                fetched; CollateralExpiredError if one is not valid at `now`.
        """
        listed = is_listed(key.spki, self.trusted_aks)
        form = form_steps(key, by_google=False)
        text = f"the policy lists the attestation key {sha256(key.spki).hex()}"
        named = passed("attestation_key", text)
        simulated = any(map(names_simulator, certificates))
        if not certificates:
            if not listed:
                raise _unknown(key)
            return CertifiedKey("listed", None, (named, *form, _UNCERTIFIED), simulated)
        leaf, *beside = certificates
        try:
            found = self.chains.verify(
                leaf,
                self.chains.tpm_roots,
                self.now,
                beside=beside,
                usages=_USAGES,
                before_fetch=self.before_fetch,
            )
        except (SignatureError, CollateralError) as error:
            if not listed or error.reason in _FATAL:
                raise
            problem = skipped("ak_certificate", f"the certificate was not verified: {error}")
            return CertifiedKey("listed", None, (named, *form, problem, _UNCERTIFIED), simulated)
        certified = passed("attestation_key", "the attestation key is that of its certificate")
        form = form_steps(key, by_google=self.chains.is_google(found.path))
        simulated = simulated or any(map(names_simulator, found.path.chain))
        return CertifiedKey("certificate", found, (certified, *form, *found.steps), simulated)


def _unknown(key: AttestationKey) -> SignatureError:
    """Return the error for a key that neither certificate nor list certifies."""
    return SignatureError(
        f"attestation key: not trusted: SHA-256 {sha256(key.spki).hex()}; list it in the policy's "
        "trusted_aks if it is the key of your TPM",
        reason="ak_unknown",
    )


def read_attestation_key(public: bytes, certificates: Sequence[bytes]) -> AttestationKey:
    """Return the attestation key of evidence, from its public area or its certificate.

    Args:
        public: TPMT_PUBLIC, or SubjectPublicKeyInfo in DER; empty takes the key of the certificate.
        certificates: DER, that of the key first; may be empty.

    Raises:
        FormatError: If the public area is malformed, or both area and certificate are missing.
        SignatureError: If the attributes in a TPMT_PUBLIC let the key sign data that the TPM did
            not make (`ak_attributes`; a SubjectPublicKeyInfo or certificate has none), if the key
            is not that of the certificate (`ak_mismatch`), or a key or certificate is malformed.
    """
    leaf = read_evidence_certificate("AK certificate", certificates[0]) if certificates else None
    if not public and leaf is None:
        message = "attestation key: missing; add its public area or certificate to the evidence"
        raise FormatError(message, reason="missing")
    if public and public[0] != _SEQUENCE:
        area = TpmtPublic.parse(public)
        area.require_attestation_key()
        found = AttestationKey(
            load_verification_key(area.spki).spki, quote_scheme(area), is_restricted=True
        )
    else:
        spki = public or (b"" if leaf is None else leaf.spki)
        found = AttestationKey(load_verification_key(spki).spki, None)
    if leaf is not None and load_verification_key(leaf.spki).spki != found.spki:
        message = "attestation key: must be that of the AK certificate; send this key's certificate"
        raise SignatureError(message, reason="ak_mismatch")
    return found


def is_listed(spki: bytes, trusted_aks: Iterable[bytes]) -> bool:
    """Return whether `trusted_aks` has the key `spki` (DER), or its SHA-256."""
    hashed = sha256(spki)
    return any(
        hmac.compare_digest(hashed if len(one) == len(hashed) else spki, one) for one in trusted_aks
    )


def form_steps(key: AttestationKey, *, by_google: bool) -> tuple[VerificationStep, ...]:
    """Return a caution if the key may be unrestricted, and sign data that the TPM did not make.

    The tuple is empty otherwise. Certificates and lists cover the key without its attributes.

    Args:
        key: The key.
        by_google: Whether a certificate of Google certifies it: Google's keys are restricted.
    """
    if key.is_restricted and by_google:
        return ()
    text = "the evidence lacks the key's public area, so its attributes were not checked"
    if key.is_restricted:
        text = (
            "the key's attributes are checked as the evidence states them; neither certificate nor "
            "list confirms them"
        )
    return (caution("attestation_key", text),)


def gce_details(gce: GceInstance | None) -> tuple[tuple[str, str], ...]:
    """Return the names and numbers of a Google VM as `VtpmFacts.details`: names and values.

    Args:
        gce: The VM; None: the result is empty.
    """
    if gce is None:
        return ()
    found = [
        ("gce_project", gce.project_id),
        ("gce_zone", gce.zone),
        ("gce_instance", gce.instance_name),
        ("gce_project_number", str(gce.project_number)),
        ("gce_instance_id", str(gce.instance_id)),
    ]
    if gce.security_version is not None:
        found.append(("gce_security_version", str(gce.security_version)))
    if gce.is_production is not None:
        found.append(("gce_is_production", "true" if gce.is_production else "false"))
    return tuple(found)


def instance_step(gce: GceInstance | None) -> VerificationStep:
    """Return the step `instance` about the Google VM that a certificate names.

    Args:
        gce: The VM; None, if the certificate names none: the step is skipped.
    """
    if gce is None:
        return skipped("instance", "the AK certificate names no instance of Google Compute Engine")
    names = (gce.instance_name, gce.zone, gce.project_id)
    name, zone, project = (one_line(text, _LONGEST_NAME) for text in names)
    text = f"the AK is of instance {name} in zone {zone} of project {project}"
    if gce.is_production is False:
        return caution("instance", f"{text}, on a host that is not for production")
    return passed("instance", text)
