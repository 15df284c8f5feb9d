"""CRLs for the certificates of TPM keys (RFC 5280, 5).

A CRL counts only if the issuer of a certificate signed it. A certificate whose issuer has no CRL
at hand has an unknown status, which the caller reports.
"""

from collections.abc import Iterable
from datetime import datetime, timezone
from typing import Final, NamedTuple

from cryptography import x509

from attestkit._crypto.der import INTEGER, SEQUENCE, DerReader
from attestkit._crypto.x509.ak_certificates.path import (
    AK_RULES,
    AkPath,
    read_authority_key_id,
    subject_key_id,
)
from attestkit._crypto.x509.ak_certificates.urls import read_crl_urls
from attestkit._crypto.x509.app_certificates import reading_x509
from attestkit._crypto.x509.cert_path import PathCertificate
from attestkit.errors import CollateralExpiredError, FormatError, SignatureError

CRL_LIMIT: Final = 1 << 20
"""Maximum size of a CRL in bytes; Google's have under 1,000."""

_VERSION_2: Final = b"\x02\x01\x01"
_CRL_SIGN: Final = 6  # bit of the key usage (RFC 5280, 4.2.1.3)


class AkCrl(NamedTuple):
    """A CRL with its signed part split off, not verified."""

    der: bytes
    signed: bytes  # TBSCertList
    algorithm: bytes  # AlgorithmIdentifier in DER
    signature: bytes
    issuer: bytes  # Name in DER


class RevocationFacts(NamedTuple):
    """Outcome of a check that found no revoked certificate."""

    checked: tuple[str, ...]  # names of the certificates whose issuer has a CRL at hand
    unknown: tuple[str, ...]  # names of those that name a CRL, which is not at hand


def read_ak_crl(der: bytes) -> AkCrl:
    """Split a version 2 CRL in DER, without reading its entries.

    Raises:
        FormatError: If it is malformed, of another version, or over 1 MiB.
    """
    if len(der) > CRL_LIMIT:
        raise FormatError(f"CRL: {len(der)} bytes, more than {CRL_LIMIT}", reason="too_large")
    reader = DerReader(der)
    outer = reader.enter(SEQUENCE)
    reader.finish()
    signed, algorithm = outer.whole(SEQUENCE), outer.whole(SEQUENCE)
    unused, signature = outer.bits()
    outer.finish()
    fields = DerReader(signed).enter(SEQUENCE)
    if fields.tag() != INTEGER or fields.whole() != _VERSION_2:
        raise FormatError("CRL version must be 2", reason="unsupported_version")
    if fields.whole(SEQUENCE) != algorithm or unused:
        message = "CRL: signature and signatureAlgorithm differ, or the signature has unused bits"
        raise FormatError(message, reason="inconsistent")
    return AkCrl(der, signed, algorithm, signature, fields.whole(SEQUENCE))


def is_crl(der: bytes) -> bool:
    """Return whether DER looks like a CRL rather than a certificate of version 3."""
    try:
        return DerReader(der).enter(SEQUENCE).enter(SEQUENCE).tag() == INTEGER
    except FormatError:
        return False


def check_revocation(path: AkPath, crls: Iterable[AkCrl], now: datetime) -> RevocationFacts:
    """Check that no CRL of an issuer in the path lists a certificate below the root.

    Args:
        path: A valid path.
        crls: CRLs in any order, not verified; those of other issuers are ignored.
        now: Time of the verification, with a time zone.

    Raises:
        FormatError: If a CRL of an issuer is malformed, or has a critical extension.
        SignatureError: If a certificate is revoked (`cert_revoked`), or a CRL of the issuer is not
            signed by it (`crl_bad_signature`).
        CollateralExpiredError: If no CRL of an issuer is valid at `now` (`crl_expired`).
    """
    known = tuple(crls)
    checked: list[str] = []
    unknown: list[str] = []
    for (name, certificate), (_, issuer) in zip(
        path.certificates, path.certificates[1:], strict=False
    ):
        found = _signed_by(issuer, known, name)
        if found:
            _check_listed(name, certificate, found, now)
            checked.append(name)
        elif read_crl_urls(certificate):
            unknown.append(name)
    return RevocationFacts(tuple(checked), tuple(unknown))


def _signed_by(
    issuer: PathCertificate, crls: tuple[AkCrl, ...], name: str
) -> list[x509.CertificateRevocationList]:
    """Return the CRLs that `issuer` signed, parsed."""
    found: list[x509.CertificateRevocationList] = []
    failed: SignatureError | None = None
    for crl in crls:
        if crl.issuer != issuer.subject:
            continue
        try:
            _verify(crl, issuer)
        except SignatureError as error:
            failed = error
            continue
        parsed = _parse(crl.der)
        found.append(parsed)
    if failed is not None and not found and _names_key(crls, issuer):
        message = f"CRL for {name}: not signed by its issuer: {failed}; fetch another one"
        raise SignatureError(message, reason="crl_bad_signature") from failed
    return found


def _verify(crl: AkCrl, issuer: PathCertificate) -> None:
    verify = AK_RULES.algorithms.get(crl.algorithm)
    if verify is None:
        message = f"signature algorithm must be {AK_RULES.names}"
        raise SignatureError(message, reason="crl_bad_signature")
    if issuer.key_usage is not None and _CRL_SIGN not in issuer.key_usage:
        raise SignatureError("the issuer must not sign CRLs", reason="crl_bad_signature")
    verify(issuer.spki, crl.signature, crl.signed)


def _names_key(crls: tuple[AkCrl, ...], issuer: PathCertificate) -> bool:
    """Return whether a CRL of the issuer's name is not of another key of the same name."""
    wanted = subject_key_id(issuer)
    return any(
        wanted is None or _key_id(crl) in {None, wanted}
        for crl in crls
        if crl.issuer == issuer.subject
    )


def _key_id(crl: AkCrl) -> bytes | None:
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


def _parse(der: bytes) -> x509.CertificateRevocationList:
    """Parse a CRL whose signature is valid; a critical extension may limit what it covers."""
    with reading_x509("CRL"):
        crl = x509.load_der_x509_crl(der)
        if any(extension.critical for extension in crl.extensions):
            raise FormatError("CRL: has a critical extension", reason="unsupported")
        if crl.next_update_utc is None:
            raise FormatError("CRL: nextUpdate is missing", reason="missing")
    return crl


def _check_listed(
    name: str,
    certificate: PathCertificate,
    crls: list[x509.CertificateRevocationList],
    now: datetime,
) -> None:
    for crl in crls:
        with reading_x509("CRL"):
            entry = crl.get_revoked_certificate_by_serial_number(certificate.serial)
        if entry is not None:
            message = f"{name}: revoked by its issuer; use another key or machine"
            raise SignatureError(message, reason="cert_revoked")
    windows = [(crl.last_update_utc, crl.next_update_utc or crl.last_update_utc) for crl in crls]
    if not any(start <= now <= end for start, end in windows):
        start, end = max(windows)
        raise CollateralExpiredError(
            f"CRL for {name} is valid from {start:%Y-%m-%d %H:%M:%S} to {end:%Y-%m-%d %H:%M:%S} "
            f"UTC, not at {now.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S}; fetch another one",
            reason="crl_expired",
        )
