"""AES-256-GCM (NIST SP 800-38D) with a 12-byte IV."""

from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from attestkit.errors import UsageError, VerificationError

IV_SIZE: Final = 12


def aes_gcm_encrypt(key: bytes, iv: bytes, plaintext: bytes, associated: bytes = b"") -> bytes:
    """Return the ciphertext followed by the tag of 16 bytes.

    Raises:
        UsageError: If the key does not have 32 bytes, or the IV 12.
    """
    return _cipher(key, iv).encrypt(iv, plaintext, associated)


def aes_gcm_decrypt(key: bytes, iv: bytes, ciphertext: bytes, associated: bytes = b"") -> bytes:
    """Return the plaintext of a ciphertext followed by its tag.

    Raises:
        VerificationError: If the tag is not valid, or truncated, or the associated data are others.
        UsageError: If the key does not have 32 bytes, or the IV 12.
    """
    try:
        return _cipher(key, iv).decrypt(iv, ciphertext, associated)
    except InvalidTag as error:
        text = "ciphertext: authentication failed (AES-256-GCM): wrong key, or the data was changed"
        raise VerificationError(text, reason="bad_signature") from error


def _cipher(key: bytes, iv: bytes) -> AESGCM:
    if len(key) != 32 or len(iv) != IV_SIZE:
        raise UsageError(f"AES-256-GCM: key must be 32 bytes, IV {IV_SIZE}", reason="wrong_size")
    return AESGCM(key)
