"""Reader of the compact serialization of a JWS (RFC 7515, section 7.1); it verifies nothing.

Only the canonical encoding is accepted, so that tokens are not malleable.
"""

from typing import Any, NamedTuple

from attestkit._formats import strict_json
from attestkit._formats.base64url import from_base64url
from attestkit.errors import FormatError


class CompactJws(NamedTuple):
    """A JWS whose header, signature and payload are not verified.

    Attributes:
        header: The protected header.
        signed: Bytes that the signature covers.
        signature: The signature.
        what: Subject of errors.
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
        what: Subject of errors.

    Raises:
        FormatError: If the token is over `most` bytes, has another number of parts than three, no
            payload, a part that is not canonical base64url, or a header that is not an object of
            strict JSON.
    """
    if len(token) > most:
        raise FormatError(f"{what}: {len(token)} bytes, at most {most}", reason="too_large")
    parts = token.split(b".", 3)
    if len(parts) != 3 or not token.isascii():
        raise FormatError(f"{what}: not a JWS of three parts", reason="unrecognized")
    head, body, tail = [part.decode("ascii") for part in parts]
    if not body:
        raise FormatError(f"{what}: payload missing (detached)", reason="missing")
    header = strict_json.read_object(from_base64url(head, f"{what}: header"), f"{what}: header")
    signature = from_base64url(tail, f"{what}: signature")
    return CompactJws(header, token[: len(head) + 1 + len(body)], signature, what)
