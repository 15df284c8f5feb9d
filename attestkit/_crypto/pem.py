"""PEM (RFC 7468), written with 64 characters per line and LF line ends."""

import binascii
import re
from base64 import b64decode
from collections.abc import Collection
from typing import Final

from attestkit.errors import FormatError

_LINE: Final = 64  # characters
_BLOCK: Final = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----\s([A-Za-z0-9+/=\s]*)-----END \1-----")
_SEQUENCE: Final = b"\x30"

CERTIFICATE_LABEL: Final = "CERTIFICATE"
"""Label of a certificate (RFC 7468, section 5)."""

CRL_LABEL: Final = "X509 CRL"
"""Label of a certificate revocation list (RFC 7468, section 6)."""


def encode_pem(label: str, der: bytes) -> str:
    """Return `der` in PEM with this label, such as `CERTIFICATE` (the words after BEGIN)."""
    body = binascii.b2a_base64(der, newline=False).decode()
    lines = [body[at : at + _LINE] for at in range(0, len(body), _LINE)]
    return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----\n"])


def split_pem(text: str, labels: Collection[str] = (CERTIFICATE_LABEL,)) -> list[bytes]:
    """Return the DER of each PEM block in `text` with one of the labels; ignore all else.

    Raises:
        FormatError: If the text has no such block, or one is incomplete or not base64 in its
            canonical form.
    """
    bodies = [body for label, body in _BLOCK.findall(text) if label in labels]
    expected = sum(text.count(f"-----BEGIN {label}-----") for label in labels)
    if not bodies or len(bodies) != expected:
        what = " or ".join(labels)
        raise FormatError(f"PEM: must be one or more complete blocks of {what}", reason="syntax")
    return [_decode("".join(body.split())) for body in bodies]


def split_der_or_pem(
    data: bytes, what: str, labels: Collection[str] = (CERTIFICATE_LABEL,)
) -> list[bytes]:
    """Return the DER of one object, or that of each PEM block with one of the labels.

    Args:
        data: A DER SEQUENCE, which is not parsed, or PEM.
        what: Name of the object, with which errors begin.
        labels: Labels of the PEM blocks that count, such as `CERTIFICATE`; others are ignored.

    Raises:
        FormatError: If it is neither, or as `split_pem`.
    """
    if data.startswith(_SEQUENCE):
        return [data]
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError as error:
        message = f"{what}: neither DER nor PEM"
        raise FormatError(message, offset=error.start, reason="encoding") from error
    return split_pem(text, labels)


def _decode(body: str) -> bytes:
    try:
        der = b64decode(body, validate=True)
    except binascii.Error as error:
        raise FormatError("PEM: not base64", reason="encoding") from error
    if binascii.b2a_base64(der, newline=False).decode() != body:
        message = "PEM: the unused bits of the base64 text are not zero"
        raise FormatError(message, reason="not_canonical")
    return der
