"""PEM armour (RFC 7468): 64 characters a line, LF line ends, a LF after the last line."""

import binascii
import re
from base64 import b64decode
from typing import Final

from attestkit.errors import FormatError

__all__ = ["armour", "split_pem"]

_LINE: Final = 48  # bytes that fill 64 characters
_CERTIFICATE: Final = re.compile(
    r"-----BEGIN CERTIFICATE-----\s([A-Za-z0-9+/=\s]*)-----END CERTIFICATE-----"
)


def armour(label: str, der: bytes) -> str:
    """Return `der` in PEM under `label`."""
    lines = (binascii.b2a_base64(der[at : at + _LINE]).decode() for at in range(0, len(der), _LINE))
    return f"-----BEGIN {label}-----\n{''.join(lines)}-----END {label}-----\n"


def split_pem(text: str) -> list[bytes]:
    """Return the DER of every certificate in `text`, in order; text between them is skipped.

    Raises:
        FormatError: there is no certificate, one is not closed, or one is not base64.
    """
    bodies = _CERTIFICATE.findall(text)
    if not bodies or len(bodies) != text.count("-----BEGIN CERTIFICATE-----"):
        raise FormatError("not a sequence of PEM certificates")
    try:
        return [b64decode("".join(body.split()), validate=True) for body in bodies]
    except binascii.Error as error:
        raise FormatError("a PEM certificate is not base64") from error
