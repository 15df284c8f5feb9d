"""Ed25519 signatures (RFC 8032) and X25519 key agreement (RFC 7748)."""

import binascii
import hashlib
from collections.abc import Callable
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from nacl.bindings import (
    crypto_scalarmult_base,
    crypto_scalarmult_ed25519_base_noclamp,
    crypto_sign,
    crypto_sign_open,
)
from nacl.exceptions import BadSignatureError

from attestkit._crypto.zeroize import Secret, wipe, wipe_field
from attestkit.errors import FormatError, UsageError

__all__ = [
    "Ed25519Key",
    "ed25519_public_key",
    "ed25519_sign",
    "ed25519_verify",
    "x25519",
    "x25519_public_key",
]

# RFC 8410, 7: version 1 of PKCS#8 around the seed, as OpenSSL writes it.
_PKCS8_HEAD: Final = bytes.fromhex("302e020100300506032b657004220420")
_ARMOUR: Final = ("-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----")
_FIELD: Final = 2**255 - 19
_D: Final = -121665 * pow(121666, -1, _FIELD) % _FIELD  # the curve's constant (RFC 8032, 5.1)


class Ed25519Key(Secret):
    """An Ed25519 key, prepared once for many signatures; its secret is wiped when it goes."""

    __slots__ = ("_secret", "public_key")

    def __init__(self, seed: bytes) -> None:
        """Take the 32-byte seed; UsageError for another size."""
        _check_size("an Ed25519 seed", seed, 32)
        self.public_key: bytes = _public_key(seed)  # 32 bytes
        self._secret: bytes = b"".join((seed, self.public_key))  # as libsodium's crypto_sign has it

    @classmethod
    def from_pem(cls, text: str) -> "Ed25519Key | None":
        """Read the PEM of PKCS#8 (RFC 8410), not encrypted; None where that is no Ed25519 key.

        Raises:
            FormatError: it begins as an Ed25519 key, and goes on as none.
        """
        lines = text.split()
        body = "".join(lines[3:-3])  # the armour has blanks
        if (" ".join(lines[:3]), " ".join(lines[-3:])) != _ARMOUR:
            return None
        try:
            der = binascii.a2b_base64(body)
        except ValueError:
            return None
        if not der.startswith(_PKCS8_HEAD):
            return None
        if len(der) != len(_PKCS8_HEAD) + 32:
            raise FormatError("the PEM of an Ed25519 key has another size than RFC 8410's")
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


def ed25519_sign(seed: bytes, data: bytes) -> bytes:
    """Return the 64-byte signature over `data` by a 32-byte seed; UsageError for another size."""
    return Ed25519Key(seed).sign(data)


def ed25519_verify(public_key: bytes, signature: bytes, data: bytes) -> bool:
    """Tell whether the signature over `data` holds: cofactorless, and without libsodium's extras.

    Points of small order are not refused, as the guest agent does not.

    Raises:
        UsageError: the key is not 32 bytes or no point of the curve, or the signature is not 64.
    """
    if len(public_key) != 32:
        raise UsageError("invalid public key")
    _check_size("a signature", signature, 64)
    # What libsodium accepts holds, and it takes half of OpenSSL's time; what it refuses may hold.
    try:
        crypto_sign_open(signature + data, public_key)
    except BadSignatureError:
        return _openssl_verify(public_key, signature, data)
    return True


def _openssl_verify(public_key: bytes, signature: bytes, data: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, data)
    except InvalidSignature as error:
        # OpenSSL does not tell a key that is no point from a wrong signature.
        if not _is_point(public_key):
            raise UsageError("invalid public key") from error
        return False
    return True


def _is_point(encoded: bytes) -> bool:
    """Tell whether (y^2 - 1) / (d y^2 + 1) is a square, so that an x exists (RFC 8032, 5.1.3)."""
    y = int.from_bytes(encoded, "little") & ((1 << 255) - 1)
    square = y * y % _FIELD
    x_square = (square - 1) * pow(_D * square + 1, -1, _FIELD) % _FIELD
    return x_square == 0 or pow(x_square, (_FIELD - 1) // 2, _FIELD) == 1


def x25519(secret: bytes, public_key: bytes) -> bytes:
    """Return the 32 shared bytes of a 32-byte secret (clamped here) and a 32-byte public key.

    Raises:
        UsageError: a size is wrong, or the shared bytes are all zero (a point of small order).
    """
    _check_size("an X25519 secret", secret, 32)
    _check_size("an X25519 public key", public_key, 32)
    # PyNaCl's crypto_scalarmult frees a buffer with the shared bytes and does not wipe it.
    try:
        private = X25519PrivateKey.from_private_bytes(secret)
        return private.exchange(X25519PublicKey.from_public_bytes(public_key))
    except ValueError as error:
        raise UsageError("invalid X25519 shared secret") from error


def x25519_public_key(secret: bytes) -> bytes:
    """Return the 32-byte public key of a 32-byte secret (clamped here); UsageError as `x25519`."""
    _check_size("an X25519 secret", secret, 32)
    return bytes(crypto_scalarmult_base(secret))


def _check_size(what: str, data: bytes, size: int) -> None:
    if len(data) != size:
        raise UsageError(f"{what} is {size} bytes, not {len(data)}")
