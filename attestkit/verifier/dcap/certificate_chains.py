"""Certificate chains up to one trust anchor: of the PCK certificate, and of Intel's signers.

Signatures are verified once and cached; whether a certificate is revoked or valid at a time is not
checked here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from attestkit._crypto.ecdsa import P256PublicKey
from attestkit._crypto.x509.cert_path import read_path_certificate
from attestkit._crypto.x509.intel_certificates import (
    PCK_CAS,
    PCK_CERTIFICATE,
    ROOT,
    IntelCertificate,
    check_issuer,
    read_intel_certificate,
)
from attestkit._crypto.x509.pem_chain import split_strict_chain
from attestkit._crypto.x509.sgx_extension import PckExtension, parse_sgx_extension
from attestkit._native import PckCertificateFields, read_pck_certificate
from attestkit._system.bounded_cache import BoundedCache
from attestkit.errors import FormatError, SignatureError, UsageError
from attestkit.verifier.claims import ANOTHER_ROOT
from attestkit.verifier.dcap.reasons import FRESH, DcapReason, refuse

_CERTIFICATES: Final = 256
_PLATFORMS: Final = 1024
_LARGE_CHAIN: Final = 16 << 10  # bytes of PEM to cache at most; real chains have 4 KiB
_PCK: Final = "PCK certificate"
_CHAIN: Final = "PCK certificate chain"


@dataclass(frozen=True, slots=True, eq=False)
class PckPlatform:
    """A platform whose PCK certificate chain leads to the trust anchor.

    `is_cached`: whether later quotes with this chain get this object; not if it is oversized.
    """

    leaf: IntelCertificate
    authority: IntelCertificate
    root: IntelCertificate
    extension: PckExtension
    start: int  # Unix seconds, half-open: validity of the three certificates
    end: int
    is_cached: bool
    handle: object = field(default_factory=object)  # in keys of caches, which do not refer to it


class CertificateChains:
    """Verified chains under one trust anchor. Thread-safe."""

    def __init__(self, trust_anchor: bytes) -> None:
        """Set the trust anchor, a self-signed certificate in DER.

        Raises:
            UsageError: If `trust_anchor` is not a self-issued certificate.
            SignatureError: If the certificate is not a root as in Intel's SGX PKI
                (`untrusted_root`).
        """
        self.anchor: IntelCertificate = _read_anchor(trust_anchor)
        # By certificate and issuer.
        self._issued = BoundedCache[tuple[bytes, bytes], IntelCertificate](_CERTIFICATES)
        self._platforms = BoundedCache[bytes, PckPlatform](_PLATFORMS)

    def issuer_chain(
        self, text: str, what: str, *names: str
    ) -> tuple[IntelCertificate, IntelCertificate]:
        """Verify an issuer chain of collateral; return the signer and the root.

        Args:
            text: The chain in PEM.
            what: Name of the signed part in error messages, such as "TCB info".
            names: Allowed common names of the signer.

        Raises:
            CollateralError: If a certificate is malformed (`cert_malformed`).
            SignatureError: If the chain is not signer and root, or does not lead to the anchor.
        """
        chain = f"issuer chain of {what}"
        try:
            certificates = split_strict_chain(text.encode("utf-8", "replace"))
        except FormatError as error:
            message = f"{chain}: must be certificates in PEM; {FRESH}"
            raise refuse("cert_malformed", message) from error
        if len(certificates) != 2:
            raise refuse(
                "chain_length",
                f"{chain}: must be signer and root, not {len(certificates)} certificates; {FRESH}",
            )
        root = self._root(certificates[1], chain)
        what = f"{chain}: first certificate"
        return self._issued_by(root, certificates[0], what, names), root

    def platform(self, chain: bytes, malformed: DcapReason) -> PckPlatform:
        """Verify the PCK certificate chain of a platform.

        Args:
            chain: PCK certificate, its CA and the root in PEM.
            malformed: Reason of the error if the chain is malformed.

        Raises:
            FormatError, CollateralError: If the chain is malformed; the class depends on
                `malformed`.
            SignatureError: If the chain is not these three certificates, or does not lead to the
                anchor.
        """
        if (known := self._platforms.find(chain)) is not None:
            return known
        store = len(chain) <= _LARGE_CHAIN
        return self._platforms.get(
            chain, lambda: self._platform(chain, malformed, is_cached=store), store=store
        )

    def _platform(self, text: bytes, malformed: DcapReason, *, is_cached: bool) -> PckPlatform:
        try:
            chain = split_strict_chain(text)
        except FormatError as error:
            raise refuse(malformed, error.message) from error
        if len(chain) != 3:
            raise refuse(
                "chain_length",
                f"{_CHAIN}: must be the PCK certificate, its CA and the root, not {len(chain)} "
                "certificates",
            )
        root = self._root(chain[2], _CHAIN, malformed)
        authority = self._issued_by(root, chain[1], "PCK CA", PCK_CAS, malformed)
        try:
            leaf, extension = _read_pck(chain[0], authority)
        except FormatError as error:
            raise refuse(malformed, f"PCK certificate: malformed: {error.message}") from error
        return PckPlatform(
            leaf,
            authority,
            root,
            extension,
            max(leaf.start, authority.start, root.start),
            min(leaf.end, authority.end, root.end),
            is_cached,
        )

    def _root(
        self, der: bytes, chain: str, malformed: DcapReason = "cert_malformed"
    ) -> IntelCertificate:
        """Return the root of a chain, which must be the anchor or a certificate of the same key.

        Args:
            der: The root certificate in the chain.
            chain: Name of the chain in errors.
            malformed: Reason of the error if the certificate is malformed.
        """
        if der == self.anchor.der:
            return self.anchor
        return self._issued.get((der, der), lambda: self._other_root(der, chain, malformed))

    def _other_root(self, der: bytes, chain: str, malformed: DcapReason) -> IntelCertificate:
        what = f"{chain}: root certificate"
        root = _read(der, what, (ROOT,), malformed)
        if root.key.point != self.anchor.key.point:
            message = f"{chain}: leads to another root than the trust anchor; {ANOTHER_ROOT}"
            raise refuse("untrusted_root", message)
        root.check_issued_by(root, what)
        return root

    def _issued_by(
        self,
        issuer: IntelCertificate,
        der: bytes,
        what: str,
        names: Sequence[str],
        malformed: DcapReason = "cert_malformed",
    ) -> IntelCertificate:
        def verify() -> IntelCertificate:
            certificate = _read(der, what, names, malformed)
            certificate.check_issued_by(issuer, what)
            return certificate

        found = self._issued.get((der, issuer.der), verify)
        found.check_name(what, names)  # the cache has certificates with other names
        return found


def _read_anchor(der: bytes) -> IntelCertificate:
    what = "trust anchor"
    try:
        given = read_path_certificate(der)
        if given.subject != given.issuer:
            raise UsageError(f"{what}: must be one self-signed certificate", reason="wrong_value")
        anchor = read_intel_certificate(der, what, (ROOT,))
        anchor.check_issued_by(anchor, what)
    except FormatError as error:
        message = f"{what}: must be a certificate in DER"
        raise UsageError(message, reason="wrong_value") from error
    except SignatureError as error:
        message = f"{what}: must be a root of Intel's SGX PKI: {error}; {ANOTHER_ROOT}"
        raise refuse("untrusted_root", message) from error
    return anchor


def _read(der: bytes, what: str, names: Sequence[str], malformed: DcapReason) -> IntelCertificate:
    """Parse a certificate (DER), whose subject must have one of the common names in `names`.

    `what` is its name in errors, `malformed` the reason of the error if it is malformed.
    """
    try:
        return read_intel_certificate(der, what, names)
    except FormatError as error:
        remedy = f"; {FRESH}" if malformed == "cert_malformed" else ""
        raise refuse(malformed, f"{what}: malformed: {error.message}{remedy}") from error


def _read_pck(der: bytes, issuer: IntelCertificate) -> tuple[IntelCertificate, PckExtension]:
    """Verify that the PCK certificate `der` (DER) is signed by `issuer`.

    Returns:
        The certificate, and its SGX extension.

    Raises:
        FormatError: If the certificate or its extension is malformed, or the extension is missing.
        SignatureError: If the certificate does not conform to Intel's profile, or `issuer` did not
            sign it.
    """
    fields = read_pck_certificate(der)
    if fields is not None:
        certificate = _pck_certificate(der, fields)
        check_issuer(certificate.issuer, fields.signature, fields.tbs, issuer, _PCK)
        return certificate, PckExtension(*fields[8:])
    certificate = read_intel_certificate(der, _PCK, (PCK_CERTIFICATE,))
    certificate.check_issued_by(issuer, _PCK)
    if certificate.sgx_extension is None:
        raise FormatError("has no SGX extension", reason="missing")
    extension = parse_sgx_extension(certificate.sgx_extension)
    # Drop what only the verification needs, 1 KiB of each platform.
    return replace(certificate, signed=b"", signature=b"", sgx_extension=None), extension


def _pck_certificate(der: bytes, fields: PckCertificateFields) -> IntelCertificate:
    """Return a PCK certificate object, without signed part, signature and extension.

    Args:
        der: The certificate.
        fields: Its decoded fields.

    Raises:
        SignatureError: If its public key is not on P-256.
    """
    try:
        key = P256PublicKey(fields.point[1:])
    except SignatureError as error:
        message = f"{_PCK}: public key is not on P-256"
        raise SignatureError(message, reason="cert_constraints") from error
    return IntelCertificate(
        der=der,
        common_name=PCK_CERTIFICATE,
        subject=fields.subject,
        issuer=fields.issuer,
        serial_number=int.from_bytes(fields.serial, "big"),
        start=fields.not_before,
        end=fields.not_after + 1,
        key=key,
        signed=b"",
        signature=b"",
        sgx_extension=None,
    )
