"""AES-256-GCM (NIST SP 800-38D) with a 12-byte IV and no associated data."""

from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from attestkit.errors import UsageError, VerificationError

__all__ = ["IV_SIZE", "TAG_SIZE", "aes_gcm_decrypt", "aes_gcm_encrypt"]

IV_SIZE: Final = 12
TAG_SIZE: Final = 16


def aes_gcm_encrypt(key: bytes, iv: bytes, plaintext: bytes) -> bytes:
    """Return ciphertext and tag (16 bytes longer than the plaintext).

    Raises:
        UsageError: the key is not 32 bytes or the IV not 12.
    """
    return _cipher(key, iv).encrypt(iv, plaintext, None)


def aes_gcm_decrypt(key: bytes, iv: bytes, ciphertext: bytes) -> bytes:
    """Return the plaintext of ciphertext and tag.

    Raises:
        VerificationError: the tag does not hold, or is cut.
        UsageError: the key is not 32 bytes or the IV not 12.
    """
    try:
        return _cipher(key, iv).decrypt(iv, ciphertext, None)
    except InvalidTag as error:
        raise VerificationError("AES-GCM: the tag does not hold") from error


def _cipher(key: bytes, iv: bytes) -> AESGCM:
    if len(key) != 32 or len(iv) != IV_SIZE:
        raise UsageError(f"AES-256-GCM wants 32 and {IV_SIZE} bytes of key and IV")
    return AESGCM(key)
