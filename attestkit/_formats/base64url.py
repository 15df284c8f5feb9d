"""Base64url without padding (RFC 4648, section 5; RFC 7515, section 2)."""

from binascii import a2b_base64, b2a_base64
from typing import Final

from attestkit.errors import FormatError

_TO_URL: Final = bytes.maketrans(b"+/", b"-_")
_FROM_URL: Final = bytes.maketrans(b"-_", b"+/")


def to_base64url(data: bytes) -> str:
    """Return base64url without padding."""
    return b2a_base64(data, newline=False).translate(_TO_URL, b"=").decode("ascii")


def from_base64url(text: str, what: str) -> bytes:
    """Decode canonical base64url without padding.

    Raises:
        FormatError: If `text` is not canonical; `what` is the subject of the error.
    """
    problem = f"{what}: not base64url without padding"
    if not text.isascii():
        raise FormatError(problem, reason="encoding")
    try:
        # The decoder ignores invalid characters and unused bits; the comparison below does not.
        padded = text.encode("ascii").translate(_FROM_URL) + b"=" * (-len(text) % 4)
        found = a2b_base64(padded)
    except ValueError as error:
        raise FormatError(problem, reason="encoding") from error
    if to_base64url(found) != text:
        raise FormatError(problem, reason="encoding")
    return found
