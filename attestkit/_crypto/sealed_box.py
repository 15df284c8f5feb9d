"""Sealed boxes of libsodium (`crypto_box_seal`): X25519, XSalsa20 and Poly1305, anonymous sender.

Layout: ephemeral public key (32 bytes), Poly1305 tag (16), ciphertext. The nonce is the hash
BLAKE2b-24 of both public keys.
"""

from typing import Final

from nacl.bindings import crypto_box_seal, crypto_box_seal_open
from nacl.exceptions import CryptoError

from attestkit._argument_checks import require_size
from attestkit._crypto.ed25519 import x25519_public_key
from attestkit.errors import FormatError, UsageError, VerificationError

SEALED_BOX_OVERHEAD: Final = 48
"""Bytes that a sealed box has more than its plaintext."""


def seal_box(recipient: bytes, plaintext: bytes) -> bytes:
    """Encrypt to an X25519 public key of 32 bytes, with a random ephemeral key.

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
    """Decrypt a sealed box with the X25519 secret key of its recipient, 32 bytes.

    PyNaCl leaves a copy of the plaintext in freed memory.

    Raises:
        FormatError: If the box is shorter than 48 bytes.
        VerificationError: If the box was altered or is for another key, or its ephemeral key has
            low order.
        UsageError: If the secret does not have 32 bytes.
    """
    public = x25519_public_key(secret)
    if len(box) < SEALED_BOX_OVERHEAD:
        message = f"sealed box: truncated: {len(box)} bytes"
        raise FormatError(message, reason="truncated", offset=len(box))
    try:
        return bytes(crypto_box_seal_open(box, public, secret))
    except CryptoError as error:
        text = "sealed box: authentication failed: wrong key, or the data was changed"
        raise VerificationError(text, reason="bad_signature") from error
