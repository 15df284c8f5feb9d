"""Ed25519 signatures (RFC 8032) and X25519 key agreement (RFC 7748)."""

import binascii
import hashlib
from collections.abc import Callable
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from nacl.bindings import (
    crypto_core_ed25519_is_valid_point,
    crypto_scalarmult_base,
    crypto_scalarmult_ed25519_base_noclamp,
    crypto_sign,
    crypto_sign_ed25519_pk_to_curve25519,
    crypto_sign_open,
)
from nacl.exceptions import BadSignatureError, CryptoError

from attestkit._argument_checks import require_size
from attestkit._crypto.zeroize import Secret, wipe, wipe_field
from attestkit.errors import FormatError, UsageError

# PKCS#8 version 1 (RFC 8410, 7) before the seed, as written by OpenSSL.
_PKCS8_HEAD: Final = bytes.fromhex("302e020100300506032b657004220420")
_ARMOUR: Final = ("-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----")
_FIELD: Final = 2**255 - 19
_D: Final = -121665 * pow(121666, -1, _FIELD) % _FIELD  # the curve's constant (RFC 8032, 5.1)


class Ed25519Key(Secret):
    """An Ed25519 key; its secret is wiped when the object is destroyed."""

    __slots__ = ("_secret", "public_key")

    def __init__(self, seed: bytes) -> None:
        """Create a key from its 32-byte seed; UsageError for another size."""
        require_size("Ed25519 seed", seed, 32)
        self.public_key: bytes = _public_key(seed)  # 32 bytes
        self._secret: bytes = b"".join((seed, self.public_key))  # as libsodium's crypto_sign has it

    @classmethod
    def from_pem(cls, text: str) -> "Ed25519Key | None":
        """Parse `text`, an unencrypted key in PEM (PKCS#8, RFC 8410).

        Return None for a key of another kind, and for text that is not such a PEM.

        Raises:
            FormatError: If the key has the header of an Ed25519 key, but not 32 bytes after it.
        """
        lines = text.split()
        body = "".join(lines[3:-3])  # the BEGIN and END lines have three words each
        if (" ".join(lines[:3]), " ".join(lines[-3:])) != _ARMOUR:
            return None
        try:
            der = binascii.a2b_base64(body)
        except ValueError:
            return None
        if not der.startswith(_PKCS8_HEAD):
            return None
        if len(der) != len(_PKCS8_HEAD) + 32:
            message = f"Ed25519 key: PKCS#8 has {len(der)} bytes, must be {len(_PKCS8_HEAD) + 32}"
            raise FormatError(message, reason="wrong_size")
        seed = der[len(_PKCS8_HEAD) :]
        try:
            return cls(seed)
        finally:
            wipe(der)
            wipe(seed)

    def sign(self, data: bytes) -> bytes:
        """Return the 64-byte signature over `data`."""
        return bytes(crypto_sign(data, self._secret)[:64])

    def __del__(self, *, _wipe: Callable[[object, str], None] = wipe_field) -> None:
        _wipe(self, "_secret")

    def __repr__(self) -> str:
        return f"Ed25519Key(public_key={self.public_key.hex()})"


def _public_key(seed: bytes) -> bytes:
    """Return the public key of a seed (RFC 8032, 5.1.5), without a copy of the seed.

    PyNaCl's crypto_sign_seed_keypair frees a buffer with the secret key and does not wipe it.
    """
    digest = hashlib.sha512(seed).digest()
    scalar = bytearray(memoryview(digest)[:32])  # a view, as a slice would be one more copy
    scalar[0] &= 248
    scalar[31] = scalar[31] & 127 | 64
    clamped = bytes(scalar)
    try:
        return bytes(crypto_scalarmult_ed25519_base_noclamp(clamped))
    finally:
        for secret in (digest, scalar, clamped):
            wipe(secret)


def ed25519_public_key(seed: bytes) -> bytes:
    """Return the 32-byte public key of a 32-byte seed; UsageError for another size."""
    return Ed25519Key(seed).public_key


def ed25519_verify(public_key: bytes, signature: bytes, data: bytes) -> bool:
    """Return whether a signature over `data` is valid by the cofactorless equation of RFC 8032.

    Keys of small order are accepted, as by the dstack guest agent.

    Args:
        public_key: 32 bytes.
        signature: R and S, 64 bytes.
        data: The signed data, not hashed.

    Raises:
        UsageError: If the key is not a point of the curve, or an argument has another size.
    """
    if len(public_key) != 32:
        raise UsageError("invalid public key", reason="invalid_key")
    require_size("signature", signature, 64)
    # libsodium takes half of OpenSSL's time, but rejects some signatures that are valid here.
    try:
        crypto_sign_open(signature + data, public_key)
    except BadSignatureError:
        return _openssl_verify(public_key, signature, data)
    return True


def ed25519_verify_strict(public_key: bytes, signature: bytes, data: bytes) -> bool:
    """Return whether a signature (64 bytes) over `data` is valid for `public_key`, 32 bytes.

    Unlike `ed25519_verify`, it returns False for keys of small order and for encodings that no
    signer creates, also for a key or signature of another size. It rejects an invalid signature
    in a quarter of that function's time.
    """
    # libsodium would read past a shorter key, and take the rest of a signature from the data.
    if len(public_key) != 32 or len(signature) != 64:
        return False
    try:
        crypto_sign_open(signature + data, public_key)
    except BadSignatureError:
        return False
    return True


def ed25519_has_prime_order(public_key: bytes) -> bool:
    """Return whether `public_key` (32 bytes) is the canonical encoding of a point of prime order.

    For a point of small order, signatures exist that are valid for many messages.
    """
    return crypto_core_ed25519_is_valid_point(public_key)


def _openssl_verify(public_key: bytes, signature: bytes, data: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, data)
    except InvalidSignature as error:
        # OpenSSL raises the same error for an invalid key.
        if not _is_point(public_key):
            raise UsageError("invalid public key", reason="invalid_key") from error
        return False
    return True


def _is_point(encoded: bytes) -> bool:
    """Return whether `encoded` (32 bytes) is a point: an x exists for its y (RFC 8032, 5.1.3)."""
    y = int.from_bytes(encoded, "little") & ((1 << 255) - 1)
    square = y * y % _FIELD
    x_square = (square - 1) * pow(_D * square + 1, -1, _FIELD) % _FIELD
    return x_square == 0 or pow(x_square, (_FIELD - 1) // 2, _FIELD) == 1


def x25519(secret: bytes, public_key: bytes) -> bytes:
    """Return the shared secret, 32 bytes, of a 32-byte secret and a 32-byte public key.

    The secret is clamped here (RFC 7748).

    Raises:
        UsageError: If an argument has another size, or the shared secret is all zeros (a public
            key of small order).
    """
    require_size("X25519 secret", secret, 32)
    require_size("X25519 public key", public_key, 32)
    # PyNaCl's crypto_scalarmult frees a buffer with the shared bytes and does not wipe it.
    try:
        private = X25519PrivateKey.from_private_bytes(secret)
        return private.exchange(X25519PublicKey.from_public_bytes(public_key))
    except ValueError as error:
        raise UsageError("invalid X25519 shared secret", reason="invalid_key") from error


def x25519_public_key(secret: bytes) -> bytes:
    """Return the 32-byte public key of a 32-byte secret, which is clamped here.

    Raises:
        UsageError: If the secret does not have 32 bytes.
    """
    require_size("X25519 secret", secret, 32)
    return bytes(crypto_scalarmult_base(secret))


def ed25519_to_x25519(public_key: bytes) -> bytes:
    """Return the X25519 key, 32 bytes, of an Ed25519 public key (the map of RFC 7748, 4.1).

    Raises:
        UsageError: If the key does not have 32 bytes, or is not a point of prime order.
    """
    require_size("Ed25519 public key", public_key, 32)
    try:
        return bytes(crypto_sign_ed25519_pk_to_curve25519(public_key))
    except CryptoError as error:
        raise UsageError("Ed25519 key: not a point of prime order", reason="invalid_key") from error


def ed25519_seed_to_x25519(seed: bytes) -> bytes:
    """Return the X25519 secret whose public key `ed25519_to_x25519` returns, 32 bytes.

    `seed` is the Ed25519 seed, 32 bytes (RFC 8032, 5.1.5); the secret is not clamped.

    Raises:
        UsageError: If the seed does not have 32 bytes.
    """
    require_size("Ed25519 seed", seed, 32)
    digest = hashlib.sha512(seed).digest()
    try:
        return digest[:32]
    finally:
        wipe(digest)
