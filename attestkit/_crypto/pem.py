"""PEM (RFC 7468), written with 64 characters per line and LF line ends."""

import binascii
import re
from base64 import b64decode
from typing import Final

from attestkit.errors import FormatError

_LINE: Final = 48  # bytes per line of 64 characters
_CERTIFICATE: Final = re.compile(
    r"-----BEGIN CERTIFICATE-----\s([A-Za-z0-9+/=\s]*)-----END CERTIFICATE-----"
)
_CRL: Final = re.compile(r"-----(BEGIN|END) X509 CRL-----")


def encode_pem(label: str, der: bytes) -> str:
    """Return `der` in PEM with this label."""
    lines = (binascii.b2a_base64(der[at : at + _LINE]).decode() for at in range(0, len(der), _LINE))
    return f"-----BEGIN {label}-----\n{''.join(lines)}-----END {label}-----\n"


def split_pem(text: str) -> list[bytes]:
    """Return the certificates in `text` in DER, in order; ignore text between them.

    Raises:
        FormatError: If the text has no certificate, or one is incomplete or not base64.
    """
    bodies = _CERTIFICATE.findall(text)
    if not bodies or len(bodies) != text.count("-----BEGIN CERTIFICATE-----"):
        raise FormatError("PEM: must be one or more complete certificates", reason="syntax")
    try:
        return [b64decode("".join(body.split()), validate=True) for body in bodies]
    except binascii.Error as error:
        raise FormatError("PEM: certificate is not base64", reason="encoding") from error


def split_pem_with_crls(text: str) -> list[bytes]:
    """Return the certificates and CRLs in `text` in DER, in order; otherwise as `split_pem`."""
    return split_pem(_CRL.sub(r"-----\1 CERTIFICATE-----", text))
