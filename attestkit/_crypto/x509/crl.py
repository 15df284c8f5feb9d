"""Certificate revocation lists (RFC 5280, section 5): signature, dates and entries.

There are two profiles. The strict one is that of Intel and AMD: the extensions are CRL number and
authority key identifier. The other one allows any extensions that are not critical. Both require
version 2 and nextUpdate, and no critical extension, not even of an entry. So a list is complete and
about its issuer's certificates: delta and indirect CRLs have critical extensions.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.x509.oid import ExtensionOID

from attestkit._crypto.der import INTEGER, SEQUENCE, DerReader
from attestkit._crypto.ecdsa import ECDSA_SHA256
from attestkit._crypto.pem import CRL_LABEL, split_der_or_pem
from attestkit._crypto.x509 import cert_path
from attestkit._crypto.x509.app_certificates import reading_x509
from attestkit._crypto.x509.intel_certificates import IntelCertificate
from attestkit.errors import FormatError, SignatureError

MAX_CRL_SIZE: Final = 262_144
"""Bytes of a CRL; a list without entries has under 1,000, an entry about 35."""

_MAX_CRLS: Final = 32  # in one file: two for each product line are needed
_FRESH: Final = "fetch fresh collateral"
_ANOTHER: Final = "replace it by the one that its issuer publishes"
_VERSION_2: Final = b"\x02\x01\x01"
_STRICT: Final = frozenset({ExtensionOID.CRL_NUMBER, ExtensionOID.AUTHORITY_KEY_IDENTIFIER})


class Crl(NamedTuple):
    """Validity period, number and revoked serial numbers of a CRL."""

    start: int  # Unix seconds: thisUpdate
    end: int  # Unix seconds, exclusive: nextUpdate
    number: int  # 0 without the extension, in the profile that is not strict
    serial_numbers: frozenset[int]  # of revoked certificates, whatever the date or reason

    def is_current(self, now: datetime) -> bool:
        """Return whether the list is valid at `now`, an aware datetime; nextUpdate is exclusive."""
        return self.start <= now.timestamp() < self.end

    def validity(self, now: datetime) -> str:
        """Return `is valid from START to END UTC, not at NOW`, for an error."""
        start, end = (datetime.fromtimestamp(time, timezone.utc) for time in (self.start, self.end))
        return f"is valid {cert_path.describe_period(start, end, now)}"


class SignedCrl(NamedTuple):
    """A CRL with its signed part split off, not verified."""

    der: bytes
    signed: bytes  # TBSCertList
    algorithm: bytes  # AlgorithmIdentifier in DER
    inner_algorithm: bytes  # the one in `signed`
    signature: bytes
    unused: int  # bits of the signature that are not used
    issuer: bytes  # Name in DER


def read_signed_crl(der: bytes) -> SignedCrl:
    """Parse signature and issuer of a CRL in DER; `read_crl_content` checks the rest.

    The errors of both do not name the CRL.

    Raises:
        FormatError: If these parts are malformed, or the version is not 2.
    """
    outer = DerReader(der).enter_only(SEQUENCE)
    signed, algorithm = outer.whole(SEQUENCE), outer.whole(SEQUENCE)
    unused, signature = outer.bits()
    outer.finish()
    fields = DerReader(signed).enter(SEQUENCE)
    if fields.tag() != INTEGER or fields.whole() != _VERSION_2:
        raise FormatError("version must be 2", reason="unsupported_version")
    inner_algorithm = fields.whole(SEQUENCE)
    issuer = fields.whole(SEQUENCE)
    return SignedCrl(der, signed, algorithm, inner_algorithm, signature, unused, issuer)


def check_crl_signature(
    crl: SignedCrl, issuer: cert_path.PathCertificate, rules: cert_path.PathRules, what: str
) -> None:
    """Verify that the CA of a certificate signed a CRL.

    Args:
        crl: The CRL, whose issuer has the certificate's subject name.
        issuer: A trusted CA certificate.
        rules: The profile of its certificates.
        what: Name of the CRL, with which errors begin.

    Raises:
        SignatureError: If its signature is not valid, or the CA may not sign CRLs
            (`crl_bad_signature`).
    """
    if crl.algorithm != crl.inner_algorithm or crl.unused:
        problem = "signature and signatureAlgorithm differ, or the signature has unused bits"
    elif not cert_path.may(issuer, cert_path.CRL_SIGN):
        problem = "the key usage of its issuer does not allow it to sign CRLs"
    elif (verify := rules.algorithms.get(crl.algorithm)) is None:
        problem = f"signature algorithm must be {rules.names}"
    else:
        try:
            verify(issuer.spki, crl.signature, crl.signed)
        except SignatureError as error:
            message = f"{what}: not signed by its issuer: {error}; {_ANOTHER}"
            raise SignatureError(message, reason="crl_bad_signature") from error
        return
    raise SignatureError(f"{what}: {problem}; {_ANOTHER}", reason="crl_bad_signature")


def read_crl_content(der: bytes, *, strict: bool = True) -> Crl:
    """Parse dates, number and revoked serial numbers of a CRL.

    Verify its signature before, because parsing a long list takes long.

    Args:
        der: The CRL in DER.
        strict: Whether its extensions must be CRL number and authority key identifier.

    Raises:
        FormatError: If it is malformed, lacks nextUpdate, or has a critical extension, also of an
            entry; or, if `strict`, other extensions.
    """
    with reading_x509("CRL"):
        crl = x509.load_der_x509_crl(der)
        found = {extension.oid: extension for extension in crl.extensions}
        serial_numbers = frozenset(map(_serial_number, crl))
        start, end = crl.last_update_utc, crl.next_update_utc
    if end is None:
        raise FormatError("nextUpdate is missing", reason="missing")
    if strict and found.keys() != _STRICT:
        message = "extensions must be CRL number and authority key identifier, not critical"
        raise FormatError(message, reason="wrong_value")
    critical = [oid for oid, extension in found.items() if extension.critical]
    if critical:
        message = f"critical extension {critical[0].dotted_string} is not supported"
        raise FormatError(message, reason="wrong_value" if strict else "unsupported")
    number = 0
    if (extension := found.get(ExtensionOID.CRL_NUMBER)) is not None:
        assert isinstance(extension.value, x509.CRLNumber)
        number = extension.value.crl_number
    return Crl(int(start.timestamp()), int(end.timestamp()), number, serial_numbers)


@contextmanager
def naming_crl() -> Iterator[None]:
    """Context manager: add `malformed CRL` before the text of a FormatError."""
    try:
        yield
    except FormatError as error:
        message = f"malformed CRL: {error.message}"
        raise FormatError(message, offset=error.offset, reason=error.reason) from error


def _serial_number(entry: x509.RevokedCertificate) -> int:
    for extension in entry.extensions:
        if extension.critical:
            oid = extension.oid.dotted_string
            message = f"critical extension {oid} of an entry is not supported"
            raise FormatError(message, reason="unsupported")
    return entry.serial_number


def read_crl(der: bytes, issuer: IntelCertificate, what: str) -> Crl:
    """Verify that `issuer` signed a CRL, and parse it.

    Args:
        der: The CRL in DER.
        issuer: The CA whose CRL it must be.
        what: Name of the CRL, with which SignatureErrors begin.

    Raises:
        FormatError: If the CRL is malformed; the text does not name it.
        SignatureError: If it is the CRL of another CA (`crl_missing`), or its signature is not
            valid (`crl_bad_signature`).
    """
    crl = read_signed_crl(der)
    if crl.issuer != issuer.subject:
        message = f"{what}: its issuer must be {issuer.common_name}; {_FRESH} of this platform"
        raise SignatureError(message, reason="crl_missing")
    if (crl.algorithm, crl.inner_algorithm) != (ECDSA_SHA256, ECDSA_SHA256) or crl.unused:
        message = f"{what}: signature algorithm must be ECDSA on P-256 with SHA-256; {_FRESH}"
        raise SignatureError(message, reason="crl_bad_signature")
    # The signature first: a list of a million entries takes long to read.
    try:
        issuer.key.verify_der(crl.signature, crl.signed)
    except SignatureError as error:
        message = f"{what}: not signed by {issuer.common_name}; {_FRESH}"
        raise SignatureError(message, reason="crl_bad_signature") from error
    return read_crl_content(der)


class AmdCrl(NamedTuple):
    """A parsed CRL, not verified; `check_crl_signature` verifies its signature."""

    envelope: SignedCrl
    content: Crl


def read_amd_crls(data: bytes) -> tuple[AmdCrl, ...]:
    """Parse `data`: one CRL in DER, or one or more in PEM ("X509 CRL").

    Raises:
        FormatError: If a CRL is malformed or exceeds 262,144 bytes, or there are more than 32.
    """
    if len(data) > 2 * MAX_CRL_SIZE * _MAX_CRLS:
        message = f"CRLs: {len(data)} bytes, at most {2 * MAX_CRL_SIZE * _MAX_CRLS}"
        raise FormatError(message, reason="too_large")
    found = split_der_or_pem(data, "CRL", (CRL_LABEL,))
    if len(found) > _MAX_CRLS:
        raise FormatError(f"CRLs: {len(found)}, at most {_MAX_CRLS}", reason="too_many")
    return tuple(map(_read_amd_crl, found))


def _read_amd_crl(der: bytes) -> AmdCrl:
    if len(der) > MAX_CRL_SIZE:
        raise FormatError(f"CRL: {len(der)} bytes, at most {MAX_CRL_SIZE}", reason="too_large")
    with naming_crl():
        return AmdCrl(read_signed_crl(der), read_crl_content(der))
