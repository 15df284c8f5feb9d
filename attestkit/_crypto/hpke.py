"""HPKE base mode, single shot (RFC 9180): DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM.

The associated data are empty.
"""

from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from attestkit._argument_checks import require_size
from attestkit.errors import UnsupportedError, UsageError, VerificationError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives import hpke

ENCAPSULATED_SIZE: Final = 32
"""Bytes of an encapsulated key (`enc`)."""
HPKE_TAG_SIZE: Final = 16
"""Bytes that a ciphertext has more than its plaintext."""


def hpke_seal(public_key: bytes, info: bytes, plaintext: bytes) -> tuple[bytes, bytes]:
    """Encrypt to an X25519 public key; return the encapsulated key and the ciphertext.

    Args:
        public_key: Key of the recipient, 32 bytes.
        info: Bytes that the recipient must know; a context with other bytes does not decrypt.
        plaintext: Any bytes.

    Raises:
        UsageError: If the public key does not have 32 bytes, or has low order (shared secret of
            zeros).
        UnsupportedError: If the installed release of cryptography has no HPKE.
    """
    require_size("X25519 public key", public_key, 32)
    recipient = X25519PublicKey.from_public_bytes(public_key)
    try:
        sealed = _suite().encrypt(plaintext, recipient, info)
    except ValueError as error:
        raise UsageError("invalid X25519 shared secret", reason="invalid_key") from error
    return sealed[:ENCAPSULATED_SIZE], sealed[ENCAPSULATED_SIZE:]


def hpke_open(secret: bytes, encapsulated: bytes, info: bytes, ciphertext: bytes) -> bytes:
    """Decrypt the result of `hpke_seal`.

    Args:
        secret: X25519 secret key of the recipient, 32 bytes.
        encapsulated: Encapsulated key, 32 bytes.
        info: As for `hpke_seal`.
        ciphertext: Ciphertext and tag.

    Raises:
        VerificationError: If an argument was altered, is for another key or other `info`, or the
            encapsulated key has low order (shared secret of zeros).
        UsageError: If the secret or the encapsulated key does not have 32 bytes.
        UnsupportedError: If the installed release of cryptography has no HPKE.
    """
    require_size("X25519 secret", secret, 32)
    require_size("encapsulated key", encapsulated, ENCAPSULATED_SIZE)
    private = X25519PrivateKey.from_private_bytes(secret)
    try:
        return _suite().decrypt(encapsulated + ciphertext, private, info)
    except (InvalidTag, ValueError) as error:
        text = "ciphertext: authentication failed (HPKE): wrong key, or the data was changed"
        raise VerificationError(text, reason="bad_signature") from error


def _suite() -> "hpke.Suite":
    # Lazy: releases of cryptography before 47 have no HPKE, and nothing else needs it.
    try:
        from cryptography.hazmat.primitives import hpke

        return hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
    except (ImportError, AttributeError) as error:
        text = (
            "HPKE: the installed release of cryptography lacks DHKEM(X25519) with AES-256-GCM; "
            "install cryptography 47 or newer"
        )
        raise UnsupportedError(text, reason="feature") from error
