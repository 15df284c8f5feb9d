"""Ciphers of libsodium: XChaCha20-Poly1305, and the boxes of NaCl.

XChaCha20-Poly1305 is that of draft-irtf-cfrg-xchacha-03, with nonces of 24 bytes. A box
(`crypto_box`) is X25519, XSalsa20 and Poly1305. A sealed box (`crypto_box_seal`) has an anonymous
sender: ephemeral public key (32 bytes), Poly1305 tag (16), ciphertext; its nonce is the hash
BLAKE2b-24 of both public keys.
"""

from typing import Final

from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
    crypto_box,
    crypto_box_open,
    crypto_box_seal,
    crypto_box_seal_open,
)
from nacl.exceptions import CryptoError

from attestkit._argument_checks import require_size
from attestkit._crypto.ed25519 import x25519_public_key
from attestkit.errors import FormatError, UsageError, VerificationError

SODIUM_NONCE_SIZE: Final = 24
SEALED_BOX_OVERHEAD: Final = 48
"""Bytes that a sealed box has more than its plaintext."""


def xchacha20_encrypt(key: bytes, nonce: bytes, plaintext: bytes, associated: bytes = b"") -> bytes:
    """Encrypt with XChaCha20-Poly1305; return the ciphertext followed by the tag of 16 bytes.

    Args:
        key: 32 bytes.
        nonce: 24 bytes, not used before with this key.
        plaintext: Any bytes.
        associated: Associated data: authenticated, not encrypted and not in the result.

    Raises:
        UsageError: If the key does not have 32 bytes, or the nonce 24.
    """
    _check_key(key, nonce)
    return bytes(crypto_aead_xchacha20poly1305_ietf_encrypt(plaintext, associated, nonce, key))


def xchacha20_decrypt(
    key: bytes, nonce: bytes, ciphertext: bytes, associated: bytes = b""
) -> bytes:
    """Decrypt the result of `xchacha20_encrypt`; return the plaintext.

    Args:
        key: 32 bytes.
        nonce: 24 bytes, as for the encryption.
        ciphertext: Ciphertext followed by the tag of 16 bytes.
        associated: Associated data of the encryption, which are authenticated.

    Raises:
        VerificationError: If the tag is truncated or not valid: another key or nonce, or other
            data.
        UsageError: If the key does not have 32 bytes, or the nonce 24.
    """
    _check_key(key, nonce)
    try:
        return bytes(crypto_aead_xchacha20poly1305_ietf_decrypt(ciphertext, associated, nonce, key))
    except (CryptoError, ValueError) as error:  # PyNaCl's ValueError: shorter than a tag
        raise _not_authentic("ciphertext", "XChaCha20-Poly1305") from error


def _check_key(key: bytes, nonce: bytes) -> None:
    if (sizes := (len(key), len(nonce))) != (32, SODIUM_NONCE_SIZE):
        message = f"XChaCha20-Poly1305: sizes of key and nonce {sizes}, must be 32 and 24 bytes"
        raise UsageError(message, reason="wrong_size")


def box_encrypt(secret: bytes, public_key: bytes, nonce: bytes, plaintext: bytes) -> bytes:
    """Encrypt with `crypto_box` of NaCl; return the tag of 16 bytes followed by the ciphertext.

    Args:
        secret: X25519 secret key of the sender, 32 bytes.
        public_key: X25519 public key of the recipient, 32 bytes.
        nonce: 24 bytes, not used before with these keys.
        plaintext: Any bytes.

    Raises:
        UsageError: If an argument has another size, or the public key has low order.
    """
    _check_sizes(secret, public_key, nonce)
    try:
        return bytes(crypto_box(plaintext, nonce, public_key, secret))
    except CryptoError as error:
        raise UsageError("invalid X25519 shared secret", reason="invalid_key") from error


def box_decrypt(secret: bytes, public_key: bytes, nonce: bytes, ciphertext: bytes) -> bytes:
    """Return the plaintext of a result of `box_encrypt`.

    Args:
        secret: X25519 secret key of the recipient, 32 bytes.
        public_key: X25519 public key of the sender, 32 bytes.
        nonce: 24 bytes.
        ciphertext: Tag and ciphertext.

    Raises:
        VerificationError: If the tag is not valid or truncated, or the public key has low order.
        UsageError: If an argument has another size.
    """
    _check_sizes(secret, public_key, nonce)
    try:
        return bytes(crypto_box_open(ciphertext, nonce, public_key, secret))
    except CryptoError as error:
        raise _not_authentic("ciphertext", "NaCl box") from error


def _check_sizes(secret: bytes, public_key: bytes, nonce: bytes) -> None:
    require_size("X25519 secret", secret, 32)
    require_size("X25519 public key", public_key, 32)
    require_size("nonce", nonce, SODIUM_NONCE_SIZE)


def seal_box(recipient: bytes, plaintext: bytes) -> bytes:
    """Return a sealed box of `plaintext` for the X25519 public key `recipient`, 32 bytes.

    Raises:
        UsageError: If the public key does not have 32 bytes, or has low order (shared secret of
            zeros).
    """
    require_size("X25519 public key", recipient, 32)
    try:
        return bytes(crypto_box_seal(plaintext, recipient))
    except CryptoError as error:
        raise UsageError("invalid X25519 shared secret", reason="invalid_key") from error


def open_box(secret: bytes, box: bytes) -> bytes:
    """Return the plaintext of a sealed box; `secret` is its recipient's X25519 key, 32 bytes.

    PyNaCl leaves a copy of the plaintext in freed memory.

    Raises:
        FormatError: If the box is shorter than 48 bytes.
        VerificationError: If the box was altered or is for another key, or its ephemeral key has
            low order.
        UsageError: If the secret does not have 32 bytes.
    """
    public = x25519_public_key(secret)
    if len(box) < SEALED_BOX_OVERHEAD:
        message = f"sealed box: truncated: {len(box)} bytes, must be at least {SEALED_BOX_OVERHEAD}"
        raise FormatError(message, reason="truncated", offset=len(box))
    try:
        return bytes(crypto_box_seal_open(box, public, secret))
    except CryptoError as error:
        raise _not_authentic("sealed box", "crypto_box_seal") from error


def _not_authentic(what: str, cipher: str) -> VerificationError:
    text = f"{what}: authentication failed ({cipher}): wrong key, or the data was changed"
    return VerificationError(text, reason="bad_signature")
