"""CRLs of Intel's SGX PKI, read strictly by Intel's profile (dcap-verification.md, section 4)."""

from typing import Final, NamedTuple

from cryptography import x509
from cryptography.x509.oid import ExtensionOID

from attestkit._crypto.der import INTEGER, SEQUENCE, DerReader
from attestkit._crypto.x509.app_certificates import reading_x509
from attestkit._crypto.x509.intel_certificates import ECDSA_SHA256, IntelCertificate
from attestkit.errors import FormatError, SignatureError

_FRESH: Final = "fetch fresh collateral"
_VERSION_2: Final = b"\x02\x01\x01"
_EXTENSIONS: Final = frozenset({ExtensionOID.CRL_NUMBER, ExtensionOID.AUTHORITY_KEY_IDENTIFIER})


class Crl(NamedTuple):
    """A CRL whose signature is valid."""

    start: int  # Unix seconds: thisUpdate
    end: int  # Unix seconds, exclusive: nextUpdate
    number: int
    serial_numbers: frozenset[int]  # of revoked certificates, whatever the date or reason


def read_crl(der: bytes, issuer: IntelCertificate, what: str) -> Crl:
    """Verify that `issuer` signed a CRL, and parse it.

    Args:
        der: The CRL.
        issuer: The CA whose CRL it must be.
        what: Name of the CRL for error messages.

    Raises:
        FormatError: If the CRL is malformed.
        SignatureError: If it is the CRL of another CA (`crl_missing`), or its signature is not
            valid (`crl_bad_signature`).
    """
    outer = DerReader(der).enter(SEQUENCE)
    signed, algorithm = outer.whole(SEQUENCE), outer.whole(SEQUENCE)
    unused, signature = outer.bits()
    fields = DerReader(signed).enter(SEQUENCE)
    if fields.tag() != INTEGER or fields.whole() != _VERSION_2:
        raise FormatError("CRL version must be 2", reason="unsupported_version")
    inner_algorithm = fields.whole(SEQUENCE)
    if fields.whole(SEQUENCE) != issuer.subject:
        message = f"{what}: its issuer must be {issuer.common_name}; {_FRESH} of this platform"
        raise SignatureError(message, reason="crl_missing")
    if (algorithm, inner_algorithm) != (ECDSA_SHA256, ECDSA_SHA256) or unused:
        message = f"{what}: signature algorithm must be ECDSA on P-256 with SHA-256; {_FRESH}"
        raise SignatureError(message, reason="crl_bad_signature")
    # The signature first: a list of a million entries takes long to read.
    try:
        issuer.key.verify_der(signature, signed)
    except SignatureError as error:
        message = f"{what}: not signed by {issuer.common_name}; {_FRESH}"
        raise SignatureError(message, reason="crl_bad_signature") from error
    return _parse(der)


def _parse(der: bytes) -> Crl:
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
