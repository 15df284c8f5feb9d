"""The 64 bytes that a caller seals into a report and a quote: padding, and binding to a content.

The bindings are those of the dstack guest agent: a hash over tag, colon and content, so that what
was hashed for one purpose is no evidence for another.
"""

import re
import warnings
from base64 import urlsafe_b64encode
from typing import Final

from attestkit._crypto.hashes import digest
from attestkit.errors import UsageError

__all__ = ["ReportData", "ReportDataWarning"]

_SIZE: Final = 64
_HEX_TEXT: Final = re.compile(rb"(?:0x)?(?:[0-9a-fA-F]{2}){16,32}")
_APP_KEY_TEXTS: Final = {
    "ed25519": ("dip1::ed25519-pk:", 32),
    "secp256k1": ("dip1::secp256k1c-pk:", 33),
    "k256": ("dip1::secp256k1c-pk:", 33),
}


class ReportDataWarning(UserWarning):
    """Report data looks like a mistake, such as hex text where the bytes were meant."""


class ReportData:
    """Ways to the 64 bytes of report data; every one returns plain `bytes`."""

    SIZE: Final = _SIZE
    APP_DATA: Final = "app-data"
    RATLS_CERT: Final = "ratls-cert"
    KMS_ROOT_CA: Final = "kms-root-ca"

    @staticmethod
    def pad(data: bytes) -> bytes:
        """Return `data` (0 to 64 bytes), filled up with zeros on the right to 64 bytes.

        Warns with `ReportDataWarning` if the bytes are 32 or more hex digits: then 64 characters of
        text would be sealed, and most likely the 32 bytes that they write were meant.

        Raises:
            UsageError: there are more than 64 bytes, or `data` is not `bytes`.
        """
        if not isinstance(data, bytes):
            raise UsageError(f"report data is bytes, not {type(data).__name__}")
        if len(data) > _SIZE:
            raise UsageError("Report data is too long")
        if len(data) >= 32 and _HEX_TEXT.fullmatch(data):
            warnings.warn(
                "report data looks like hex text; ReportData.from_hex() turns it into bytes",
                ReportDataWarning,
                stacklevel=2,
            )
        return data.ljust(_SIZE, b"\0")

    @staticmethod
    def bind(tag: str, content: bytes, algorithm: str = "sha512") -> bytes:
        """Return the hash over `tag`, a colon and `content`, filled up with zeros to 64 bytes.

        Args:
            tag: what the content is: `app-data`, `ratls-cert`, `kms-root-ca`, or one's own.
            content: what to bind, of any length.
            algorithm: sha256, sha384, sha512 (also the empty name), sha3-256, sha3-384, sha3-512,
                keccak256, keccak384 or keccak512; `raw` takes 64 bytes of content as they are.

        Raises:
            UsageError: there is no such algorithm, or `raw` content is not 64 bytes.
        """
        if not isinstance(content, bytes):
            raise UsageError(f"content is bytes, not {type(content).__name__}")
        if algorithm == "raw":
            if len(content) != _SIZE:
                raise UsageError("invalid content length")
            return content
        hashed = digest(algorithm or "sha512", _utf8("tag", tag) + b":" + content)
        return hashed.ljust(_SIZE, b"\0")

    @staticmethod
    def from_hex(text: str) -> bytes:
        """Return the bytes that `text` writes in hex (`0x` may lead), filled up to 64 bytes.

        Raises:
            UsageError: this is not hex, or more than 64 bytes.
        """
        try:
            data = bytes.fromhex(text[2:] if text[:2] in {"0x", "0X"} else text)
        except ValueError as error:
            raise UsageError("report data is not hex text") from error
        return _fill(data)

    @staticmethod
    def from_text(text: str) -> bytes:
        """Return `text` in UTF-8, filled up to 64 bytes; UsageError if that is more than 64."""
        return _fill(_utf8("report data", text))

    @staticmethod
    def for_app_key(algorithm: str, public_key: bytes) -> bytes:
        """Return the report data that proves an application's signing key (64 bytes).

        It is ASCII: `dip1::ed25519-pk:` or `dip1::secp256k1c-pk:` and the key in base64url without
        padding, as GetAttestationForAppKey of the dstack guest agent writes it.

        Args:
            algorithm: ed25519, secp256k1 or k256.
            public_key: 32 bytes of Ed25519, or 33 of a compressed secp256k1 key.

        Raises:
            UsageError: the algorithm or the size of the key is another.
        """
        if algorithm not in _APP_KEY_TEXTS:
            raise UsageError("Unsupported algorithm")
        head, size = _APP_KEY_TEXTS[algorithm]
        if len(public_key) != size:
            raise UsageError(f"a public key for {algorithm} is {size} bytes, not {len(public_key)}")
        return _fill(head.encode() + urlsafe_b64encode(public_key).rstrip(b"="))


def _fill(data: bytes) -> bytes:
    if len(data) > _SIZE:
        raise UsageError("Report data is too long")
    return data.ljust(_SIZE, b"\0")


def _utf8(what: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{what} is not Unicode text: it has half a surrogate pair") from error
