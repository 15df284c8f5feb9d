"""ChaCha20-Poly1305 (RFC 8439) with a 12-byte nonce and no associated data."""

from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from attestkit.errors import UsageError, VerificationError

NONCE_SIZE: Final = 12
TAG_SIZE: Final = 16


def chacha20_encrypt(key: bytes, nonce: bytes, plaintext: bytes) -> bytes:
    """Return the ciphertext followed by the tag of 16 bytes.

    Raises:
        UsageError: If the key does not have 32 bytes, or the nonce 12.
    """
    return _cipher(key, nonce).encrypt(nonce, plaintext, None)


def chacha20_decrypt(key: bytes, nonce: bytes, ciphertext: bytes) -> bytes:
    """Return the plaintext of a ciphertext followed by its tag.

    Raises:
        VerificationError: If the tag is not valid, or truncated.
        UsageError: If the key does not have 32 bytes, or the nonce 12.
    """
    try:
        return _cipher(key, nonce).decrypt(nonce, ciphertext, None)
    except InvalidTag as error:
        text = "ciphertext: authentication failed (ChaCha20-Poly1305): wrong key, or altered data"
        raise VerificationError(text, reason="bad_signature") from error


def _cipher(key: bytes, nonce: bytes) -> ChaCha20Poly1305:
    if len(key) != 32 or len(nonce) != NONCE_SIZE:
        message = f"ChaCha20-Poly1305: key must be 32 bytes, nonce {NONCE_SIZE}"
        raise UsageError(message, reason="wrong_size")
    return ChaCha20Poly1305(key)
