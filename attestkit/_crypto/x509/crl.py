"""Certificate revocation lists (RFC 5280, section 5): signature, dates and entries.

Two profiles. The strict one is that of Intel and AMD: CRL number and authority key identifier, and
nothing else. The other one allows any extensions that are not critical. In both a list has version
2 and nextUpdate, and no critical extension, not even of an entry: it is complete, and all its
entries are of its issuer. Only delta and indirect CRLs, and lists of some reasons, have others.
"""

from datetime import datetime, timezone
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.x509.oid import ExtensionOID

from attestkit._crypto.der import INTEGER, SEQUENCE, DerReader
from attestkit._crypto.x509.app_certificates import reading_x509
from attestkit._crypto.x509.cert_path import CRL_SIGN, PathCertificate, PathRules, may
from attestkit.errors import FormatError, SignatureError

_VERSION_2: Final = b"\x02\x01\x01"
_STRICT: Final = frozenset({ExtensionOID.CRL_NUMBER, ExtensionOID.AUTHORITY_KEY_IDENTIFIER})


class Crl(NamedTuple):
    """Content of a CRL."""

    start: int  # Unix seconds: thisUpdate
    end: int  # Unix seconds, exclusive: nextUpdate
    number: int  # 0 without the extension, in the profile that is not strict
    serial_numbers: frozenset[int]  # of revoked certificates, whatever the date or reason

    def is_current(self, now: datetime) -> bool:
        """Return whether the list is valid at an aware time."""
        return self.start <= now.timestamp() < self.end

    def validity(self, now: datetime) -> str:
        """Return the text of an error about a list that is not valid at `now`."""
        start, end, at = (
            f"{datetime.fromtimestamp(time, timezone.utc):%Y-%m-%d %H:%M:%S}"
            for time in (self.start, self.end, now.timestamp())
        )
        return f"is valid from {start} to {end} UTC, not at {at}"


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
    """Parse signature and issuer of a CRL; `read_crl_content` checks the rest.

    Raises:
        FormatError: If these parts are malformed, or the version is not 2.
    """
    reader = DerReader(der)
    outer = reader.enter(SEQUENCE)
    reader.finish()
    signed, algorithm = outer.whole(SEQUENCE), outer.whole(SEQUENCE)
    unused, signature = outer.bits()
    outer.finish()
    fields = DerReader(signed).enter(SEQUENCE)
    if fields.tag() != INTEGER or fields.whole() != _VERSION_2:
        raise FormatError("CRL version must be 2", reason="unsupported_version")
    inner_algorithm = fields.whole(SEQUENCE)
    issuer = fields.whole(SEQUENCE)
    return SignedCrl(der, signed, algorithm, inner_algorithm, signature, unused, issuer)


def check_crl_signature(
    crl: SignedCrl, issuer: PathCertificate, rules: PathRules, what: str
) -> None:
    """Verify that the CA of a certificate signed a CRL.

    Args:
        crl: The CRL, whose issuer has the certificate's subject name.
        issuer: A trusted CA certificate.
        rules: The profile of its certificates.
        what: Name of the CRL for error messages.

    Raises:
        SignatureError: If its signature is not valid, or the CA may not sign CRLs
            (`crl_bad_signature`).
    """
    if crl.algorithm != crl.inner_algorithm or crl.unused:
        problem = "signature and signatureAlgorithm differ, or the signature has unused bits"
    elif not may(issuer, CRL_SIGN):
        problem = "the key usage of its issuer does not allow it to sign CRLs"
    elif (verify := rules.algorithms.get(crl.algorithm)) is None:
        problem = f"signature algorithm must be {rules.names}"
    else:
        try:
            verify(issuer.spki, crl.signature, crl.signed)
        except SignatureError as error:
            message = f"{what}: not signed by its issuer: {error}"
            raise SignatureError(message, reason="crl_bad_signature") from error
        return
    raise SignatureError(f"{what}: {problem}", reason="crl_bad_signature")


def read_crl_content(der: bytes, *, strict: bool = True) -> Crl:
    """Parse dates and entries of a CRL; verify its signature first, if it may be long.

    Args:
        der: The CRL.
        strict: Whether it must have CRL number and authority key identifier, and no others.

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
    if strict and found.keys() != _STRICT:
        message = "extensions must be CRL number and authority key identifier, not critical"
        raise FormatError(message, reason="wrong_value")
    if any(extension.critical for extension in found.values()):
        raise FormatError(
            "CRL: has a critical extension", reason="wrong_value" if strict else "unsupported"
        )
    number = 0
    if (extension := found.get(ExtensionOID.CRL_NUMBER)) is not None:
        assert isinstance(extension.value, x509.CRLNumber)
        number = extension.value.crl_number
    return Crl(int(start.timestamp()), int(end.timestamp()), number, serial_numbers)


def _serial_number(entry: x509.RevokedCertificate) -> int:
    if any(extension.critical for extension in entry.extensions):
        raise FormatError("an entry has a critical extension", reason="unsupported")
    return entry.serial_number
