"""Certificates of a TPM's attestation key (AK): verification of their paths and revocation.

Certificates and CRLs are arguments, part of the evidence or of its bundle. Others are fetched only
if the verifier has a fetcher; then all CRLs that certificates in the path name must be available.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from copy import copy
from datetime import datetime
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from attestkit._argument_checks import name_argument
from attestkit._crypto.pem import CERTIFICATE_LABEL, CRL_LABEL, split_der_or_pem
from attestkit._crypto.x509.ak_certificates.crl import (
    RevocationFacts,
    check_revocation,
    is_crl,
    read_ak_crl,
    read_crl_urls,
    read_issued_crl,
    read_issuer_urls,
)
from attestkit._crypto.x509.ak_certificates.gce_extension import GceInstance, read_gce_extension
from attestkit._crypto.x509.ak_certificates.path import (
    EK_USAGE,
    MAX_PATH,
    AkPath,
    IssuerMissingError,
    find_ak_path,
)
from attestkit._crypto.x509.cert_path import (
    NamedCertificate,
    PathCertificate,
    read_path_certificate,
)
from attestkit._crypto.x509.crl import Crl, SignedCrl
from attestkit._crypto.x509.vendor_roots import google_roots
from attestkit._outcomes.steps import VerificationStep, passed, skipped
from attestkit._system.bounded_cache import BoundedCache
from attestkit.errors import (
    CollateralError,
    CollateralExpiredError,
    FormatError,
    SignatureError,
)
from attestkit.verifier.chain_cache import ChainCache, root_key
from attestkit.verifier.claims import ANOTHER_ROOT

if TYPE_CHECKING:
    from attestkit._outcomes.reasons import CollateralReason
    from attestkit.collateral.issuer_fetcher import IssuerFetcher, IssuerSession

_MAX_EVIDENCE: Final = 8  # certificates beside that of the key
_LARGEST_KEPT: Final = 4096  # bytes of a certificate that is kept parsed; they have about 1,500
_KEPT_SIGNATURES: Final = 4096  # of certificates in valid paths
_KEPT_CRLS: Final = 32  # verified and parsed
_KEPT_PATHS: Final = 1024
_LARGEST_SET: Final = 16_384  # bytes of the certificates beside which a path is kept
_GOOGLE_NAMES: Final = ("Google's EK/AK CA Root", "Google's TPM root of 2018")
_LABELS: Final = (CERTIFICATE_LABEL, CRL_LABEL)

_Read = TypeVar("_Read")

# Certificates of the evidence and the caller, key first; roots; usages; and which are valid.
_PathFacts = tuple[tuple[bytes, ...], tuple[bytes, ...], frozenset[str], tuple[bool, ...]]

Roots = Sequence[NamedCertificate]


class VerifiedAk(NamedTuple):
    """An attestation key (AK) whose certificate path to a root was verified."""

    path: AkPath
    gce: GceInstance | None  # the instance that a certificate under Google's root names
    steps: tuple[VerificationStep, ...]  # ak_certificate and ak_revocation

    @property
    def spki(self) -> bytes:
        """The key as SubjectPublicKeyInfo in DER."""
        return self.path.leaf.spki


class _Issuers(NamedTuple):
    """Untrusted CA certificates and CRLs of one origin: the arguments, or an evidence bundle."""

    certificates: tuple[PathCertificate, ...] = ()
    crls: tuple[SignedCrl, ...] = ()

    @classmethod
    def read(cls, blobs: Iterable[bytes]) -> "_Issuers":
        """Parse certificates and CRLs.

        Args:
            blobs: Each is DER, or PEM with one or more.

        Raises:
            FormatError: If a certificate or CRL is malformed.
        """
        found = [der for blob in blobs for der in _split(blob)]
        return cls(
            tuple([read_path_certificate(der) for der in found if not is_crl(der)]),
            tuple([read_ak_crl(der) for der in found if is_crl(der)]),
        )


class AkChains:
    """Verifier of certificate paths of attestation keys (AK) of TPMs. Thread-safe."""

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
            roots: Roots for keys of TPMs that are not a cloud provider's: DER or PEM.
            certificates: Certificates of CAs, and CRLs: DER or PEM.
            fetcher: Fetches missing certificates and CRLs; None fetches nothing.

        Raises:
            FormatError: If `trust_anchor` is malformed.
            UsageError: If a root, certificate or CRL is malformed.
        """
        if trust_anchor is not None:
            self.google: Roots = (("the trust anchor", read_path_certificate(trust_anchor)),)
        else:
            built_in = map(read_path_certificate, google_roots())
            self.google = tuple(zip(_GOOGLE_NAMES, built_in, strict=True))
        named = name_argument("ak_roots", lambda: _read_roots(roots))
        self.others: Roots = tuple([("a root of ak_roots", root) for root in named])
        self._given = name_argument("ak_certificates", lambda: _Issuers.read(certificates))
        self._of_evidence = _Issuers()
        self._fetched_before: tuple[SignedCrl, ...] = ()  # of a verifier of bundles
        self._fetcher = fetcher
        self._cache = ChainCache(_KEPT_SIGNATURES)
        self._crls = BoundedCache[tuple[bytes, bytes], Crl](_KEPT_CRLS)
        self._paths = BoundedCache[_PathFacts, AkPath](_KEPT_PATHS)

    def with_bundled(self, certificates: Iterable[bytes]) -> "AkChains":
        """Return a verifier with the certificates and CRLs of an evidence bundle; it fetches none.

        The bundle's CRLs are used only for issuers without a CRL in the arguments. CRLs that this
        object has fetched can revoke a certificate too. The caches are shared with this object.

        Args:
            certificates: Certificates of CAs, and CRLs, of the bundle: DER or PEM.

        Raises:
            FormatError: If a certificate or CRL is malformed.
        """
        found = copy(self)
        found._fetcher = None  # noqa: SLF001 - of this class
        found._of_evidence = _Issuers.read(certificates)  # noqa: SLF001 - of this class
        found._fetched_before = _Issuers.read(self.fetched()).crls  # noqa: SLF001 - of this class
        return found

    def fetched(self) -> tuple[bytes, ...]:
        """Return certificates and CRLs fetched and verified in the last hour, each DER or PEM."""
        return () if self._fetcher is None else self._fetcher.verified()

    @property
    def tpm_roots(self) -> Roots:
        """Roots for the AK of evidence that names no cloud: those of `ak_roots`, else Google's."""
        return self.others or self.google

    @property
    def genuine(self) -> bool:
        """Whether the trust anchor has the key of one of Google's roots."""
        keys = {root_key(root) for root in google_roots()}
        return all(root.spki in keys for _, root in self.google)

    def is_google(self, path: AkPath) -> bool:
        """Return whether a path ends at a root of Google, or at the trust anchor in its place."""
        return path.chain[-1] in {root.der for _, root in self.google}

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
            roots: `google`, `tpm_roots`, or other trusted certificates.
            now: Time of the verification, with a time zone.
            beside: Certificates of CAs in the evidence, at most 8, in DER.
            usages: Accepted extended key usages (dotted OIDs). A certificate with extended key
                usages must have one of these.
            before_fetch: Function that is called before each request; its exception cancels the
                request.

        Raises:
            SignatureError: If a certificate, path or CRL is not valid, or a certificate is revoked.
            CollateralExpiredError: If a certificate or CRL is not valid at `now`.
            CollateralError: If a certificate is missing, or cannot be fetched.
        """
        key = read_evidence_certificate("AK certificate", leaf)
        known = self._known_authorities(beside)
        session = None if self._fetcher is None else self._fetcher.session(before_fetch)
        path = self._find_path(key, known, roots, now, usages=usages, session=session)
        is_google = self.is_google(path)
        # Only Google's CRLs are at the hosts to which requests are sent.
        revocation = self._check_revocation(
            path, now, session if is_google else None, is_google=is_google
        )
        if session is not None:
            session.mark_verified()
        count = len(path.certificates)
        text = f"the AK certificate leads to {path.root_name} ({count} certificates), and is valid"
        steps = (passed("ak_certificate", text), revocation)
        # Only Google's CA assigns names of its instances; another CA could assign any.
        gce = read_gce_instance(path.leaf) if is_google else None
        return VerifiedAk(path, gce, steps)

    def _known_authorities(self, beside: Sequence[bytes]) -> list[PathCertificate]:
        """Return the CA certificates of arguments, bundle and evidence (`beside`, at most 8)."""
        if len(beside) > _MAX_EVIDENCE:
            message = (
                f"AK certificate: {len(beside)} certificates beside it, at most {_MAX_EVIDENCE}"
            )
            raise SignatureError(message, reason="chain_length")
        found = [read_evidence_certificate("CA certificate", der) for der in beside]
        return [*self._given.certificates, *self._of_evidence.certificates, *found]

    def _find_path(
        self,
        key: PathCertificate,
        known: list[PathCertificate],
        roots: Roots,
        now: datetime,
        *,
        usages: frozenset[str],
        session: "IssuerSession | None",
    ) -> AkPath:
        """Return a valid path: a cached one that is valid at `now`, or the result of a search.

        The key of the cache has the set of certificates valid at `now`, because the result of a
        search depends on it.

        Args:
            key: Certificate of the attestation key.
            known: Certificates of CAs; fetched ones are added.
            roots: Trusted certificates, with their names.
            now: Time of the verification, with a time zone.
            usages: Accepted extended key usages, dotted OIDs.
            session: Fetches missing certificates; None fetches nothing.
        """
        every = (key, *known, *[root for _, root in roots])
        valid = tuple([one.valid_from <= now <= one.valid_until for one in every])
        ders = tuple([one.der for one in every])
        given = ders[: 1 + len(known)], ders[1 + len(known) :], usages, valid
        kept = self._paths.find(given) if session is None else None
        if kept is not None and kept.is_valid_at(now):
            return kept
        check = partial(self._cache.check_issued, store=False)
        try:
            path = _find(
                lambda: find_ak_path(key, known, roots, now, usages=usages, check=check),
                known,
                session,
            )
        except SignatureError as error:
            if error.reason != "untrusted_root":
                raise
            raise SignatureError(f"{error}; {ANOTHER_ROOT}", reason=error.reason) from error
        self._cache.keep_path(path.certificates)
        if session is None and sum(map(len, given[0])) <= _LARGEST_SET:
            self._paths.get(given, lambda: path)
        return path

    def _check_revocation(
        self, path: AkPath, now: datetime, session: "IssuerSession | None", *, is_google: bool
    ) -> VerificationStep:
        # Google's certificates of keys name no CRL, and their issuers publish none.
        leaf = path.certificates[:1] if is_google else ()
        try:
            if session is None:
                return _revocation_step(path, self._find_revoked(path, now), leaf)
            found = self._find_fetching(path, now, session)
        except FormatError as error:
            message = f"CRL for the AK certificate: malformed: {error}"
            raise CollateralError(message, reason="crl_malformed") from error
        if found.unknown:
            # Answers come over plain HTTP: an altered one must not disable the check.
            raise CollateralError(
                f"CRL for {found.unknown[0][0]}: the fetched one is not of its issuer; try again",
                reason="missing",
            )
        return _revocation_step(path, found, leaf)

    def _find_revoked(
        self, path: AkPath, now: datetime, fetched: Iterable[SignedCrl] = ()
    ) -> RevocationFacts:
        """Return which certificates of a path the CRLs of arguments, bundle and `fetched` cover.

        The errors, for a revoked certificate or a CRL that is not valid, are of `check_revocation`.
        """
        return check_revocation(
            path,
            (*self._given.crls, *fetched),
            now,
            of_evidence=self._of_evidence.crls,
            refusing=self._fetched_before,
            read=self._read_crl,
        )

    def _find_fetching(
        self, path: AkPath, now: datetime, session: "IssuerSession"
    ) -> RevocationFacts:
        """Return the result of `_find_revoked`; fetch CRLs that are missing or out of date."""
        missing: Sequence[NamedCertificate] = path.certificates[:-1]
        with suppress(CollateralExpiredError):
            found = self._find_revoked(path, now)
            missing = found.unknown
            if not missing:
                return found
        fetched = [
            _fetched(session.crl(urls), "CRL", read_ak_crl)
            for _, certificate in missing
            if (urls := read_crl_urls(certificate))
        ]
        try:
            return self._find_revoked(path, now, fetched)
        except SignatureError as error:
            if error.reason == "cert_revoked":  # found in a CRL whose signature is valid
                session.mark_verified()
            raise

    def _read_crl(self, crl: SignedCrl, issuer: PathCertificate) -> Crl:
        """Return the content of a CRL after verifying its signature, as `read_issued_crl`."""
        return self._crls.get((crl.der, issuer.der), lambda: read_issued_crl(crl, issuer))


def _revocation_step(
    path: AkPath, found: RevocationFacts, without: Sequence[NamedCertificate]
) -> VerificationStep:
    """Return the step `ak_revocation`; it passes if CRLs cover the certificates below the root.

    Args:
        path: A valid path.
        found: Certificates of the path that CRLs cover (`checked`), and others (`unknown`).
        without: Certificates whose issuers publish no CRL; they count as covered.
    """
    checked = f"CRLs list none of the {len(found.checked)} AK certificates that they cover"
    known = {name for name, _ in found.checked}
    known |= {name for name, _ in without} - {name for name, _ in found.unknown}
    rest = [name for name, _ in path.certificates[:-1] if name not in known]
    if found.checked and not rest:
        return passed("ak_revocation", checked)
    missing = f" for {', '.join(rest)}" if rest else ""
    text = f"revocation of AK certificates was not checked: no CRL{missing}"
    return skipped("ak_revocation", f"{text}; {checked}" if found.checked else text)


def _find(
    search: Callable[[], AkPath], known: list[PathCertificate], session: "IssuerSession | None"
) -> AkPath:
    """Return the path that `search` finds; fetch missing issuers, and search again.

    Args:
        search: Returns the path from the certificates in `known`, or raises an error for a missing
            issuer.
        known: Certificates of CAs, to which fetched ones are added.
        session: Fetches certificates; None fetches nothing.

    Raises:
        IssuerMissingError: If an issuer is missing and cannot be fetched.
        CollateralError: If a fetched certificate is malformed.
        SignatureError: If the path is not valid or too long.
    """
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


def read_gce_instance(leaf: PathCertificate) -> GceInstance | None:
    """Return the Google VM that a certificate's extension names; None without the extension.

    SignatureError if the extension is malformed.
    """
    try:
        return read_gce_extension(leaf.extensions)
    except FormatError as error:
        raise SignatureError(f"AK certificate: {error}", reason="cert_malformed") from error


def read_evidence_certificate(what: str, der: bytes) -> PathCertificate:
    """Parse a certificate of the evidence.

    Args:
        what: Its name in errors.
        der: The certificate in DER.

    Raises:
        SignatureError: If it is malformed.
    """
    try:
        return _parsed(der) if len(der) <= _LARGEST_KEPT else read_path_certificate(der)
    except FormatError as error:
        raise SignatureError(f"{what}: {error}", reason="cert_malformed") from error


@lru_cache(maxsize=64)
def _parsed(der: bytes) -> PathCertificate:
    """Return the parsed certificate `der` (DER).

    The result is cached, because a verification reads the same certificate several times.
    """
    return read_path_certificate(der)


def _fetched(body: bytes, what: str, read: Callable[[bytes], _Read]) -> _Read:
    """Parse a fetched certificate or CRL.

    Args:
        body: Its DER or PEM.
        what: Its name in errors, "certificate" or "CRL".
        read: Function that parses its DER.

    Raises:
        CollateralError: If it is malformed, or there are several.
    """
    try:
        [der] = _split(body)
        return read(der)
    except (FormatError, ValueError) as error:  # ValueError: several blocks of PEM
        problem = f"malformed: {error}" if isinstance(error, FormatError) else "more than one"
        message = f"fetched {what} of an issuer: {problem}; try again"
        reason: CollateralReason = "crl_malformed" if what == "CRL" else "cert_malformed"
        raise CollateralError(message, reason=reason) from error


def _read_roots(blobs: Iterable[bytes]) -> list[PathCertificate]:
    found = [der for blob in blobs for der in split_der_or_pem(blob, "certificate")]
    return [read_path_certificate(der) for der in found]


def _split(blob: bytes) -> list[bytes]:
    """Return the DER of certificates and CRLs.

    Args:
        blob: DER of one of them, or PEM with one or more.

    Raises:
        FormatError: If it is neither.
    """
    return split_der_or_pem(blob, "certificate or CRL", _LABELS)
