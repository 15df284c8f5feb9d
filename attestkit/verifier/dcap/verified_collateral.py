"""Collateral whose signatures lead to the trust anchor.

Its validity period and its platform are checked for each quote.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import Final, NamedTuple

from attestkit._crypto.x509.crl import Crl, read_crl
from attestkit._crypto.x509.intel_certificates import PCK_CAS, TCB_SIGNER, IntelCertificate
from attestkit._system.bounded_cache import BoundedCache
from attestkit.collateral import Collateral
from attestkit.errors import AttestKitError, FormatError
from attestkit.verifier.claims import ANOTHER_ROOT
from attestkit.verifier.dcap.certificate_chains import CertificateChains, PckPlatform
from attestkit.verifier.dcap.reasons import FRESH, DcapReason, moment, refuse
from attestkit.verifier.dcap.signed_body import QE_IDENTITY, TCB_INFO, check_signature
from attestkit.verifier.dcap.tcb_info import (
    TDX,
    QeIdentity,
    TcbInfo,
    read_qe_identity,
    read_tcb_info,
)

_PARTS: Final = 256
_COLLATERALS: Final = 64
_LARGE: Final = 256 << 10  # bytes of collateral to cache at most; Intel's has 20 KiB
_ROOT_CA: Final = "the root CA"
_PCK_CA: Final = "the PCK CA"


_Parts = tuple[str | bytes, ...]
# All fields but the PCK certificate chain, which is verified with the quote.
_verified_parts: Final[Callable[[Collateral], _Parts]] = attrgetter(
    *(field.name for field in fields(Collateral) if field.name != "pck_certificate_chain")
)


class Validity(NamedTuple):
    """Validity period of a part of collateral, and the reasons of errors outside of it."""

    part: str
    early: DcapReason  # before the period
    late: DcapReason  # after the period
    start: int  # Unix seconds, half-open
    end: int

    def refuse(self, now: int, remedy: str) -> AttestKitError:
        """Return the exception for `now`, Unix seconds outside of the period.

        If the period has ended, `remedy` is added to the message.
        """
        at = f"and the verification is at {moment(now)}"
        if now < self.start:
            message = f"{self.part} is valid from {moment(self.start)}, {at}; check the clock"
            return refuse(self.early, message)
        message = f"{self.part} was valid until {moment(self.end)}, {at}{remedy}"
        return refuse(self.late, message)


def certificate_validity(certificate: IntelCertificate) -> Validity:
    """Return the validity period of a certificate."""
    name = certificate.common_name
    return Validity(name, "cert_expired", "cert_expired", certificate.start, certificate.end)


@dataclass(frozen=True, slots=True, eq=False)
class VerifiedCollateral:
    """Parts of a Collateral whose signatures were verified, and when they are valid.

    `is_cached`: later quotes with this Collateral get this object, because it is not oversized.
    """

    tcb_info: TcbInfo
    qe_identity: QeIdentity
    authority: IntelCertificate  # PCK CA that issued `pck_crl`
    root: IntelCertificate  # of all chains
    root_crl: Crl
    pck_crl: Crl
    validities: tuple[Validity, ...]
    start: int  # Unix seconds, half-open: when all parts are valid
    end: int
    first_start: int  # Unix seconds: when the first part became valid
    expiration: int  # Unix seconds: last second of a certificate, or nextUpdate
    is_cached: bool
    handle: object = field(default_factory=object)  # in keys of caches, which do not refer to it

    def check_time(self, now: int) -> None:
        """Raise CollateralExpiredError for the first part not valid at `now`, Unix seconds."""
        if self.start <= now < self.end:
            return
        for validity in self.validities:
            if not validity.start <= now < validity.end:
                whole = f"; all of the collateral was valid until {moment(self.end)}; {FRESH}"
                raise validity.refuse(now, whole)

    def check_platform(self, platform: PckPlatform, tee_type: int) -> None:
        """Check that the collateral is for this platform, and revokes none of its certificates.

        Args:
            platform: Platform with its PCK certificate chain.
            tee_type: TEE type in the quote's header: 0 for SGX, 0x81 for TDX.

        Raises:
            VerificationError: If TCB info or QE identity is not for this TEE
                (`tcb_info_wrong_type`, `qe_identity_wrong_type`), or TCB info not for the
                platform's FMSPC and PCEID (`tcb_info_mismatch`).
            SignatureError: If the chains have different roots (`untrusted_root`), the PCK CRL is
                not of the PCK certificate's CA (`crl_missing`), or a certificate is revoked
                (`cert_revoked`).
        """
        for kind, body in ((TCB_INFO, self.tcb_info), (QE_IDENTITY, self.qe_identity)):
            if body.tee_type != tee_type:
                tees = f"is for {_tee(body.tee_type)}, and the quote is of {_tee(tee_type)}"
                raise refuse(kind.wrong_type, f"{kind.name}: {tees}; {FRESH}")
        if platform.root.der != self.root.der:
            message = "the chains of quote and collateral have different root certificates"
            raise refuse("untrusted_root", f"{message}; {FRESH}, for this platform")
        self._check_revocation(platform)
        found, expected = platform.extension, self.tcb_info
        if found.fmspc != expected.fmspc:
            raise _mismatch("FMSPC", expected.fmspc, found.fmspc)
        if found.pceid != expected.pceid:
            raise _mismatch("PCEID", expected.pceid, found.pceid)

    def _check_revocation(self, platform: PckPlatform) -> None:
        authority = platform.authority
        if authority.der != self.authority.der:
            same_key = authority.key.point == self.authority.key.point
            if not same_key or authority.subject != self.authority.subject:
                raise refuse(
                    "crl_missing",
                    f"the collateral has the CRL of {self.authority.common_name}, and not that of "
                    f"the PCK certificate's issuer; {FRESH}, for this platform",
                )
            check_not_revoked(authority, self.root_crl, _ROOT_CA)
        check_not_revoked(platform.leaf, self.pck_crl, _PCK_CA)


def check_not_revoked(certificate: IntelCertificate, crl: Crl, authority: str) -> None:
    """Raise SignatureError if a certificate is on the CRL of its issuer, named `authority`."""
    if certificate.serial_number in crl.serial_numbers:
        raise refuse(
            "cert_revoked",
            f"{certificate.common_name}, serial number {certificate.serial_number:x}: revoked, it "
            f"is on the CRL of {authority}, number {_shown_number(crl.number)}",
        )


def _tee(tee_type: int) -> str:
    return "TDX" if tee_type == TDX else "SGX"


def _shown_number(number: int) -> str:
    """Return the number of a CRL in decimal, or in shortened hex if over 64 bits."""
    return str(number) if number < 1 << 64 else f"{number >> number.bit_length() - 64:x}... (hex)"


def _mismatch(field: str, expected: bytes, found: bytes) -> AttestKitError:
    return refuse(
        "tcb_info_mismatch",
        f"TCB info: is for {field} {expected.hex()}, and the PCK certificate has {found.hex()}; "
        f"{FRESH}, for this platform",
    )


class CollateralVerifier:
    """Verifies collateral under one trust anchor, and caches what it verified. Thread-safe."""

    def __init__(self, chains: CertificateChains) -> None:
        self._chains = chains
        self._collaterals = BoundedCache[_Parts, VerifiedCollateral](_COLLATERALS)
        # By CRL and issuer; by body, signature and signer.
        self._crls = BoundedCache[tuple[bytes, bytes], Crl](_PARTS)
        self._tcb_infos = BoundedCache[tuple[str, bytes, bytes], TcbInfo](_PARTS)
        self._qe_identities = BoundedCache[tuple[str, bytes, bytes], QeIdentity](_PARTS)

    def verify(self, collateral: Collateral) -> VerifiedCollateral:
        """Verify the signatures of collateral.

        Raises:
            CollateralError: If a part is malformed.
            SignatureError: If a signature or a chain is not valid, or a certificate is revoked.
            VerificationError: If type or version of TCB info or QE identity is not supported.
        """
        parts = _verified_parts(collateral)
        found = self._collaterals.find(parts)
        if found is not None:
            return found
        store = sum(map(len, parts)) <= _LARGE
        return self._collaterals.get(
            parts, lambda: self._verify(collateral, store=store), store=store
        )

    def _verify(self, given: Collateral, *, store: bool) -> VerifiedCollateral:
        authority, root, signer, qe_signer = self._issuers(given)
        root_crl = self._crl(given.root_ca_crl, root, _ROOT_CA, store=store)
        pck_crl = self._crl(given.pck_crl, authority, _PCK_CA, store=store)
        used = (self._chains.anchor, root, authority, signer, qe_signer)
        certificates = list({one.der: one for one in used}.values())
        for certificate in certificates:
            check_not_revoked(certificate, root_crl, _ROOT_CA)
        info = self._tcb_infos.get(
            (given.tcb_info, given.tcb_info_signature, signer.der),
            lambda: _signed_tcb_info(given, signer),
            store=store,
        )
        identity = self._qe_identities.get(
            (given.qe_identity, given.qe_identity_signature, qe_signer.der),
            lambda: _signed_qe_identity(given, qe_signer),
            store=store,
        )
        crls = (_crl_validity(_ROOT_CA, root_crl), _crl_validity(_PCK_CA, pck_crl))
        bodies = _body_validities(info, identity)
        validities = (*map(certificate_validity, certificates), *crls, *bodies)
        return VerifiedCollateral(
            tcb_info=info,
            qe_identity=identity,
            authority=authority,
            root=root,
            root_crl=root_crl,
            pck_crl=pck_crl,
            validities=validities,
            start=max(validity.start for validity in validities),
            end=min(validity.end for validity in validities),
            first_start=min(validity.start for validity in validities),
            expiration=min(
                validity.end - (validity.late == "cert_expired") for validity in validities
            ),
            is_cached=store,
        )

    def _issuers(self, given: Collateral) -> tuple[IntelCertificate, ...]:
        """Return PCK CA, root, and the signers of TCB info and QE identity."""
        chains = self._chains
        authority, root = chains.issuer_chain(given.pck_crl_issuer_chain, "PCK CRL", *PCK_CAS)
        signer, info_root = chains.issuer_chain(
            given.tcb_info_issuer_chain, TCB_INFO.name, TCB_SIGNER
        )
        qe_signer, qe_root = signer, info_root
        if given.qe_identity_issuer_chain != given.tcb_info_issuer_chain:
            qe_signer, qe_root = chains.issuer_chain(
                given.qe_identity_issuer_chain, QE_IDENTITY.name, TCB_SIGNER
            )
        if not root.der == info_root.der == qe_root.der:
            message = f"the collateral's chains have different root certificates; {ANOTHER_ROOT}"
            raise refuse("untrusted_root", message)
        return authority, root, signer, qe_signer

    def _crl(self, der: bytes, issuer: IntelCertificate, authority: str, *, store: bool) -> Crl:
        key, name = (der, issuer.der), f"the CRL of {authority}"
        try:
            return self._crls.get(key, lambda: read_crl(der, issuer, name), store=store)
        except FormatError as error:
            message = f"{name}: malformed: {error.message}; {FRESH}"
            raise refuse("crl_malformed", message) from error


def _crl_validity(authority: str, crl: Crl) -> Validity:
    return Validity(f"the CRL of {authority}", "crl_expired", "crl_expired", crl.start, crl.end)


def _body_validities(info: TcbInfo, identity: QeIdentity) -> tuple[Validity, Validity]:
    return (
        Validity(TCB_INFO.name, "tcb_info_not_yet_valid", "tcb_info_expired", info.start, info.end),
        Validity(
            QE_IDENTITY.name,
            "qe_identity_not_yet_valid",
            "qe_identity_expired",
            identity.start,
            identity.end,
        ),
    )


def _signed_tcb_info(given: Collateral, signer: IntelCertificate) -> TcbInfo:
    check_signature(TCB_INFO, given.tcb_info, given.tcb_info_signature, signer)
    return read_tcb_info(given.tcb_info)


def _signed_qe_identity(given: Collateral, signer: IntelCertificate) -> QeIdentity:
    check_signature(QE_IDENTITY, given.qe_identity, given.qe_identity_signature, signer)
    return read_qe_identity(given.qe_identity)
