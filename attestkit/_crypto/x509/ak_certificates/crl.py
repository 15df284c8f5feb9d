"""CRLs of TPM keys' certificates, and the URLs of CRLs and issuers in them (RFC 5280, 5).

A CRL counts only if the issuer of a certificate signed it. A certificate without a CRL of its
issuer has an unknown status, which the caller reports.

The certificates are not verified when the URLs are read, so the caller limits what it fetches.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final, NamedTuple

from cryptography import x509

from attestkit._crypto.der import INTEGER, OID, SEQUENCE, DerReader, context, dotted_oid
from attestkit._crypto.x509.ak_certificates.path import (
    AK_RULES,
    AkPath,
    read_authority_key_id,
    subject_key_id,
)
from attestkit._crypto.x509.app_certificates import reading_x509
from attestkit._crypto.x509.cert_path import NamedCertificate, PathCertificate
from attestkit._crypto.x509.crl import (
    Crl,
    SignedCrl,
    check_crl_signature,
    naming_crl,
    read_crl_content,
    read_signed_crl,
)
from attestkit.errors import CollateralExpiredError, FormatError, SignatureError

_INFORMATION_ACCESS, _CRL_POINTS = "1.3.6.1.5.5.7.1.1", "2.5.29.31"
_CA_ISSUERS: Final = "1.3.6.1.5.5.7.48.2"
_URL: Final = 0x86  # GeneralName: [6] IMPLICIT IA5String
_MAX_URLS: Final = 4
_MAX_SIZE: Final = 1024  # bytes of a URL


def read_issuer_urls(certificate: PathCertificate) -> tuple[str, ...]:
    """Return the URLs where the certificate of a certificate's issuer is published.

    They are the caIssuers of the authority information access extension (RFC 5280, 4.2.2.1) that
    begin with http or https; empty without the extension. More than 4 URLs count as malformed.

    Raises:
        SignatureError: If the extension is malformed (`cert_malformed`).
    """
    value = certificate.extensions.get(_INFORMATION_ACCESS)
    return () if value is None else _read("authority information access", value)


def read_crl_urls(certificate: PathCertificate) -> tuple[str, ...]:
    """Return the URLs where the CRL for a certificate is published.

    They are the CRL distribution points (RFC 5280, 4.2.1.13) that begin with http or https; empty
    without the extension. More than 4 URLs count as malformed.

    Raises:
        SignatureError: If the extension is malformed (`cert_malformed`).
    """
    value = certificate.extensions.get(_CRL_POINTS)
    return () if value is None else _read("CRL distribution points", value)


def _read(what: str, value: bytes) -> tuple[str, ...]:
    read = _crl_names if what.startswith("CRL") else _issuer_names
    try:
        urls = tuple([_text(name) for name in read(value)])
    except FormatError as error:
        message = f"certificate: {what}: malformed: {error}"
        raise SignatureError(message, reason="cert_malformed") from error
    return tuple(url for url in urls if url.startswith(("http://", "https://")))


def _issuer_names(value: bytes) -> list[bytes]:
    entries = DerReader(value).enter_only(SEQUENCE)
    found: list[bytes] = []
    while entries.tag() is not None:
        entry = entries.enter(SEQUENCE)
        method, kind = dotted_oid(entry.content(OID)), entry.tag()
        name = entry.whole()
        entry.finish()
        if method == _CA_ISSUERS and kind == _URL:
            _add(found, DerReader(name).content(_URL))
    return found


def _crl_names(value: bytes) -> list[bytes]:
    points = DerReader(value).enter_only(SEQUENCE)
    found: list[bytes] = []
    while points.tag() is not None:
        point = points.enter(SEQUENCE)
        if point.tag() != context(0):  # named by its issuer only
            continue
        place = point.enter(context(0))
        if place.tag() != context(0):  # relative to the issuer's name
            continue
        names = place.enter(context(0))
        while names.tag() is not None:
            kind = names.tag()
            name = names.whole()
            if kind == _URL:
                _add(found, DerReader(name).content(_URL))
    return found


def _add(found: list[bytes], name: bytes) -> None:
    if len(found) == _MAX_URLS:
        raise FormatError(f"URLs: over {_MAX_URLS}", reason="too_many")
    found.append(name)


def _text(url: bytes) -> str:
    if len(url) > _MAX_SIZE:
        raise FormatError(f"URL: {len(url)} bytes, at most {_MAX_SIZE}", reason="too_large")
    if not url.isascii() or not url.decode().isprintable() or b" " in url:
        raise FormatError("URL: must be printable ASCII", reason="encoding")
    return url.decode()


CRL_LIMIT: Final = 1 << 20
"""Maximum size of a CRL in bytes; Google's have under 1,000."""

ReadIssued = Callable[[SignedCrl, PathCertificate], Crl]
"""`read_issued_crl`, or a function that calls it."""


class RevocationFacts(NamedTuple):
    """Certificates of a path, none revoked: `checked` by a CRL, or `unknown` without one."""

    checked: tuple[NamedCertificate, ...]  # certificates with a CRL of their issuer
    unknown: tuple[NamedCertificate, ...]  # those that name a CRL, which is missing


def read_ak_crl(der: bytes) -> SignedCrl:
    """Split a version 2 CRL in DER, without reading its entries.

    Raises:
        FormatError: If it is malformed, of another version, or over 1 MiB.
    """
    if len(der) > CRL_LIMIT:
        raise FormatError(f"CRL: {len(der)} bytes, at most {CRL_LIMIT}", reason="too_large")
    with naming_crl():
        return read_signed_crl(der)


def is_crl(der: bytes) -> bool:
    """Return whether `der` looks like a CRL rather than a certificate of version 3."""
    try:
        return DerReader(der).enter(SEQUENCE).enter(SEQUENCE).tag() == INTEGER
    except FormatError:
        return False


def read_issued_crl(crl: SignedCrl, issuer: PathCertificate) -> Crl:
    """Verify that `issuer` signed a CRL, and parse it; callers may cache the outcome.

    Raises:
        SignatureError: If it is not signed by the issuer (`crl_bad_signature`).
        FormatError: If the CRL is malformed, or it or an entry has a critical extension.
    """
    check_crl_signature(crl, issuer, AK_RULES, "CRL")
    with naming_crl():
        return read_crl_content(crl.der, strict=False)


def check_revocation(
    path: AkPath,
    crls: Sequence[SignedCrl],
    now: datetime,
    *,
    of_evidence: Sequence[SignedCrl] = (),
    refusing: Sequence[SignedCrl] = (),
    read: ReadIssued = read_issued_crl,
) -> RevocationFacts:
    """Check that no CRL of an issuer in the path lists a certificate below the root.

    Args:
        path: A valid path.
        crls: CRLs in any order, not verified; those of other issuers are ignored.
        now: Time of the verification, with a time zone.
        of_evidence: CRLs of an evidence bundle, used only for issuers without one in `crls`,
            because the creator of the bundle can choose an old one.
        refusing: CRLs whose revoked certificates are rejected, even if the CRL has expired.
        read: Function with the result of `read_issued_crl`, such as one with a cache.

    Raises:
        FormatError: If a CRL of an issuer is malformed, or it or an entry has a critical extension.
        SignatureError: If a certificate is revoked (`cert_revoked`), a CRL of the issuer is not
            signed by it (`crl_bad_signature`), or the CRL URLs in a certificate are malformed
            (`cert_malformed`).
        CollateralExpiredError: If an issuer has CRLs, and none is valid at `now` (`crl_expired`).
    """
    checked: list[NamedCertificate] = []
    unknown: list[NamedCertificate] = []
    for named, (_, issuer) in zip(path.certificates, path.certificates[1:], strict=False):
        _check_entries(named, _signed_by(issuer, refusing, named[0], read))
        found = _signed_by(issuer, crls, named[0], read)
        found = found or _signed_by(issuer, of_evidence, named[0], read)
        if found:
            _check_listed(named, found, now)
            checked.append(named)
        elif read_crl_urls(named[1]):
            unknown.append(named)
    return RevocationFacts(tuple(checked), tuple(unknown))


def _signed_by(
    issuer: PathCertificate, crls: Sequence[SignedCrl], name: str, read: ReadIssued
) -> tuple[Crl, ...]:
    """Return the CRLs that `issuer` signed, parsed; none if all are of other issuers.

    Args:
        issuer: The issuer.
        crls: CRLs of any issuers, not verified.
        name: Name of the certificate that is checked, with which errors begin.
        read: Function with the result of `read_issued_crl`, such as one with a cache.

    Raises:
        SignatureError: If CRLs have the issuer's name, none of them a valid signature, and
            `_names_key` is true of them (`crl_bad_signature`).
        FormatError: If a CRL of the issuer is malformed.
    """
    if not crls:
        return ()
    found: list[Crl] = []
    failed: SignatureError | None = None
    of_name = [crl for crl in crls if crl.issuer == issuer.subject]
    for crl in of_name:
        try:
            found.append(read(crl, issuer))
        except SignatureError as error:
            failed = error
    if failed is not None and not found and _names_key(of_name, issuer):
        raise SignatureError(f"{name}: {failed}", reason="crl_bad_signature") from failed
    return tuple(found)


def _names_key(crls: Sequence[SignedCrl], issuer: PathCertificate) -> bool:
    """Return whether a CRL may be by the issuer's key, as far as key identifiers are known.

    So it is if issuer or CRL has no key identifier, or both have the same one.
    """
    wanted = subject_key_id(issuer)
    return wanted is None or any(_key_id(crl) in {None, wanted} for crl in crls)


def _key_id(crl: SignedCrl) -> bytes | None:
    """Return the key identifier in a CRL; None without one, or if the CRL is malformed."""
    try:
        with reading_x509("CRL"):
            extensions = {
                extension.oid.dotted_string: extension.value.public_bytes()
                for extension in x509.load_der_x509_crl(crl.der).extensions
            }
        return read_authority_key_id(extensions)
    except (FormatError, SignatureError):
        return None


def _check_listed(named: NamedCertificate, crls: Sequence[Crl], now: datetime) -> None:
    _check_entries(named, crls)
    if not any(crl.is_current(now) for crl in crls):
        newest = max(crls, key=lambda crl: crl.end)
        message = f"CRL for {named[0]} {newest.validity(now)}; fetch another one"
        raise CollateralExpiredError(message, reason="crl_expired")


def _check_entries(named: NamedCertificate, crls: Sequence[Crl]) -> None:
    name, certificate = named
    if any(certificate.serial in crl.serial_numbers for crl in crls):
        message = f"{name}: revoked by its issuer; attest with another key or machine"
        raise SignatureError(message, reason="cert_revoked")
