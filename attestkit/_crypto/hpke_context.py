"""Sender's context of HPKE base mode (RFC 9180), for several messages and exported secrets.

The suite is that of `hpke`: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM.
"""

import hmac
import secrets
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from attestkit._crypto.ed25519 import x25519, x25519_public_key
from attestkit._crypto.hashes import hkdf_expand_sha256
from attestkit._crypto.zeroize import Secret, wipe
from attestkit.errors import UsageError

_VERSION: Final = b"HPKE-v1"
_KEM: Final = b"KEM\x00\x20"  # DHKEM(X25519, HKDF-SHA256)
_SUITE: Final = b"HPKE\x00\x20\x00\x01\x00\x02"  # with HKDF-SHA256 and AES-256-GCM
_BASE_MODE: Final = b"\0"
_NONCE_SIZE: Final = 12
_LONGEST: Final = 8160  # bytes of an exported secret: 255 blocks of HKDF
_LIMIT: Final = (1 << 8 * _NONCE_SIZE) - 1  # messages (RFC 9180, 5.2)


class HpkeSender(Secret):
    """Encrypts a sequence of messages to an X25519 public key. Not thread-safe.

    Args:
        public_key: Key of the recipient, 32 bytes.
        info: Bytes that the recipient must know.
        ephemeral: Secret of the ephemeral key, 32 bytes, for test vectors; None is a random one.

    Attributes:
        encapsulated: The encapsulated key (`enc`), 32 bytes, for the recipient.

    Raises:
        UsageError: If a key does not have 32 bytes, or the public key has low order (shared secret
            of zeros).
    """

    __slots__ = ("_aead", "_base_nonce", "_exporter", "_sequence", "encapsulated")

    def __init__(self, public_key: bytes, info: bytes, *, ephemeral: bytes | None = None) -> None:
        own = secrets.token_bytes(32) if ephemeral is None else ephemeral
        shared = x25519(own, public_key)
        self.encapsulated: bytes = x25519_public_key(own)
        secret = _shared_secret(shared, self.encapsulated + public_key)
        # Key schedule (5.1) without a pre-shared key.
        hashes = (
            _extract(_SUITE, b"", b"psk_id_hash", b""),
            _extract(_SUITE, b"", b"info_hash", info),
        )
        context = _BASE_MODE + b"".join(hashes)
        mixed = _extract(_SUITE, secret, b"secret", b"")
        self._aead = AESGCM(_expand(_SUITE, mixed, b"key", context, 32))
        self._base_nonce: bytes = _expand(_SUITE, mixed, b"base_nonce", context, _NONCE_SIZE)
        self._exporter: bytes = _expand(_SUITE, mixed, b"exp", context, 32)
        self._sequence = 0
        # Not the key: AESGCM may keep the object, and read it at each message.
        for used in (shared, secret, mixed):
            wipe(used)
        if ephemeral is None:
            wipe(own)

    def seal(self, plaintext: bytes, associated: bytes = b"") -> bytes:
        """Encrypt the next message; return the ciphertext followed by the tag of 16 bytes.

        Args:
            plaintext: Any bytes.
            associated: Bytes that the recipient must know.
        """
        if self._sequence >= _LIMIT:
            raise UsageError("HPKE: too many messages in one context", reason="out_of_range")
        nonce = sequence_nonce(self._base_nonce, self._sequence)
        self._sequence += 1
        return self._aead.encrypt(nonce, plaintext, associated or None)

    def export(self, context: bytes, length: int) -> bytes:
        """Return a secret that the recipient derives, too (RFC 9180, 5.3).

        Raises:
            UsageError: If `length` is not 0 to 8160.
        """
        if not 0 <= length <= _LONGEST:
            message = f"HPKE export: length must be 0 to {_LONGEST}, not {length}"
            raise UsageError(message, reason="out_of_range")
        return _expand(_SUITE, self._exporter, b"sec", context, length)

    def __repr__(self) -> str:
        return f"HpkeSender(encapsulated={self.encapsulated.hex()})"


def sequence_nonce(base: bytes, sequence: int) -> bytes:
    """Return a base nonce XOR the number of a message, big-endian."""
    return (int.from_bytes(base, "big") ^ sequence).to_bytes(len(base), "big")


def _shared_secret(shared: bytes, context: bytes) -> bytes:
    """Return the secret of the KEM for a result of X25519 (4.1)."""
    mixed = _extract(_KEM, b"", b"eae_prk", shared)
    try:
        return _expand(_KEM, mixed, b"shared_secret", context, 32)
    finally:
        wipe(mixed)


def _extract(suite: bytes, salt: bytes, label: bytes, secret: bytes) -> bytes:
    """Return LabeledExtract (4)."""
    return hmac.digest(salt, _VERSION + suite + label + secret, "sha256")


def _expand(suite: bytes, key: bytes, label: bytes, info: bytes, length: int) -> bytes:
    """Return LabeledExpand (4)."""
    labelled = length.to_bytes(2, "big") + _VERSION + suite + label + info
    return hkdf_expand_sha256(key, labelled, length)
