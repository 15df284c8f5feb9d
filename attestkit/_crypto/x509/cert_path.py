"""Path validation up to a vendor's root: the necessary part of RFC 5280, section 6.1.

Certificates are parsed here, because those of AMD's chips have the serial number zero, which future
versions of `cryptography` will reject. Names are compared as bytes. Certificate policies and name
constraints are not supported: an unknown critical extension is an error. Revocation is not checked
here; callers check it, or report that it was not checked.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from functools import lru_cache
from typing import Final, NamedTuple, TypeAlias

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
from attestkit._crypto.p384 import ECDSA_SHA384, p384_verify_der
from attestkit._crypto.public_key import rsa_pss_verify
from attestkit._outcomes.reasons import SignatureReason
from attestkit.errors import CollateralExpiredError, FormatError, SignatureError

_MAX_SIZE: Final = 16_384  # bytes; AMD's have under 2,000, AWS's under 1,024
_MAX_USAGES: Final = 16  # extended ones
_MAX_USAGE: Final = 2  # bytes, for the nine bits of RFC 5280, 4.2.1.3
_BASIC_CONSTRAINTS, _KEY_USAGE = "2.5.29.19", "2.5.29.15"
_DIGITAL_SIGNATURE, _KEY_CERT_SIGN = 0, 5  # bits of the key usage (RFC 5280, 4.2.1.3)
CRL_SIGN: Final = 6
"""Number of the bit cRLSign in the key usage (RFC 5280, 4.2.1.3), for `may`."""

_Verify = Callable[[bytes, bytes, bytes], None]

# Signature algorithms, by AlgorithmIdentifier: ECDSA with SHA-384, and RSASSA-PSS (RFC 4055, 3.1)
# with and without its default trailer field.
_ALGORITHMS: Final[Mapping[bytes, _Verify]] = {
    ECDSA_SHA384: p384_verify_der,
    bytes.fromhex(
        "304106092a864886f70d01010a3034a00f300d06096086480165030402020500"
        "a11c301a06092a864886f70d010108300d06096086480165030402020500a203020130"
    ): rsa_pss_verify,
    bytes.fromhex(
        "304606092a864886f70d01010a3039a00f300d06096086480165030402020500"
        "a11c301a06092a864886f70d010108300d06096086480165030402020500a203020130a303020101"
    ): rsa_pss_verify,
}


class PathRules(NamedTuple):
    """Allowed signature algorithms and critical extensions of the certificates of a path."""

    algorithms: Mapping[bytes, _Verify]  # verification by AlgorithmIdentifier in DER
    names: str  # of the algorithms, for errors
    critical: frozenset[str]  # OIDs of critical extensions that are checked, or need no check


VENDOR_RULES: Final = PathRules(
    _ALGORITHMS,
    "RSA-PSS or ECDSA P-384, with SHA-384",
    frozenset({_BASIC_CONSTRAINTS, _KEY_USAGE}),
)
"""Rules for the certificates of AMD and AWS."""


class PathCertificate(NamedTuple):
    """A parsed certificate, not verified."""

    der: bytes
    signed: bytes  # TBSCertificate
    algorithm: bytes  # AlgorithmIdentifier in DER
    signature: bytes
    issuer: bytes  # Name in DER
    subject: bytes  # Name in DER
    valid_from: datetime  # aware
    valid_until: datetime  # aware, inclusive
    spki: bytes  # SubjectPublicKeyInfo in DER
    extensions: Mapping[str, bytes]  # contents of the OCTET STRINGs, by dotted OID
    critical: frozenset[str]  # OIDs of the critical extensions
    authority: bool  # basic constraints: cA
    path_length: int | None  # basic constraints: pathLenConstraint
    key_usage: frozenset[int] | None  # bit numbers; None without the extension
    serial: int


NamedCertificate: TypeAlias = tuple[str, PathCertificate]
"""A certificate, after its name for errors."""

CheckIssued: TypeAlias = Callable[
    [NamedCertificate, NamedCertificate, SignatureReason, PathRules], None
]
"""`check_issued`, or a function that calls it."""


def read_path_certificate(der: bytes, *, largest: int = _MAX_SIZE) -> PathCertificate:
    """Parse an X.509 version 3 certificate; its serial number may be zero.

    Args:
        der: The certificate in DER.
        largest: Maximum size in bytes; more for certificates that contain evidence.

    Raises:
        FormatError: If `der` is malformed or too large, or an extension occurs twice.
    """
    try:
        _check_size(der, largest)
        return _certificate(der)
    except FormatError as error:
        message = f"malformed X.509: {error.message}"
        raise FormatError(message, offset=error.offset, reason=error.reason) from error


def check_path(
    path: Sequence[NamedCertificate],
    now: datetime | None,
    rules: PathRules = VENDOR_RULES,
    check: CheckIssued | None = None,
) -> None:
    """Check that each certificate is signed by the next one, a CA, and valid at `now`.

    Args:
        path: Certificates with their names for errors: the end-entity certificate first, the trust
            anchor last. The signature of the trust anchor is not verified.
        now: An aware datetime. None does not check times: a caller that caches the outcome must
            call `check_times` in every verification.
        rules: The certificates' profile.
        check: Function with the outcome of `check_issued`, such as one with a cache.

    Raises:
        SignatureError: If the path is not valid: `untrusted_root` if it does not end at the trust
            anchor, else `cert_bad_signature`, `cert_not_authority` or `cert_unknown_extension`.
        CollateralExpiredError: If a certificate is not valid at `now` (`cert_expired`).
    """
    verify = check or check_issued
    for at in reversed(range(len(path) - 1)):
        reason: SignatureReason = "untrusted_root" if at == len(path) - 2 else "cert_bad_signature"
        verify(path[at], path[at + 1], reason, rules)
        _check_authority(path[at + 1], below=at)
    for named in path:
        _check_extensions(named, rules)
        if now is not None:
            _check_time(named, now)
    name, signer = path[0]
    if signer.authority or not may(signer, _DIGITAL_SIGNATURE):
        message = f"{name}: must be an end-entity certificate for digital signatures"
        raise SignatureError(message, reason="cert_not_authority")


def check_times(path: Sequence[NamedCertificate], now: datetime) -> None:
    """Check that all certificates are valid at `now`, an aware datetime.

    Raises:
        CollateralExpiredError: If one is not (`cert_expired`).
    """
    for named in path:
        _check_time(named, now)


def check_issued(
    named: NamedCertificate,
    issuer: NamedCertificate,
    reason: SignatureReason,
    rules: PathRules = VENDOR_RULES,
) -> None:
    """Check issuer and signature of a certificate, not its validity, so callers may cache it.

    Args:
        named: The certificate, after its name for errors.
        issuer: The certificate of its issuer, after its name for errors.
        reason: Reason of the error for another issuer or an invalid signature.
        rules: The certificates' profile.

    Raises:
        SignatureError: With `reason`, if the certificate names another issuer, or its signature is
            not valid; `cert_bad_signature` if the algorithm is not one of `rules`.
    """
    (name, certificate), (issuer_name, authority) = named, issuer
    if certificate.issuer != authority.subject:
        raise SignatureError(f"{name}: the issuer is not {issuer_name}", reason=reason)
    verify = rules.algorithms.get(certificate.algorithm)
    if verify is None:
        message = f"{name}: signature algorithm must be {rules.names}"
        raise SignatureError(message, reason="cert_bad_signature")
    try:
        verify(authority.spki, certificate.signature, certificate.signed)
    except SignatureError as error:
        message = f"{name}: not signed by {issuer_name}: {error}"
        raise SignatureError(message, reason=reason) from error


def _check_authority(named: NamedCertificate, *, below: int) -> None:
    """Check that a certificate is a CA certificate that allows `below` CAs below it in the path."""
    name, certificate = named
    length = certificate.path_length
    if not certificate.authority or not may(certificate, _KEY_CERT_SIGN):
        raise SignatureError(f"{name}: not a CA certificate", reason="cert_not_authority")
    if length is not None and length < below:
        message = f"{name}: allows {length} intermediate CA certificates, the path has {below}"
        raise SignatureError(message, reason="cert_not_authority")


def _check_extensions(named: NamedCertificate, rules: PathRules) -> None:
    name, certificate = named
    if unknown := certificate.critical - rules.critical:
        message = f"{name}: unknown critical extension: {min(unknown)}"
        raise SignatureError(message, reason="cert_unknown_extension")


def _check_time(named: NamedCertificate, now: datetime) -> None:
    name, certificate = named
    first, last = certificate.valid_from, certificate.valid_until
    if not first <= now <= last:
        message = f"{name} is valid {describe_period(first, last, now)}"
        raise CollateralExpiredError(message, reason="cert_expired")


def describe_period(start: datetime, end: datetime, now: datetime) -> str:
    """Return `from START to END UTC, not at NOW` for an error about a period; times are aware."""
    first, last, at = (
        f"{time.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S}" for time in (start, end, now)
    )
    return f"from {first} to {last} UTC, not at {at}"


def may(certificate: PathCertificate, bit: int) -> bool:
    """Return whether the key usage has the bit number `bit` set; True without a key usage."""
    return certificate.key_usage is None or bit in certificate.key_usage


def _check_size(der: bytes, largest: int) -> None:
    if len(der) > largest:
        raise FormatError(f"{len(der)} bytes, at most {largest}", reason="too_large")


def _certificate(der: bytes) -> PathCertificate:
    body = DerReader(der).enter_only(SEQUENCE)
    at = body.at
    fields = body.enter(SEQUENCE)
    signed = der[at : body.at]
    at = body.at
    algorithm = body.whole(SEQUENCE)
    unused, signature = body.bits()
    body.finish()
    _check_version(fields)
    serial = fields.integer()
    if fields.whole(SEQUENCE) != algorithm or unused:
        message = "signature and signatureAlgorithm differ, or the signature has unused bits"
        raise FormatError(message, offset=at, reason="inconsistent")
    issuer = fields.whole(SEQUENCE)
    validity = _validity(fields)
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
        *validity,
        spki,
        extensions,
        frozenset(critical),
        *_basic_constraints(extensions.get(_BASIC_CONSTRAINTS)),
        _key_usage(extensions.get(_KEY_USAGE)),
        serial,
    )


def _validity(fields: DerReader) -> tuple[datetime, datetime]:
    validity = fields.enter(SEQUENCE)
    found = read_time(validity), read_time(validity)
    validity.finish()
    return found


def _check_version(fields: DerReader) -> None:
    version = fields.enter(context(0))
    if version.integer() != 2:
        raise FormatError("version must be 3", offset=version.at - 1, reason="unsupported_version")
    version.finish()


def read_time(reader: DerReader) -> datetime:
    """Read a UTCTime or GeneralizedTime as RFC 5280, 4.1.2.5, has it: in UTC, with seconds.

    Raises:
        FormatError: If it is malformed, or no such time exists, such as 30 February.
    """
    at = reader.at
    if reader.tag() == UTC_TIME:
        text = reader.content(UTC_TIME)
        text = (b"19" if text[:2] >= b"50" else b"20") + text
    else:
        text = reader.content(GENERALIZED_TIME)
    if len(text) != 15 or not text[:14].isdigit() or text[14:] != b"Z":
        raise FormatError("time must be in UTC and with seconds", offset=at, reason="wrong_value")
    month, day, hour, minute, second = (int(text[start : start + 2]) for start in range(4, 14, 2))
    try:
        return datetime(int(text[:4]), month, day, hour, minute, second, tzinfo=timezone.utc)
    except ValueError as error:
        raise FormatError("time does not exist", offset=at, reason="wrong_value") from error


def _extensions(fields: DerReader) -> tuple[dict[str, bytes], set[str]]:
    """Parse the optional extensions; return their contents by OID, and the critical OIDs."""
    return read_extensions(fields.enter(context(3))) if fields.tag() == context(3) else ({}, set())


def read_extensions(wrapper: DerReader) -> tuple[dict[str, bytes], set[str]]:
    """Parse extensions to the end of the reader (RFC 5280, 4.1).

    Returns:
        The contents of their OCTET STRINGs by dotted OID, and the OIDs of the critical ones.

    Raises:
        FormatError: If they are malformed, or one occurs twice.
    """
    found: dict[str, bytes] = {}
    critical: set[str] = set()
    entries = wrapper.enter(SEQUENCE)
    wrapper.finish()
    while entries.tag() is not None:
        at = entries.at
        entry = entries.enter(SEQUENCE)
        oid = dotted_oid(entry.content(OID))
        if oid in found:
            raise FormatError(f"extension {oid} occurs twice", offset=at, reason="duplicate")
        if entry.tag() == BOOLEAN and entry.boolean():
            critical.add(oid)
        found[oid] = entry.content(OCTET_STRING)
        entry.finish()
    return found, critical


def _basic_constraints(value: bytes | None) -> tuple[bool, int | None]:
    """Return cA and pathLenConstraint in `value`, basic constraints; False and None for None."""
    if value is None:
        return False, None
    reader = DerReader(value).enter_only(SEQUENCE)
    authority = reader.tag() == BOOLEAN and reader.boolean()
    length = reader.integer() if reader.tag() == INTEGER else None
    reader.finish()
    if length is not None and (length < 0 or not authority):
        raise FormatError("basic constraints: path length must be of a CA", reason="wrong_value")
    return authority, length


def _key_usage(value: bytes | None) -> frozenset[int] | None:
    """Return the numbers of the set bits in `value`, a key usage extension; None for None.

    Bit 0 is the highest bit of the first byte (RFC 5280, 4.2.1.3).
    """
    if value is None:
        return None
    reader = DerReader(value)
    _, data = reader.bits()
    reader.finish()
    if len(data) > _MAX_USAGE:  # limits the number of objects created below
        raise FormatError(f"key usage: {len(data)} bytes, at most {_MAX_USAGE}", reason="too_large")
    return frozenset([bit for bit in range(8 * len(data)) if data[bit // 8] >> (7 - bit % 8) & 1])


@lru_cache(maxsize=64)
def read_usages(value: bytes) -> frozenset[str]:
    """Return the dotted OIDs in `value`, an extended key usage in DER (RFC 5280, 4.2.1.12).

    Raises:
        FormatError: If it is malformed, or has more than 16.
    """
    entries = DerReader(value).enter_only(SEQUENCE)
    found: set[str] = set()
    while entries.tag() is not None:
        if len(found) == _MAX_USAGES:
            raise FormatError(f"extended key usage: over {_MAX_USAGES} usages", reason="too_many")
        found.add(dotted_oid(entries.content(OID)))
    return frozenset(found)
