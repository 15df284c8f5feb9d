"""Base64url without padding (RFC 4648, section 5; RFC 7515, section 2)."""

from base64 import urlsafe_b64decode, urlsafe_b64encode

from attestkit.errors import FormatError


def to_base64url(data: bytes) -> str:
    """Return base64url without padding."""
    return urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


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
        found = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError as error:
        raise FormatError(problem, reason="encoding") from error
    if to_base64url(found) != text:
        raise FormatError(problem, reason="encoding")
    return found
