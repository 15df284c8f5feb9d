"""CRLs of AMD's roots (ARK), as the key distribution service has them for each product line.

AMD publishes a list for VCEKs and one for VLEKs (`/vcek/v1/<product>/crl` and `/vlek/v1/...`), both
signed by the ARK and with its name, in "Versioned Chip Endorsement Key (VCEK) Certificate and KDS
Interface Specification" (57230).
"""

import re
from base64 import b64decode
from binascii import Error as Base64Error
from typing import Final, NamedTuple

from attestkit._crypto.x509.cert_path import CRL_SIGN, VENDOR_RULES, PathCertificate, may
from attestkit._crypto.x509.crl import Crl, SignedCrl, read_crl_content, read_signed_crl
from attestkit.errors import FormatError, SignatureError

MAX_CRL_SIZE: Final = 262_144
"""Bytes of a CRL; a list without entries has under 1,000, an entry about 35."""

_MAX_CRLS: Final = 32  # in one file: two for each product line are needed
_PEM: Final = re.compile(r"-----BEGIN X509 CRL-----\s([A-Za-z0-9+/=\s]*)-----END X509 CRL-----")


class AmdCrl(NamedTuple):
    """A parsed CRL; `check_crl_signature` verifies its signature."""

    der: bytes
    envelope: SignedCrl
    content: Crl


def read_amd_crls(data: bytes) -> tuple[AmdCrl, ...]:
    """Parse a CRL in DER, or one or more in PEM ("X509 CRL").

    Raises:
        FormatError: If a CRL is malformed or exceeds 262,144 bytes, or there are more than 32.
    """
    return tuple(map(_read, [data] if data[:1] == b"\x30" else _split(data)))


def check_crl_signature(crl: AmdCrl, issuer: PathCertificate, what: str) -> None:
    """Verify that the CA of a certificate signed a CRL.

    Args:
        crl: The CRL, whose issuer has the certificate's subject name.
        issuer: A trusted CA certificate.
        what: Name of the CRL for error messages.

    Raises:
        SignatureError: If its signature is not valid, or the CA may not sign CRLs
            (`crl_bad_signature`).
    """
    envelope = crl.envelope
    problem = "signature and signatureAlgorithm differ, or the signature has unused bits"
    if envelope.algorithm != envelope.inner_algorithm or envelope.unused:
        raise SignatureError(f"{what}: {problem}", reason="crl_bad_signature")
    if not may(issuer, CRL_SIGN):
        message = f"{what}: the key usage of its issuer does not allow it to sign CRLs"
        raise SignatureError(message, reason="crl_bad_signature")
    if (verify := VENDOR_RULES.algorithms.get(envelope.algorithm)) is None:
        message = f"{what}: signature algorithm must be {VENDOR_RULES.names}"
        raise SignatureError(message, reason="crl_bad_signature")
    try:
        verify(issuer.spki, envelope.signature, envelope.signed)
    except SignatureError as error:
        message = f"{what}: not signed by its issuer: {error}"
        raise SignatureError(message, reason="crl_bad_signature") from error


def _read(der: bytes) -> AmdCrl:
    if len(der) > MAX_CRL_SIZE:
        raise FormatError(f"CRL: {len(der)} bytes, at most {MAX_CRL_SIZE}", reason="too_large")
    try:
        return AmdCrl(der, read_signed_crl(der), read_crl_content(der))
    except FormatError as error:
        message = f"malformed CRL: {error.message}"
        raise FormatError(message, offset=error.offset, reason=error.reason) from error


def _split(data: bytes) -> list[bytes]:
    """Return the CRLs in PEM; text between them is ignored."""
    if len(data) > 2 * MAX_CRL_SIZE * _MAX_CRLS:
        raise FormatError(f"CRLs: {len(data)} bytes, too many", reason="too_large")
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError as error:
        message = "CRL: neither DER nor PEM"
        raise FormatError(message, offset=error.start, reason="encoding") from error
    bodies = _PEM.findall(text)
    if not bodies or len(bodies) != text.count("-----BEGIN X509 CRL-----"):
        message = "CRL: must be DER, or one or more complete CRLs in PEM (X509 CRL)"
        raise FormatError(message, reason="syntax")
    if len(bodies) > _MAX_CRLS:
        raise FormatError(f"CRLs: {len(bodies)}, at most {_MAX_CRLS}", reason="too_many")
    try:
        return [b64decode("".join(body.split()), validate=True) for body in bodies]
    except Base64Error as error:
        raise FormatError("CRL: PEM is not base64", reason="encoding") from error
