"""HPKE base mode (RFC 9180): DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM."""

import hmac
import secrets
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from attestkit._argument_checks import require_size
from attestkit._crypto.aead import IV_SIZE, TAG_SIZE, aes_gcm_decrypt
from attestkit._crypto.ed25519 import x25519, x25519_public_key
from attestkit._crypto.hashes import hkdf_expand_sha256
from attestkit._crypto.zeroize import Secret, wipe
from attestkit.errors import UsageError, VerificationError

ENCAPSULATED_SIZE: Final = 32
"""Bytes of an encapsulated key (`enc`)."""
HPKE_TAG_SIZE: Final = TAG_SIZE
"""Bytes that a ciphertext has more than its plaintext."""

_VERSION: Final = b"HPKE-v1"
_KEM: Final = b"KEM\x00\x20"  # DHKEM(X25519, HKDF-SHA256)
_SUITE: Final = b"HPKE\x00\x20\x00\x01\x00\x02"  # with HKDF-SHA256 and AES-256-GCM
_BASE_MODE: Final = b"\0"
_LONGEST: Final = 8160  # bytes of an exported secret: 255 blocks of HKDF
_LIMIT: Final = (1 << 8 * IV_SIZE) - 1  # messages (RFC 9180, 5.2)


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
        key, self._base_nonce, self._exporter = _schedule_keys(
            shared, self.encapsulated + public_key, info
        )
        # The key is not wiped: AESGCM may keep the object, and read it at each message.
        self._aead = AESGCM(key)
        self._sequence = 0
        if ephemeral is None:
            wipe(own)

    def seal(self, plaintext: bytes, associated: bytes = b"") -> bytes:
        """Encrypt the next message; return the ciphertext followed by the tag of 16 bytes.

        Args:
            plaintext: Any bytes.
            associated: Bytes that the recipient must know.

        Raises:
            UsageError: If 2^96 - 1 messages were sealed before.
        """
        if self._sequence >= _LIMIT:
            raise UsageError("HPKE: too many messages; use another sender", reason="out_of_range")
        nonce = sequence_nonce(self._base_nonce, self._sequence)
        self._sequence += 1
        return self._aead.encrypt(nonce, plaintext, associated or None)

    def export(self, context: bytes, length: int) -> bytes:
        """Return a secret of `length` bytes that the recipient can derive too (RFC 9180, 5.3).

        `context` is the exporter context: bytes that separate this secret from others.

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
    """Return the nonce of message number `sequence`: the base nonce XOR the number, big-endian."""
    return (int.from_bytes(base, "big") ^ sequence).to_bytes(len(base), "big")


def hpke_seal(public_key: bytes, info: bytes, plaintext: bytes) -> tuple[bytes, bytes]:
    """Encrypt one message to an X25519 public key.

    Return the encapsulated key, 32 bytes, and the ciphertext followed by the tag of 16 bytes.

    Args:
        public_key: Key of the recipient, 32 bytes.
        info: Bytes that the recipient must know; a context with other bytes does not decrypt.
        plaintext: Any bytes.

    Raises:
        UsageError: If the public key does not have 32 bytes, or has low order (shared secret of
            zeros).
    """
    sender = HpkeSender(public_key, info)
    return sender.encapsulated, sender.seal(plaintext)


def hpke_open(secret: bytes, encapsulated: bytes, info: bytes, ciphertext: bytes) -> bytes:
    """Decrypt the result of `hpke_seal`; return the plaintext.

    Args:
        secret: X25519 secret key of the recipient, 32 bytes.
        encapsulated: Encapsulated key, 32 bytes.
        info: The bytes with which it was sealed.
        ciphertext: Ciphertext and tag.

    Raises:
        VerificationError: If an argument was altered, is for another key or other `info`, or the
            encapsulated key has low order (shared secret of zeros).
        UsageError: If the secret or the encapsulated key does not have 32 bytes.
    """
    require_size("X25519 secret", secret, 32)
    require_size("encapsulated key", encapsulated, ENCAPSULATED_SIZE)
    public_key = x25519_public_key(secret)
    try:
        shared = x25519(secret, encapsulated)
    except UsageError as error:
        text = "encapsulated key (HPKE): has low order; create it by encrypting again"
        raise VerificationError(text, reason="bad_signature") from error
    key, nonce, exporter = _schedule_keys(shared, encapsulated + public_key, info)
    try:
        return aes_gcm_decrypt(key, nonce, ciphertext)
    except VerificationError as error:
        text = "ciphertext: authentication failed (HPKE): wrong key, or the data was changed"
        raise VerificationError(text, reason="bad_signature") from error
    finally:
        for used in (key, nonce, exporter):
            wipe(used)


def _schedule_keys(shared: bytes, keys: bytes, info: bytes) -> tuple[bytes, bytes, bytes]:
    """Return key, base nonce and exporter secret (RFC 9180, 5.1, without a pre-shared key).

    Args:
        shared: Result of X25519, which is wiped.
        keys: Encapsulated key and public key of the recipient.
        info: Bytes that both sides know.
    """
    mixed = _extract(_KEM, b"", b"eae_prk", shared)
    secret = _expand(_KEM, mixed, b"shared_secret", keys, 32)
    hashes = _extract(_SUITE, b"", b"psk_id_hash", b"") + _extract(_SUITE, b"", b"info_hash", info)
    context = _BASE_MODE + hashes
    schedule = _extract(_SUITE, secret, b"secret", b"")
    try:
        return (
            _expand(_SUITE, schedule, b"key", context, 32),
            _expand(_SUITE, schedule, b"base_nonce", context, IV_SIZE),
            _expand(_SUITE, schedule, b"exp", context, 32),
        )
    finally:
        for used in (shared, mixed, secret, schedule):
            wipe(used)


def _extract(suite: bytes, salt: bytes, label: bytes, secret: bytes) -> bytes:
    """Return LabeledExtract of RFC 9180, section 4, 32 bytes.

    Args:
        suite: Suite id, such as "HPKE" and the three algorithm numbers.
        salt: Salt of HKDF-Extract; may be empty.
        label: Label of the RFC, such as b"psk_id_hash".
        secret: Input keying material.
    """
    return hmac.digest(salt, _VERSION + suite + label + secret, "sha256")


def _expand(suite: bytes, key: bytes, label: bytes, info: bytes, length: int) -> bytes:
    """Return LabeledExpand of RFC 9180, section 4, `length` bytes.

    Args:
        suite: Suite id, such as "HPKE" and the three algorithm numbers.
        key: Pseudorandom key.
        label: Label of the RFC, such as b"base_nonce".
        info: Bytes after the label.
        length: Size of the result in bytes.
    """
    labelled = length.to_bytes(2, "big") + _VERSION + suite + label + info
    return hkdf_expand_sha256(key, labelled, length)
