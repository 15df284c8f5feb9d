"""Certificates of a TPM's attestation key: those at hand, and those that may be fetched.

Nothing is fetched unless the verifier was told to. Then all CRLs that certificates in the path name
must be available (vtpm.md, section 9.2).
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from attestkit._crypto.pem import split_pem_with_crls
from attestkit._crypto.x509.ak_certificates.crl import (
    AkCrl,
    check_revocation,
    is_crl,
    read_ak_crl,
)
from attestkit._crypto.x509.ak_certificates.gce_extension import GceInstance, read_gce_extension
from attestkit._crypto.x509.ak_certificates.path import (
    EK_USAGE,
    MAX_PATH,
    AkPath,
    IssuerMissingError,
    find_ak_path,
)
from attestkit._crypto.x509.ak_certificates.urls import read_crl_urls, read_issuer_urls
from attestkit._crypto.x509.cert_path import PathCertificate, read_path_certificate
from attestkit._crypto.x509.vendor_roots import google_roots
from attestkit._reasons import VerificationStep
from attestkit.errors import (
    AttestKitError,
    CollateralError,
    FormatError,
    SignatureError,
    UsageError,
)
from attestkit.verifier.result import ANOTHER_ROOT, passed, skipped

if TYPE_CHECKING:
    from attestkit._reasons import CollateralReason
    from attestkit.collateral.issuer_fetcher import IssuerFetcher, IssuerSession

_MAX_EVIDENCE: Final = 8  # certificates beside that of the key
_LARGEST_KEPT: Final = 4096  # bytes of a certificate that is kept parsed; they have about 1,500
_GOOGLE_NAMES: Final = ("Google's EK/AK CA Root", "Google's TPM root of 2018")

_Read = TypeVar("_Read")

Roots = Sequence[tuple[str, PathCertificate]]


class VerifiedAk(NamedTuple):
    """An attestation key whose certificate leads to a root."""

    path: AkPath
    gce: GceInstance | None  # the instance that a certificate under Google's root names
    steps: tuple[VerificationStep, ...]  # ak_certificate and revocation

    @property
    def spki(self) -> bytes:
        """The key as SubjectPublicKeyInfo in DER."""
        return self.path.leaf.spki


class AkChains:
    """Verification of AK certificates under Google's roots, or others."""

    def __init__(
        self,
        trust_anchor: bytes | None = None,
        *,
        roots: Iterable[bytes] = (),
        certificates: Iterable[bytes] = (),
        fetcher: "IssuerFetcher | None" = None,
    ) -> None:
        """Set roots and certificates.

        Args:
            trust_anchor: Certificate in DER that replaces Google's roots; None uses them.
            roots: Further roots, for keys that are not Google's: DER or PEM.
            certificates: Certificates of CAs, and CRLs: DER or PEM.
            fetcher: Fetches missing certificates and CRLs; None fetches nothing.

        Raises:
            UsageError: If a root, certificate or CRL is malformed.
        """
        if trust_anchor is not None:
            self.google: Roots = (("the trust anchor", read_path_certificate(trust_anchor)),)
        else:
            built_in = map(read_path_certificate, google_roots())
            self.google = tuple(zip(_GOOGLE_NAMES, built_in, strict=True))
        given = [der for blob in roots for der in _blocks("ak_roots", blob)]
        self.others: Roots = tuple([("a root of ak_roots", _given("ak_roots", d)) for d in given])
        found = [der for blob in certificates for der in _blocks("ak_certificates", blob)]
        self._authorities = tuple(
            [_given("ak_certificates", der) for der in found if not is_crl(der)]
        )
        self._crls = tuple([_given_crl(der) for der in found if is_crl(der)])
        self._fetcher = fetcher

    @property
    def genuine(self) -> bool:
        """Whether the trust anchor has the key of one of Google's roots."""
        return all(root.spki in _google_keys() for _, root in self.google)

    def verify(
        self,
        leaf: bytes,
        roots: Roots,
        now: datetime,
        *,
        beside: Sequence[bytes] = (),
        usages: frozenset[str] = frozenset({EK_USAGE}),
        before_fetch: Callable[[], object] = lambda: None,
    ) -> VerifiedAk:
        """Verify the path from an AK certificate to a root, and its revocation.

        Args:
            leaf: Certificate of the attestation key, in DER.
            roots: `google`, `others`, or any other trusted certificates.
            now: Time of the verification, with a time zone.
            beside: Certificates of CAs in the evidence, at most 8, in DER.
            usages: Extended key usages, of which each certificate with any must have one.
            before_fetch: Function that is called before each request; its exception cancels it.

        Raises:
            SignatureError: If a certificate, path or CRL is not valid, or a certificate is revoked.
            CollateralExpiredError: If a certificate or CRL is not valid at `now`.
            CollateralError: If a certificate is missing, or cannot be fetched.
        """
        key = read_evidence_certificate("AK certificate", leaf)
        if len(beside) > _MAX_EVIDENCE:
            message = f"AK certificate: {len(beside)} certificates beside it, over {_MAX_EVIDENCE}"
            raise SignatureError(message, reason="chain_length")
        authorities = [read_evidence_certificate("CA certificate", der) for der in beside]
        known = [*self._authorities, *authorities]
        session = None if self._fetcher is None else self._fetcher.session(before_fetch)
        try:
            path = _find(lambda: find_ak_path(key, known, roots, now, usages), known, session)
        except SignatureError as error:
            if error.reason != "untrusted_root":
                raise
            raise SignatureError(f"{error}; {ANOTHER_ROOT}", reason=error.reason) from error
        google = {root.der for _, root in self.google}
        is_google = path.chain[-1] in google
        # Only Google's lists are at the hosts that may be asked.
        revocation = self._check_revocation(path, now, session if is_google else None)
        if session is not None:
            session.mark_verified()
        count = len(path.certificates)
        text = f"the AK certificate leads to {path.root_name} ({count} certificates), and is valid"
        steps = (passed("ak_certificate", text), revocation)
        # Only Google says what its instances are; another root could name any.
        gce = _read_gce(path.leaf) if is_google else None
        return VerifiedAk(path, gce, steps)

    def _check_revocation(
        self, path: AkPath, now: datetime, session: "IssuerSession | None"
    ) -> VerificationStep:
        crls = list(self._crls)
        if session is not None:
            for _, certificate in path.certificates[:-1]:
                if urls := read_crl_urls(certificate):
                    crls.append(_fetched(session.crl(urls), "CRL", read_ak_crl))
        try:
            found = check_revocation(path, crls, now)
        except FormatError as error:
            message = f"CRL for the AK certificate: malformed: {error}"
            raise CollateralError(message, reason="crl_malformed") from error
        if session is not None and found.unknown:
            # Plain http: who can alter an answer must not be able to switch the check off.
            raise CollateralError(
                f"CRL for {found.unknown[0]}: the fetched one is of another issuer; try again",
                reason="missing",
            )
        checked = f"CRLs list none of the {len(found.checked)} AK certificates that they cover"
        if found.unknown or not found.checked:
            missing = f"for {', '.join(found.unknown)}" if found.unknown else "at hand"
            text = f"revocation of AK certificates was not checked: no CRL {missing}"
            return skipped("revocation", f"{text}; {checked}" if found.checked else text)
        return passed("revocation", checked)


@lru_cache(maxsize=1)
def _google_keys() -> frozenset[bytes]:
    """Return the keys of Google's roots; they never change."""
    return frozenset([read_path_certificate(root).spki for root in google_roots()])


def _find(
    search: Callable[[], AkPath], known: list[PathCertificate], session: "IssuerSession | None"
) -> AkPath:
    """Return the path that `search` finds, after adding missing issuers to `known`."""
    for _ in range(MAX_PATH):
        try:
            return search()
        except IssuerMissingError as error:
            if session is None or not (urls := read_issuer_urls(error.certificate)):
                raise
            issuer = _fetched(session.certificate(urls), "certificate", read_path_certificate)
            if issuer in known:  # of another key: fetching it again does not help
                raise
            known.append(issuer)
    message = f"AK certificate: its path has over {MAX_PATH} certificates"
    raise SignatureError(message, reason="chain_length")


def _read_gce(leaf: PathCertificate) -> GceInstance | None:
    try:
        return read_gce_extension(leaf.extensions)
    except FormatError as error:
        raise SignatureError(f"AK certificate: {error}", reason="cert_malformed") from error


def read_evidence_certificate(what: str, der: bytes) -> PathCertificate:
    """Parse a certificate of the evidence, `what` in errors; SignatureError if it is malformed."""
    try:
        return _parsed(der) if len(der) <= _LARGEST_KEPT else read_path_certificate(der)
    except FormatError as error:
        raise SignatureError(f"{what}: {error}", reason="cert_malformed") from error


@lru_cache(maxsize=64)
def _parsed(der: bytes) -> PathCertificate:
    """Return a parsed certificate; the same one is read several times in a verification."""
    return read_path_certificate(der)


def _fetched(body: bytes, what: str, read: Callable[[bytes], _Read]) -> _Read:
    """Parse a fetched certificate or CRL; CollateralError if it is malformed."""
    try:
        [der] = _split(body)
        return read(der)
    except (AttestKitError, ValueError) as error:
        message = f"fetched {what} of an issuer: malformed: {error}; try again"
        reason: CollateralReason = "crl_malformed" if what == "CRL" else "cert_malformed"
        raise CollateralError(message, reason=reason) from error


def _given(what: str, der: bytes) -> PathCertificate:
    try:
        return read_path_certificate(der)
    except FormatError as error:
        raise UsageError(f"{what}: {error}", reason="wrong_value") from error


def _given_crl(der: bytes) -> AkCrl:
    try:
        return read_ak_crl(der)
    except FormatError as error:
        raise UsageError(f"ak_certificates: {error}", reason="wrong_value") from error


def _blocks(what: str, blob: bytes) -> list[bytes]:
    try:
        return _split(blob)
    except (FormatError, ValueError) as error:
        raise UsageError(f"{what}: malformed: {error}", reason="encoding") from error


def _split(blob: bytes) -> list[bytes]:
    """Return the DER of a certificate or CRL, or of each block of PEM."""
    if not blob.lstrip().startswith(b"-----BEGIN"):
        return [blob]
    return split_pem_with_crls(blob.decode("ascii"))
