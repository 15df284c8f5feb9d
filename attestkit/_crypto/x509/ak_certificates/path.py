"""Certificate paths of the attestation keys (AK) of TPMs, from given certificates.

A provider has several issuers of the same name with different keys, so an issuer is found by its
key identifier or, where a certificate has none, by the signature.
Extended key usages are required where they are present, as webpki's `required_if_present`.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Final, NamedTuple

from attestkit._crypto.der import OCTET_STRING, SEQUENCE, DerReader
from attestkit._crypto.public_key import load_verification_key
from attestkit._crypto.x509.cert_path import (
    VENDOR_RULES,
    CheckIssued,
    NamedCertificate,
    PathCertificate,
    PathRules,
    check_issued,
    check_path,
    read_usages,
)
from attestkit._crypto.x509.names import COMMON_NAME, read_name
from attestkit._sanitize import shown
from attestkit.errors import AttestKitError, CollateralError, FormatError, SignatureError

if TYPE_CHECKING:
    from attestkit._outcomes.reasons import SignatureReason

EK_USAGE: Final = "2.23.133.8.1"
"""Extended key usage of endorsement key certificates, which Google's AK certificates have, too."""

AK_USAGE: Final = "2.23.133.8.3"
"""Extended key usage of attestation key certificates (TCG Credential Profile EK, 3.5)."""

MAX_PATH: Final = 8  # certificates, the root included
_MAX_SIGNATURES: Final = 32  # verified while searching for a path
_KEPT: Final = 64  # names and extensions that are kept parsed, of at most 16,384 bytes each
_KEY_ID: Final = 0x80  # [0] IMPLICIT OCTET STRING of an authority key identifier
_SUBJECT_KEY_ID, _AUTHORITY_KEY_ID = "2.5.29.14", "2.5.29.35"
_EXTENDED_KEY_USAGE, _ALTERNATIVE_NAME = "2.5.29.37", "2.5.29.17"


def _verify(
    spki: bytes, signature: bytes, signed: bytes, *, algorithm: str, hash_name: str
) -> None:
    load_verification_key(spki).verify(algorithm, hash_name, signature, signed)


AK_RULES: Final = PathRules(
    {
        **VENDOR_RULES.algorithms,
        **{
            bytes.fromhex(identifier): partial(_verify, algorithm=algorithm, hash_name=hash_name)
            for identifier, algorithm, hash_name in (
                ("300a06082a8648ce3d040302", "ecdsa", "sha256"),
                ("300d06092a864886f70d01010b0500", "rsassa", "sha256"),
                ("300d06092a864886f70d01010c0500", "rsassa", "sha384"),
                ("300d06092a864886f70d01010d0500", "rsassa", "sha512"),
            )
        },
    },
    "RSA or ECDSA on P-256 or P-384, with SHA-256 or better",
    # The alternative name of a TPM's certificate is critical, because its subject is empty.
    VENDOR_RULES.critical | {_EXTENDED_KEY_USAGE, _ALTERNATIVE_NAME},
)
"""Rules for certificates of TPM keys."""


class IssuerMissingError(CollateralError):
    """No issuer of a certificate is among the given ones."""

    def __init__(self, message: str, certificate: PathCertificate) -> None:
        """Create the error for `certificate`, whose issuer is missing."""
        super().__init__(message, reason="missing")
        self.certificate = certificate


class AkPath(NamedTuple):
    """A valid path: certificates with their names for errors, leaf first, root last."""

    certificates: tuple[tuple[str, PathCertificate], ...]

    @property
    def leaf(self) -> PathCertificate:
        """The certificate of the attestation key."""
        return self.certificates[0][1]

    def is_valid_at(self, now: datetime) -> bool:
        """Return whether all certificates are valid at `now`, which has a time zone."""
        return all(one.valid_from <= now <= one.valid_until for _, one in self.certificates)

    @property
    def root_name(self) -> str:
        """Name of the root, for texts."""
        return self.certificates[-1][0]

    @property
    def chain(self) -> tuple[bytes, ...]:
        """DER of the certificates, leaf first, root last."""
        return tuple([certificate.der for _, certificate in self.certificates])


def find_ak_path(
    leaf: PathCertificate,
    authorities: Iterable[PathCertificate],
    roots: Sequence[tuple[str, PathCertificate]],
    now: datetime,
    *,
    usages: frozenset[str] = frozenset({EK_USAGE}),
    check: CheckIssued = check_issued,
) -> AkPath:
    """Return a valid path from an AK certificate to a root.

    Args:
        leaf: The certificate of the attestation key.
        authorities: Certificates of CAs, in any order, not trusted.
        roots: Trusted certificates with their names for errors.
        now: Time of the verification, with a time zone.
        usages: OIDs of extended key usages. Each certificate below the root that has the extension
            must have one of them.
        check: Function with the outcome of `check_issued`, such as one with a cache.

    Raises:
        IssuerMissingError: If an issuer is not among the certificates.
        CollateralExpiredError: If a certificate is not valid at `now`.
        SignatureError: If no path is valid: `untrusted_root`, `chain_length`, `cert_usage`,
            `cert_malformed` or a reason of `check_path`.
    """
    return _Search(tuple(authorities), tuple(roots), now, usages, check).run(leaf)


class _Search:
    """A depth-first search for a path; it limits the signatures, and reports the longest path."""

    def __init__(
        self,
        authorities: tuple[PathCertificate, ...],
        roots: tuple[tuple[str, PathCertificate], ...],
        now: datetime,
        usages: frozenset[str],
        check: CheckIssued,
    ) -> None:
        self._authorities, self._roots = authorities, roots
        self._now, self._usages, self._check = now, usages, check
        self._signatures = 0
        self._problems: list[tuple[int, AttestKitError]] = []  # with the length of the path

    def run(self, leaf: PathCertificate) -> AkPath:
        """Return the path; raise the problem of the longest one if none is valid."""
        found = self._extend((("AK certificate", leaf),))
        if found is not None:
            return found
        # The longest path gives the most specific error; of equally long ones, the first.
        _, problem = max(self._problems, key=lambda pair: pair[0])
        raise problem

    def _extend(self, path: tuple[tuple[str, PathCertificate], ...]) -> AkPath | None:
        """Return the first valid path that begins with `path`; None without one, and note why."""
        if len(path) >= MAX_PATH:
            message = f"AK certificate: its path has over {MAX_PATH} certificates"
            self._note(path, SignatureError(message, reason="chain_length"))
            return None
        tried = len(self._problems)
        for root in self._roots:
            if _may_issue(root[1], path[-1][1]) and self._signed(path, root, is_root=True):
                return self._checked((*path, root))
        used = {certificate.der for _, certificate in path}
        for at, authority in enumerate(self._authorities, start=1):
            if authority.der in used or not _may_issue(authority, path[-1][1]):
                continue
            named = (f"CA certificate {at} ({name_of(authority)})", authority)
            if authority.subject == authority.issuer:  # a root that is not trusted
                message = f"{path[-1][0]}: leads to a root that is not trusted, {named[0]}"
                self._note(path, SignatureError(message, reason="untrusted_root"))
            elif self._signed(path, named, is_root=False):
                found = self._extend((*path, named))
                if found is not None:
                    return found
        if len(self._problems) == tried:
            self._note(path, _missing(*path[-1]))
        return None

    def _signed(
        self,
        path: tuple[tuple[str, PathCertificate], ...],
        issuer: tuple[str, PathCertificate],
        *,
        is_root: bool,
    ) -> bool:
        """Return whether `issuer`, a root if `is_root`, signed the last certificate of `path`."""
        self._signatures += 1
        if self._signatures > _MAX_SIGNATURES:
            message = f"AK certificate: over {_MAX_SIGNATURES} signatures; pass fewer certificates"
            raise SignatureError(message, reason="chain_length")
        reason: SignatureReason = "untrusted_root" if is_root else "cert_bad_signature"
        try:
            self._check(path[-1], issuer, reason, AK_RULES)
        except SignatureError as error:
            self._note(path, error)
            return False
        return True

    def _checked(self, path: tuple[tuple[str, PathCertificate], ...]) -> AkPath | None:
        try:
            check_path(path, self._now, AK_RULES, _verified)
            for named in path[:-1]:
                _check_usage(named, self._usages)
        except AttestKitError as error:
            self._problems.append((MAX_PATH + 1, error))  # before all others
            return None
        return AkPath(path)

    def _note(self, path: tuple[tuple[str, PathCertificate], ...], problem: AttestKitError) -> None:
        self._problems.append((len(path), problem))


def _verified(
    named: NamedCertificate, issuer: NamedCertificate, reason: "SignatureReason", rules: PathRules
) -> None:
    """Do nothing, as `check` of `check_path`: the search has verified the path's signatures."""


def _missing(name: str, certificate: PathCertificate) -> IssuerMissingError:
    common_name = _common_name(certificate.issuer)
    issuer = f"its issuer, {shown(common_name)}," if common_name else "its issuer"
    return IssuerMissingError(
        f"{name}: the certificate of {issuer} is missing, and the certificate is not "
        "a trusted root; pass the issuer's in ak_certificates, or let the verifier fetch it",
        certificate,
    )


def _may_issue(authority: PathCertificate, certificate: PathCertificate) -> bool:
    """Return whether the authority has the issuer's name and, if both have one, key identifier."""
    if authority.subject != certificate.issuer:
        return False
    wanted, found = authority_key_id(certificate), subject_key_id(authority)
    return wanted is None or found is None or wanted == found


def authority_key_id(certificate: PathCertificate) -> bytes | None:
    """Return the issuer's key identifier; None if not stated. SignatureError if malformed."""
    return read_authority_key_id(certificate.extensions)


def read_authority_key_id(extensions: Mapping[str, bytes]) -> bytes | None:
    """Return the key identifier in an authority key identifier; None without one.

    Raises:
        SignatureError: If the extension is malformed.
    """
    value = extensions.get(_AUTHORITY_KEY_ID)
    return None if value is None else _parse_authority_key_id(value)


@lru_cache(maxsize=_KEPT)
def _parse_authority_key_id(value: bytes) -> bytes | None:
    reader = DerReader(value)
    try:
        fields = reader.enter(SEQUENCE)
        reader.finish()
        return fields.content(_KEY_ID) if fields.tag() == _KEY_ID else None
    except FormatError as error:
        raise _malformed("authority key identifier", error) from error


def subject_key_id(certificate: PathCertificate) -> bytes | None:
    """Return the subject key identifier; None without it. SignatureError if malformed."""
    value = certificate.extensions.get(_SUBJECT_KEY_ID)
    return None if value is None else _parse_subject_key_id(value)


@lru_cache(maxsize=_KEPT)
def _parse_subject_key_id(value: bytes) -> bytes:
    reader = DerReader(value)
    try:
        found = reader.content(OCTET_STRING)
        reader.finish()
    except FormatError as error:
        raise _malformed("subject key identifier", error) from error
    return found


def _check_usage(named: tuple[str, PathCertificate], usages: frozenset[str]) -> None:
    name, certificate = named
    value = certificate.extensions.get(_EXTENDED_KEY_USAGE)
    if value is None:
        return
    try:
        found = read_usages(value)
    except FormatError as error:
        raise _malformed("extended key usage", error) from error
    if not usages & found:
        wanted = " or ".join(sorted(usages))
        message = f"{name}: extended key usage must include {wanted}"
        raise SignatureError(message, reason="cert_constraints")


def name_of(certificate: PathCertificate) -> str:
    """Return the subject's common name in quotes, for errors; an empty pair of quotes without."""
    return shown(_common_name(certificate.subject))


@lru_cache(maxsize=_KEPT)
def _common_name(name: bytes) -> str:
    """Return the common name in a Name; empty without one, or if the name is malformed."""
    try:
        return read_name(name).get(COMMON_NAME, "")
    except FormatError:
        return ""


def _malformed(what: str, error: FormatError) -> SignatureError:
    return SignatureError(f"certificate: {what}: malformed: {error}", reason="cert_malformed")
