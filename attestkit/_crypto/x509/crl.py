"""Certificate revocation lists (RFC 5280, section 5): signature, dates and entries.

A list must have version 2, nextUpdate, CRL number and authority key identifier, and no critical
extension: it is complete, and all its entries are of its issuer. RFC 5280 requires this form of
every CA; only delta and indirect CRLs have others.
"""

from typing import Final, NamedTuple

from cryptography import x509
from cryptography.x509.oid import ExtensionOID

from attestkit._crypto.der import INTEGER, SEQUENCE, DerReader
from attestkit._crypto.x509.app_certificates import reading_x509
from attestkit.errors import FormatError

_VERSION_2: Final = b"\x02\x01\x01"
_EXTENSIONS: Final = frozenset({ExtensionOID.CRL_NUMBER, ExtensionOID.AUTHORITY_KEY_IDENTIFIER})


class Crl(NamedTuple):
    """Content of a CRL."""

    start: int  # Unix seconds: thisUpdate
    end: int  # Unix seconds, exclusive: nextUpdate
    number: int
    serial_numbers: frozenset[int]  # of revoked certificates, whatever the date or reason


class SignedCrl(NamedTuple):
    """Signature of a CRL, not verified."""

    signed: bytes  # TBSCertList
    algorithm: bytes  # AlgorithmIdentifier in DER
    inner_algorithm: bytes  # the one in `signed`
    signature: bytes
    unused: int  # bits of the signature that are not used
    issuer: bytes  # Name in DER


def read_signed_crl(der: bytes) -> SignedCrl:
    """Parse signature and issuer of a CRL; `read_crl_content` checks the rest.

    Raises:
        FormatError: If these parts are malformed, or the version is not 2.
    """
    outer = DerReader(der).enter(SEQUENCE)
    signed, algorithm = outer.whole(SEQUENCE), outer.whole(SEQUENCE)
    unused, signature = outer.bits()
    fields = DerReader(signed).enter(SEQUENCE)
    if fields.tag() != INTEGER or fields.whole() != _VERSION_2:
        raise FormatError("CRL version must be 2", reason="unsupported_version")
    inner_algorithm = fields.whole(SEQUENCE)
    issuer = fields.whole(SEQUENCE)
    return SignedCrl(signed, algorithm, inner_algorithm, signature, unused, issuer)


def read_crl_content(der: bytes) -> Crl:
    """Parse dates and entries of a CRL; verify its signature first, if it may be long.

    Raises:
        FormatError: If it is malformed, or has another form than that of this module.
    """
    with reading_x509("CRL"):
        crl = x509.load_der_x509_crl(der)
        found = {extension.oid: extension for extension in crl.extensions}
        serial_numbers = frozenset(map(_serial_number, crl))
        start, end = crl.last_update_utc, crl.next_update_utc
    if end is None:
        raise FormatError("nextUpdate is missing", reason="missing")
    if found.keys() != _EXTENSIONS or any(extension.critical for extension in found.values()):
        message = "extensions must be CRL number and authority key identifier, not critical"
        raise FormatError(message, reason="wrong_value")
    number = found[ExtensionOID.CRL_NUMBER].value
    assert isinstance(number, x509.CRLNumber)
    return Crl(int(start.timestamp()), int(end.timestamp()), number.crl_number, serial_numbers)


def _serial_number(entry: x509.RevokedCertificate) -> int:
    if any(extension.critical for extension in entry.extensions):
        raise FormatError("an entry has a critical extension", reason="unsupported")
    return entry.serial_number
