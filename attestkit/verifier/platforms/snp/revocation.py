"""Revocation of the certificates of an SEV-SNP report, by CRLs of AMD's roots.

AMD publishes CRLs at its key distribution service; nothing is fetched here. A list is used if it
has the name of the path's root, by which it must be signed. Its entries are serial numbers of
certificates of the product line, without the names of issuers, so each certificate of the path is
looked up.
"""

from collections.abc import Iterable
from copy import copy
from datetime import datetime
from typing import Final

from attestkit._crypto.x509.cert_path import VENDOR_RULES
from attestkit._crypto.x509.crl import AmdCrl, check_crl_signature, read_amd_crls
from attestkit._system.bounded_cache import BoundedCache
from attestkit._verification_steps import VerificationStep
from attestkit.errors import CollateralExpiredError, SignatureError
from attestkit.verifier.claims import NO_REVOCATION, passed
from attestkit.verifier.platforms.snp.chain import KDS, Signer

_SIGNED: Final = 256  # pairs of CRL and root


class SnpRevocation:
    """CRLs of AMD's roots, of one verifier. Thread-safe."""

    def __init__(self, crls: Iterable[bytes] = ()) -> None:
        """Parse CRLs: each item is DER, or PEM with one or more.

        Raises:
            FormatError: If a CRL is malformed.
        """
        self._groups: tuple[tuple[AmdCrl, ...], ...] = (_all_crls(crls),)
        self._signed = BoundedCache[tuple[bytes, bytes], bool](_SIGNED)

    def with_bundled(self, crls: Iterable[bytes]) -> "SnpRevocation":
        """Return one that also uses the CRLs of an evidence bundle; it shares the cache.

        They are used for roots of which the arguments have none, because the creator of the bundle
        can choose older ones.

        Raises:
            FormatError: If a CRL is malformed.
        """
        found = copy(self)
        found._groups = (*self._groups, _all_crls(crls))  # noqa: SLF001 - of this class
        return found

    def check(self, signer: Signer, now: datetime) -> VerificationStep:
        """Return the step; it is skipped without any CRL.

        Raises:
            SignatureError: If a certificate is revoked (`cert_revoked`), no CRL is of the path's
                root (`crl_missing`), or one is not signed by it (`crl_bad_signature`).
            CollateralExpiredError: If a CRL is not valid at `now` (`crl_expired`).
        """
        if not any(self._groups):
            return NO_REVOCATION
        root_name, root = signer.path[-1]
        of_root = (
            [crl for crl in group if crl.envelope.issuer == root.subject] for group in self._groups
        )
        used = next(filter(None, of_root), [])
        if not used:
            message = f"CRL of {root_name}: missing among those given; get it from {_url(signer)}"
            raise SignatureError(message, reason="crl_missing")
        for crl in used:
            self._check_list(crl, signer, now)
        numbers = ", ".join(str(crl.content.number) for crl in used)
        text = f"none of the certificates is revoked by CRL number {numbers} of {root_name}"
        return passed("revocation", text)

    def _check_list(self, crl: AmdCrl, signer: Signer, now: datetime) -> None:
        root_name, root = signer.path[-1]
        what = f"CRL of {root_name}"

        def verify() -> bool:
            check_crl_signature(crl.envelope, root, VENDOR_RULES, what)
            return True

        self._signed.get((crl.envelope.der, root.der), verify)
        for name, certificate in signer.path:
            if certificate.serial in crl.content.serial_numbers:
                message = (
                    f"{name} certificate: revoked: serial number {certificate.serial:#x} is in the "
                    f"{what}; get a certificate of a newer issuer, or do not trust this platform"
                )
                raise SignatureError(message, reason="cert_revoked")
        if not crl.content.is_current(now):
            message = f"{what} {crl.content.validity(now)}; get the current one from {_url(signer)}"
            raise CollateralExpiredError(message, reason="crl_expired")


def _all_crls(crls: Iterable[bytes]) -> tuple[AmdCrl, ...]:
    return tuple([crl for data in crls for crl in read_amd_crls(data)])


def _url(signer: Signer) -> str:
    return f"{KDS}/{signer.key.kind.lower()}/v1/{signer.product}/crl"
