"""Certificate paths to AMD's and AWS's roots: RFC 5280, section 6.1, as far as they need it.

`cryptography` is about to refuse certificates whose serial number is not positive, and those of
AMD's chips have zero, so they are read here. Names are compared as their bytes. Policies, name
constraints and revocation are not handled: an unknown critical extension ends the path, and a
caller has to say that no CRL was looked at.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Final, NamedTuple

from attestkit._crypto.der import (
    BOOLEAN,
    GENERALIZED_TIME,
    INTEGER,
    OCTET_STRING,
    OID,
    SEQUENCE,
    UTC_TIME,
    DerReader,
    context,
    dotted_oid,
)
from attestkit._crypto.p384 import p384_verify_der
from attestkit._crypto.rsa_pss import rsa_pss_verify
from attestkit.errors import CollateralExpiredError, FormatError, SignatureError

__all__ = ["PathCertificate", "check_path", "read_path_certificate"]

_MAX_SIZE: Final = 16_384  # bytes; AMD's have under 2,000, AWS's under 1,024
_MAX_USAGE: Final = 2  # bytes: RFC 5280, 4.2.1.3 has nine bits
_BASIC_CONSTRAINTS, _KEY_USAGE = "2.5.29.19", "2.5.29.15"
_DIGITAL_SIGNATURE, _KEY_CERT_SIGN = 0, 5  # bits of the key usage, RFC 5280, 4.2.1.3

_Verify = Callable[[bytes, bytes, bytes], None]

# AlgorithmIdentifiers. RSASSA-PSS (RFC 4055, 3.1) comes with and without its default trailer.
_ALGORITHMS: Final[Mapping[bytes, _Verify]] = {
    bytes.fromhex("300a06082a8648ce3d040303"): p384_verify_der,
    bytes.fromhex(
        "304106092a864886f70d01010a3034a00f300d06096086480165030402020500"
        "a11c301a06092a864886f70d010108300d06096086480165030402020500a203020130"
    ): rsa_pss_verify,
    bytes.fromhex(
        "304606092a864886f70d01010a3039a00f300d06096086480165030402020500"
        "a11c301a06092a864886f70d010108300d06096086480165030402020500a203020130a303020101"
    ): rsa_pss_verify,
}


class PathCertificate(NamedTuple):
    """One certificate as its bytes say; nothing in it has been verified."""

    der: bytes
    signed: bytes  # TBSCertificate
    algorithm: bytes  # AlgorithmIdentifier in DER
    signature: bytes
    issuer: bytes  # Name in DER
    subject: bytes  # Name in DER
    valid_from: datetime  # aware
    valid_until: datetime  # aware, inclusive
    spki: bytes  # SubjectPublicKeyInfo in DER
    extensions: Mapping[str, bytes]  # by dotted OID, what the OCTET STRING holds
    critical: frozenset[str]  # which of them are critical
    authority: bool  # basic constraints: cA
    path_length: int | None  # basic constraints: authorities that may stand below
    key_usage: frozenset[int] | None  # numbers of the bits; None: for everything


def read_path_certificate(der: bytes) -> PathCertificate:
    """Read an X.509 certificate of version 3; its serial number may be zero.

    Raises:
        FormatError: `der` is none, is over 16,384 bytes, has an extension twice, or malformed
            basic constraints or key usage; `reason` is cert_malformed.
    """
    try:
        return _certificate(der)
    except FormatError as error:
        raise FormatError(
            f"not an X.509 certificate: {error.message}",
            offset=error.offset,
            reason="cert_malformed",
        ) from error


def check_path(path: Sequence[tuple[str, PathCertificate]], now: datetime) -> None:
    """Check that each certificate is signed by the next one, an authority, and valid at `now`.

    Args:
        path: what texts call a certificate, and the certificate; the signer's first, the trust
            anchor last. The anchor's own signature is not looked at.
        now: an aware datetime.

    Raises:
        SignatureError: the path does not hold; `reason` is untrusted_root where it does not end
            at the anchor, else cert_bad_signature, cert_not_authority or cert_unknown_extension.
        CollateralExpiredError: a certificate is not valid at `now`; `reason` is cert_expired.
    """
    for at in reversed(range(len(path) - 1)):
        reason = "untrusted_root" if at == len(path) - 2 else "cert_bad_signature"
        _check_issued(path[at], path[at + 1], reason)
        _check_authority(path[at + 1], below=at)
    for named in path:
        _check_extensions(named)
        _check_time(named, now)
    name, signer = path[0]
    if signer.authority or not _may(signer, _DIGITAL_SIGNATURE):
        raise SignatureError(
            f"{name} is not for signatures of its own", reason="cert_not_authority"
        )


def _check_issued(
    named: tuple[str, PathCertificate], issuer: tuple[str, PathCertificate], reason: str
) -> None:
    (name, certificate), (issuer_name, authority) = named, issuer
    if certificate.issuer != authority.subject:
        raise SignatureError(f"{name} names another issuer than {issuer_name}", reason=reason)
    verify = _ALGORITHMS.get(certificate.algorithm)
    if verify is None:
        raise SignatureError(
            f"{name} is signed with an algorithm that is neither RSA-PSS nor P-384 with SHA-384",
            reason="cert_bad_signature",
        )
    try:
        verify(authority.spki, certificate.signature, certificate.signed)
    except SignatureError as error:
        raise SignatureError(
            f"{name} is not signed by {issuer_name}: {error}", reason=reason
        ) from error


def _check_authority(named: tuple[str, PathCertificate], *, below: int) -> None:
    """Check that a certificate may issue, with `below` authorities between it and the signer."""
    name, certificate = named
    length = certificate.path_length
    if not certificate.authority or not _may(certificate, _KEY_CERT_SIGN):
        raise SignatureError(f"{name} is not an authority", reason="cert_not_authority")
    if length is not None and length < below:
        raise SignatureError(
            f"{name} allows {length} authorities below it, there are {below}",
            reason="cert_not_authority",
        )


def _check_extensions(named: tuple[str, PathCertificate]) -> None:
    name, certificate = named
    if unknown := certificate.critical - {_BASIC_CONSTRAINTS, _KEY_USAGE}:
        raise SignatureError(
            f"{name} has a critical extension that is not known: {min(unknown)}",
            reason="cert_unknown_extension",
        )


def _check_time(named: tuple[str, PathCertificate], now: datetime) -> None:
    name, certificate = named
    first, last = certificate.valid_from, certificate.valid_until
    if not first <= now <= last:
        raise CollateralExpiredError(
            f"{name} is valid from {first:%Y-%m-%d %H:%M:%S} to {last:%Y-%m-%d %H:%M:%S} UTC, "
            f"not at {now.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S}",
            reason="cert_expired",
        )


def _may(certificate: PathCertificate, bit: int) -> bool:
    return certificate.key_usage is None or bit in certificate.key_usage


def _certificate(der: bytes) -> PathCertificate:
    if len(der) > _MAX_SIZE:
        raise FormatError(f"it has {len(der)} bytes, over {_MAX_SIZE}")
    outer = DerReader(der)
    body = outer.enter(SEQUENCE)
    outer.finish()
    at = body.at
    fields = body.enter(SEQUENCE)
    signed = der[at : body.at]
    at = body.at
    algorithm = body.whole(SEQUENCE)
    unused, signature = body.bits()
    body.finish()
    _check_version(fields)
    fields.integer()  # the serial number
    if fields.whole(SEQUENCE) != algorithm or unused:
        raise FormatError("its signature's algorithm is told in two ways", offset=at)
    issuer = fields.whole(SEQUENCE)
    validity = fields.enter(SEQUENCE)
    valid_from, valid_until = _time(validity), _time(validity)
    validity.finish()
    subject, spki = fields.whole(SEQUENCE), fields.whole(SEQUENCE)
    extensions, critical = _extensions(fields)
    fields.finish()
    return PathCertificate(
        der,
        signed,
        algorithm,
        signature,
        issuer,
        subject,
        valid_from,
        valid_until,
        spki,
        extensions,
        frozenset(critical),
        *_basic_constraints(extensions.get(_BASIC_CONSTRAINTS)),
        _key_usage(extensions.get(_KEY_USAGE)),
    )


def _check_version(fields: DerReader) -> None:
    version = fields.enter(context(0))
    if version.integer() != 2:
        raise FormatError("its version is not 3", offset=version.at - 1)
    version.finish()


def _time(reader: DerReader) -> datetime:
    """Read a time as RFC 5280, 4.1.2.5 has it: to the second, in UTC."""
    at = reader.at
    if reader.tag() == UTC_TIME:
        text = reader.content(UTC_TIME)
        text = (b"19" if text[:2] >= b"50" else b"20") + text
    else:
        text = reader.content(GENERALIZED_TIME)
    if len(text) != 15 or not text[:14].isdigit() or text[14:] != b"Z":
        raise FormatError("not a time to the second in UTC", offset=at)
    parts = (int(text[start : start + 2]) for start in range(4, 14, 2))
    month, day, hour, minute, second = parts
    try:
        return datetime(int(text[:4]), month, day, hour, minute, second, tzinfo=timezone.utc)
    except ValueError as error:
        raise FormatError("no such time", offset=at) from error


def _extensions(fields: DerReader) -> tuple[dict[str, bytes], set[str]]:
    """Read the extensions, if there are any: by OID their contents, and which are critical."""
    found: dict[str, bytes] = {}
    critical: set[str] = set()
    if fields.tag() != context(3):
        return found, critical
    wrapper = fields.enter(context(3))
    entries = wrapper.enter(SEQUENCE)
    wrapper.finish()
    while entries.tag() is not None:
        at = entries.at
        entry = entries.enter(SEQUENCE)
        oid = dotted_oid(entry.content(OID))
        if oid in found:
            raise FormatError(f"extension {oid} is there twice", offset=at)
        if entry.tag() == BOOLEAN and entry.boolean():
            critical.add(oid)
        found[oid] = entry.content(OCTET_STRING)
        entry.finish()
    return found, critical


def _basic_constraints(value: bytes | None) -> tuple[bool, int | None]:
    """Return whether this is an authority, and how many may stand below."""
    if value is None:
        return False, None
    outer = DerReader(value)
    reader = outer.enter(SEQUENCE)
    outer.finish()
    authority = reader.tag() == BOOLEAN and reader.boolean()
    length = reader.integer() if reader.tag() == INTEGER else None
    reader.finish()
    if length is not None and (length < 0 or not authority):
        raise FormatError("its basic constraints have a path length that cannot be")
    return authority, length


def _key_usage(value: bytes | None) -> frozenset[int] | None:
    """Return the bits that are set, numbered from the first byte's highest."""
    if value is None:
        return None
    reader = DerReader(value)
    _, data = reader.bits()
    reader.finish()
    if len(data) > _MAX_USAGE:  # as many objects as bits would be made of it
        raise FormatError(f"its key usage has over {_MAX_USAGE} bytes of bits")
    return frozenset([bit for bit in range(8 * len(data)) if data[bit // 8] >> (7 - bit % 8) & 1])
