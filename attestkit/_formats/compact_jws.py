"""Compact JWS (RFC 7515, section 7.1) and its base64url, read strictly; nothing is verified.

Only the canonical encoding is accepted, so that tokens are not malleable. Base64url is without
padding (RFC 4648, section 5).
"""

from binascii import a2b_base64, b2a_base64
from typing import Any, Final, NamedTuple

from attestkit._formats import strict_json
from attestkit.errors import FormatError

_TO_URL: Final = bytes.maketrans(b"+/", b"-_")
_FROM_URL: Final = bytes.maketrans(b"-_", b"+/")


def to_base64url(data: bytes) -> str:
    """Return `data` in base64url without padding."""
    return b2a_base64(data, newline=False).translate(_TO_URL, b"=").decode("ascii")


def from_base64url(text: str, what: str) -> bytes:
    """Return the bytes of canonical base64url without padding.

    Raises:
        FormatError: If `text` is not canonical. The message begins with `what`, the text's name.
    """
    problem = f"{what}: not base64url without padding"
    if not text.isascii():
        raise FormatError(problem, reason="encoding")
    try:
        # The decoder ignores invalid characters and unused bits; the comparison below does not.
        found = a2b_base64(text.encode("ascii").translate(_FROM_URL) + b"=" * (-len(text) % 4))
    except ValueError as error:
        raise FormatError(problem, reason="encoding") from error
    if to_base64url(found) != text:
        raise FormatError(problem, reason="encoding")
    return found


class CompactJws(NamedTuple):
    """A JWS whose header, signature and payload are not verified.

    Attributes:
        header: The protected header.
        signed: Bytes that the signature covers.
        signature: The signature.
        what: Name of the token, with which errors begin.
    """

    header: dict[str, Any]
    signed: bytes
    signature: bytes
    what: str

    def read_payload(self) -> dict[str, Any]:
        """Return the payload; call it after the verification of the signature.

        Raises:
            FormatError: If the payload is not an object of strict JSON.
        """
        body = self.signed.partition(b".")[2].decode("ascii")
        what = f"{self.what}: payload"
        return strict_json.read_object(from_base64url(body, what), what)


def read_compact_jws(token: bytes, most: int, what: str) -> CompactJws:
    """Return the parts of a token.

    Args:
        token: The token.
        most: Limit of its size in bytes.
        what: Name of the token, with which errors begin.

    Raises:
        FormatError: If the token is over `most` bytes, has another number of parts than three, no
            payload, a part that is not canonical base64url, or a header that is not an object of
            strict JSON.
    """
    if len(token) > most:
        raise FormatError(f"{what}: {len(token)} bytes, at most {most}", reason="too_large")
    parts = token.split(b".", 3)
    if len(parts) != 3 or not token.isascii():
        message = f"{what}: must be a JWS: 3 parts in ASCII, separated by dots"
        raise FormatError(message, reason="unrecognized")
    head, body, tail = [part.decode("ascii") for part in parts]
    if not body:
        raise FormatError(f"{what}: payload missing (detached)", reason="missing")
    header = strict_json.read_object(from_base64url(head, f"{what}: header"), f"{what}: header")
    signature = from_base64url(tail, f"{what}: signature")
    return CompactJws(header, token[: len(head) + 1 + len(body)], signature, what)
