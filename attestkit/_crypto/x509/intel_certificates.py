"""Certificates of Intel's SGX PKI, read strictly by Intel's profile; nothing is verified here.

`cryptography` parses the DER; fields that signatures cover are slices of it. The profile is that of
"Intel SGX PCK Certificate and Certificate Revocation List Profile Specification".
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.x509.oid import ExtensionOID

from attestkit._crypto.der import (
    INTEGER,
    OID,
    PRINTABLE_STRING,
    SEQUENCE,
    SET,
    UTF8_STRING,
    DerReader,
    context,
)
from attestkit._crypto.ecdsa import ECDSA_SHA256, P256_SPKI_HEAD, P256PublicKey
from attestkit._crypto.x509.app_certificates import reading_x509
from attestkit._crypto.x509.names import INTEL_ATTRIBUTES, encode_intel_name
from attestkit._crypto.x509.sgx_extension import SGX_EXTENSION
from attestkit.errors import FormatError, SignatureError

ROOT: Final = "Intel SGX Root CA"
TCB_SIGNER: Final = "Intel SGX TCB Signing"
PCK_CERTIFICATE: Final = "Intel SGX PCK Certificate"
PCK_CAS: Final = ("Intel SGX PCK Platform CA", "Intel SGX PCK Processor CA")

_STRINGS: Final = frozenset({UTF8_STRING, PRINTABLE_STRING})
_SERIAL_SIZE: Final = 20  # bytes (RFC 5280, 4.1.2.2)
_SPKI_SIZE: Final = len(P256_SPKI_HEAD) + 64
_MAX_SIZE: Final = 16_384  # bytes; Intel's have 1,300
_SHOWN: Final = 200  # characters of an untrusted name
_SHOWN_BYTES: Final = 64
# Number of CAs that may follow below each CA.
_PATH_LENGTHS: Final = {ROOT: 1, **dict.fromkeys(PCK_CAS, 0)}
_NAMES: Final = frozenset({ROOT, TCB_SIGNER, PCK_CERTIFICATE, *PCK_CAS})
# The attributes that all names have beside the common name, in the order of real certificates.
_COMMON_NAME: Final = b"\x55\x04\x03"
_ATTRIBUTES: Final = {
    bytes([0x55, 0x04, arc]): value.encode() for arc, _, value in INTEL_ATTRIBUTES
}
_REQUIRED: Final = frozenset(
    {
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
        ExtensionOID.CRL_DISTRIBUTION_POINTS,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.BASIC_CONSTRAINTS,
    }
)
_FORBIDDEN: Final = frozenset(
    {
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.NAME_CONSTRAINTS,
        ExtensionOID.POLICY_CONSTRAINTS,
        ExtensionOID.INHIBIT_ANY_POLICY,
        ExtensionOID.POLICY_MAPPINGS,
    }
)
_CRITICAL: Final = frozenset({ExtensionOID.KEY_USAGE, ExtensionOID.BASIC_CONSTRAINTS})


@dataclass(frozen=True, slots=True, eq=False)
class IntelCertificate:
    """A certificate that conforms to the profile of Intel's SGX PKI; not verified."""

    der: bytes = field(repr=False)
    common_name: str  # one of Intel's names, or empty
    subject: bytes = field(repr=False)  # Name in DER
    issuer: bytes = field(repr=False)  # Name in DER
    serial_number: int
    start: int  # Unix seconds
    end: int  # Unix seconds, exclusive: notAfter + 1
    key: P256PublicKey
    signed: bytes = field(repr=False)  # TBSCertificate
    signature: bytes = field(repr=False)  # DER
    sgx_extension: bytes | None = field(repr=False)

    def check_issued_by(self, issuer: "IntelCertificate", what: str) -> None:
        """Check that `issuer` is named as the issuer, and that its key signed this certificate.

        Raises:
            SignatureError: If not (`cert_bad_signature`). The message begins with `what`, the name
                of this certificate.
        """
        check_issuer(self.issuer, self.signature, self.signed, issuer, what)

    def check_name(self, what: str, names: Sequence[str]) -> None:
        """Check that the certificate's common name is one of `names`.

        Raises:
            SignatureError: If it is not (`unexpected_subject`). The message begins with `what`, the
                name of this certificate.
        """
        _check_name(what, self.common_name, self.subject, names)


def check_issuer(
    name: bytes, signature: bytes, signed: bytes, issuer: IntelCertificate, what: str
) -> None:
    """Check that `issuer` is named as a certificate's issuer, and that its key signed it.

    Args:
        name: Name of the certificate's issuer in DER.
        signature: Signature of the certificate in DER.
        signed: TBSCertificate.
        issuer: Certificate of the issuer.
        what: Name of the certificate, with which errors begin.

    Raises:
        SignatureError: If it has another issuer, or was not signed by it (`cert_bad_signature`).
    """
    if name != issuer.subject:
        message = f"{what}: the issuer must be {issuer.common_name}"
        raise SignatureError(message, reason="cert_bad_signature")
    try:
        issuer.key.verify_der(signature, signed)
    except SignatureError as error:
        message = f"{what}: not signed by {issuer.common_name}"
        raise SignatureError(message, reason="cert_bad_signature") from error


def read_intel_certificate(der: bytes, what: str, names: Sequence[str]) -> IntelCertificate:
    """Parse a certificate, and check that it conforms to Intel's profile.

    Args:
        der: The certificate in DER.
        what: Name of the certificate, with which SignatureErrors begin; FormatErrors lack it.
        names: Allowed common names; the other attributes of the subject must be Intel's.

    Raises:
        FormatError: If the certificate is malformed, exceeds 16,384 bytes, or is not of version 3.
        SignatureError: If it has another subject (`unexpected_subject`), does not conform to the
            profile (`cert_constraints`), or is signed with another algorithm than ECDSA on P-256
            with SHA-256 (`cert_bad_signature`).
    """
    if len(der) > _MAX_SIZE:
        raise FormatError(f"{len(der)} bytes, at most {_MAX_SIZE}", reason="too_large")
    outer = DerReader(der).enter(SEQUENCE)
    signed = outer.whole(SEQUENCE)
    algorithm = outer.whole(SEQUENCE)
    unused_bits, signature = outer.bits()
    fields = DerReader(signed).enter(SEQUENCE)
    if fields.tag() == context(0):
        fields.whole()  # version
    serial_number = _serial_number(fields.content(INTEGER))
    inner_algorithm = fields.whole(SEQUENCE)
    issuer = fields.whole(SEQUENCE)
    fields.whole(SEQUENCE)  # validity
    subject, spki = fields.whole(SEQUENCE), fields.whole(SEQUENCE)
    with reading_x509():
        certificate = x509.load_der_x509_certificate(der)
        extensions = certificate.extensions
        start = _seconds(certificate.not_valid_before_utc)
        end = _seconds(certificate.not_valid_after_utc) + 1
    if certificate.version is not x509.Version.v3:
        message = f"X.509 version: must be v3, not {certificate.version.name}"
        raise FormatError(message, reason="unsupported_version")
    name = _common_name(subject)
    _check_name(what, name, subject, names)
    _check_signature_form(what, (algorithm, inner_algorithm), unused_bits)
    sgx_extension = _check_extensions(what, name, extensions)
    return IntelCertificate(
        der=der,
        common_name=name,
        subject=subject,
        issuer=issuer,
        serial_number=serial_number,
        start=start,
        end=end,
        key=_public_key(what, spki),
        signed=signed,
        signature=signature,
        sgx_extension=sgx_extension,
    )


def _check_name(what: str, common_name: str, subject: bytes, names: Sequence[str]) -> None:
    if common_name not in names:
        message = f"{what}: the subject is {_shown_name(subject)}, must be {' or '.join(names)}"
        raise SignatureError(message, reason="unexpected_subject")


def _check_signature_form(what: str, algorithms: tuple[bytes, bytes], unused_bits: int) -> None:
    if algorithms != (ECDSA_SHA256, ECDSA_SHA256):
        message = f"{what}: signature algorithm must be ECDSA on P-256 with SHA-256"
        raise SignatureError(message, reason="cert_bad_signature")
    if unused_bits:  # not signed; X.509 libraries differ in whether they ignore it
        message = f"{what}: signature must have no unused bits"
        raise SignatureError(message, reason="cert_bad_signature")


def _serial_number(content: bytes) -> int:
    """Return the serial number of an INTEGER's content; FormatError unless it is positive."""
    number = int.from_bytes(content, "big", signed=True)
    if not 0 < number < 1 << 8 * _SERIAL_SIZE:
        message = f"serial number must be positive, and at most {_SERIAL_SIZE} bytes"
        raise FormatError(message, reason="wrong_value")
    return number


def _seconds(moment: datetime) -> int:
    return int(moment.timestamp())


def _public_key(what: str, spki: bytes) -> P256PublicKey:
    if not spki.startswith(P256_SPKI_HEAD) or len(spki) != _SPKI_SIZE:
        raise _bad_constraint(what, "public key must be an uncompressed point of P-256 by its name")
    try:
        return P256PublicKey(spki[len(P256_SPKI_HEAD) :])
    except SignatureError as error:
        raise _bad_constraint(what, "public key is not on P-256") from error


def _check_extensions(what: str, name: str, extensions: x509.Extensions) -> bytes | None:
    """Check the extensions by Intel's profile; return the SGX extension's value, None without one.

    Args:
        what: Name of the certificate, with which errors begin.
        name: Common name of its subject, by which the profile knows a CA.
        extensions: All its extensions.
    """
    found = {extension.oid: extension for extension in extensions}
    if missing := _REQUIRED - found.keys():
        raise _bad_constraint(what, f"extension missing: {min(map(_dotted, missing))}")
    if forbidden := _FORBIDDEN & found.keys():
        raise _bad_constraint(what, f"unexpected extension: {min(map(_dotted, forbidden))}")
    for extension in extensions:
        if extension.critical and extension.oid not in _CRITICAL:
            oid = extension.oid.dotted_string
            raise _bad_constraint(what, f"unknown critical extension: {oid}")
    basic, usage = (
        found[oid].value for oid in (ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE)
    )
    assert isinstance(basic, x509.BasicConstraints)
    assert isinstance(usage, x509.KeyUsage)
    path_length = _PATH_LENGTHS.get(name)
    if (basic.ca, basic.path_length) != (path_length is not None, path_length):
        expected = "no CA" if path_length is None else f"a CA with path length {path_length}"
        raise _bad_constraint(what, f"basic constraints: must be those of {expected}")
    if basic.ca:
        allowed = usage.key_cert_sign and usage.crl_sign
    else:
        allowed = usage.digital_signature and not usage.key_cert_sign
    if not allowed:
        expected = "keyCertSign and cRLSign" if basic.ca else "digitalSignature, not keyCertSign"
        raise _bad_constraint(what, f"key usage: must be {expected}")
    for extension in extensions:
        if extension.oid.dotted_string == SGX_EXTENSION:
            assert isinstance(extension.value, x509.UnrecognizedExtension)
            return extension.value.value
    return None


def _bad_constraint(what: str, problem: str) -> SignatureError:
    return SignatureError(f"{what}: {problem}", reason="cert_constraints")


def _dotted(oid: x509.ObjectIdentifier) -> str:
    return oid.dotted_string


_ENCODED: Final = {encode_intel_name(name): name for name in _NAMES}


def _common_name(encoded: bytes) -> str:
    """Return the common name in `encoded`, a Name in DER; empty if it is not one of Intel's names.

    The order of the attributes does not matter, nor whether they are UTF8String or PrintableString.
    """
    known = _ENCODED.get(encoded)
    if known is not None:
        return known
    values = _attributes(encoded)
    name = values.pop(_COMMON_NAME, b"").decode("utf-8", "replace")
    return name if values == _ATTRIBUTES and name in _NAMES else ""


def _attributes(encoded: bytes) -> dict[bytes, bytes]:
    """Return the values in `encoded`, a Name in DER, by OID (content bytes).

    The result is empty if the Name is not built as Intel's names are.
    """
    values: dict[bytes, bytes] = {}
    names = DerReader(encoded).enter(SEQUENCE)
    while names.tag() is not None:
        attribute_set = names.enter(SET)
        attribute = attribute_set.enter(SEQUENCE)
        oid, kind = attribute.content(OID), attribute.tag()
        if attribute_set.tag() is not None or oid in values or kind not in _STRINGS:
            return {}
        values[oid] = attribute.content(kind)
    return values


def _shown_name(encoded: bytes) -> str:
    """Return `encoded`, a Name in DER, for an error text: its common name, or its start in hex."""
    common_name = _attributes(encoded).get(_COMMON_NAME)
    if common_name is None:
        return encoded[:_SHOWN_BYTES].hex()
    return ascii(common_name.decode("utf-8", "replace")[:_SHOWN])
