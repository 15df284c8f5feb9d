"""AES-256-GCM (NIST SP 800-38D) and ChaCha20-Poly1305 (RFC 8439), with nonces of 12 bytes."""

from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from attestkit.errors import UsageError, VerificationError

IV_SIZE: Final = 12
"""Bytes of a nonce, which AES-GCM calls an IV."""
TAG_SIZE: Final = 16


def aes_gcm_encrypt(key: bytes, iv: bytes, plaintext: bytes, associated: bytes = b"") -> bytes:
    """Encrypt with AES-256-GCM; return the ciphertext followed by the tag of 16 bytes.

    Args:
        key: 32 bytes.
        iv: 12 bytes, not used before with this key.
        plaintext: Any bytes.
        associated: Associated data: authenticated, not encrypted and not in the result.

    Raises:
        UsageError: If the key does not have 32 bytes, or the IV 12.
    """
    _check_sizes("AES-256-GCM", key, iv)
    return AESGCM(key).encrypt(iv, plaintext, associated)


def aes_gcm_decrypt(key: bytes, iv: bytes, ciphertext: bytes, associated: bytes = b"") -> bytes:
    """Decrypt the result of `aes_gcm_encrypt`; return the plaintext.

    Args:
        key: 32 bytes.
        iv: 12 bytes, as for the encryption.
        ciphertext: Ciphertext followed by the tag of 16 bytes.
        associated: Associated data of the encryption, which are authenticated.

    Raises:
        VerificationError: If the tag is truncated or not valid: the key, the IV, the ciphertext
            or the associated data differ.
        UsageError: If the key does not have 32 bytes, or the IV 12.
    """
    _check_sizes("AES-256-GCM", key, iv)
    try:
        return AESGCM(key).decrypt(iv, ciphertext, associated)
    except InvalidTag as error:
        raise _not_authentic("AES-256-GCM") from error


def chacha20_encrypt(key: bytes, nonce: bytes, plaintext: bytes) -> bytes:
    """Encrypt `plaintext` with ChaCha20-Poly1305; return ciphertext and the tag of 16 bytes.

    The key has 32 bytes and the nonce 12, without associated data. Raises as `aes_gcm_encrypt`.
    """
    _check_sizes("ChaCha20-Poly1305", key, nonce)
    return ChaCha20Poly1305(key).encrypt(nonce, plaintext, None)


def chacha20_decrypt(key: bytes, nonce: bytes, ciphertext: bytes) -> bytes:
    """Return the plaintext of a ciphertext and its tag of 16 bytes (ChaCha20-Poly1305).

    The key has 32 bytes and the nonce 12. Raises as `aes_gcm_decrypt`.
    """
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
