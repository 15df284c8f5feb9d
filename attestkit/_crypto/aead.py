"""AES-256-GCM (NIST SP 800-38D) and ChaCha20-Poly1305 (RFC 8439), with nonces of 12 bytes."""

from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from attestkit.errors import UsageError, VerificationError

IV_SIZE: Final = 12
"""Bytes of a nonce, which AES-GCM calls an IV."""
TAG_SIZE: Final = 16


def aes_gcm_encrypt(key: bytes, iv: bytes, plaintext: bytes, associated: bytes = b"") -> bytes:
    """Return the ciphertext followed by the tag of 16 bytes.

    Raises:
        UsageError: If the key does not have 32 bytes, or the IV 12.
    """
    _check_sizes("AES-256-GCM", key, iv)
    return AESGCM(key).encrypt(iv, plaintext, associated)


def aes_gcm_decrypt(key: bytes, iv: bytes, ciphertext: bytes, associated: bytes = b"") -> bytes:
    """Return the plaintext of a ciphertext followed by its tag.

    Raises:
        VerificationError: If the tag is truncated or not valid, or the associated data differ.
        UsageError: If the key does not have 32 bytes, or the IV 12.
    """
    _check_sizes("AES-256-GCM", key, iv)
    try:
        return AESGCM(key).decrypt(iv, ciphertext, associated)
    except InvalidTag as error:
        raise _not_authentic("AES-256-GCM") from error


def chacha20_encrypt(key: bytes, nonce: bytes, plaintext: bytes) -> bytes:
    """Return ciphertext and tag of ChaCha20-Poly1305; see `aes_gcm_encrypt`."""
    _check_sizes("ChaCha20-Poly1305", key, nonce)
    return ChaCha20Poly1305(key).encrypt(nonce, plaintext, None)


def chacha20_decrypt(key: bytes, nonce: bytes, ciphertext: bytes) -> bytes:
    """Return the plaintext of ChaCha20-Poly1305; see `aes_gcm_decrypt`."""
    _check_sizes("ChaCha20-Poly1305", key, nonce)
    try:
        return ChaCha20Poly1305(key).decrypt(nonce, ciphertext, None)
    except InvalidTag as error:
        raise _not_authentic("ChaCha20-Poly1305") from error


def _check_sizes(cipher: str, key: bytes, nonce: bytes) -> None:
    if (sizes := (len(key), len(nonce))) != (32, IV_SIZE):
        message = f"{cipher}: sizes of key and nonce {sizes}, must be 32 and {IV_SIZE} bytes"
        raise UsageError(message, reason="wrong_size")


def _not_authentic(cipher: str) -> VerificationError:
    text = f"ciphertext: authentication failed ({cipher}): wrong key, or the data was changed"
    return VerificationError(text, reason="bad_signature")
