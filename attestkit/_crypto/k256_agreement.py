"""Public keys of secp256k1 in SEC1, and key agreement with them (ECDH)."""

from collections.abc import Collection
from typing import Final

from coincurve import PublicKey

from attestkit._argument_checks import require_size
from attestkit._crypto.hashes import keccak256
from attestkit.errors import UsageError

_K256_PUBLIC: Final = "secp256k1 public key"
# Sizes and first bytes of SEC1.
COMPRESSED: Final = frozenset({(33, b"\2"), (33, b"\3")})
UNCOMPRESSED: Final = frozenset({(65, b"\4")})
_FORM: Final = "65 bytes of uncompressed SEC1"


def k256_shared_secret(secret: bytes, public_key: bytes) -> bytes:
    """Return the x coordinate, 32 bytes, of the point that two secp256k1 keys share (ECDH).

    Args:
        secret: Scalar, 32 bytes.
        public_key: Uncompressed SEC1, 65 bytes.

    Raises:
        UsageError: If the secret is not in 1..n-1, the key is not a point of the curve, or an
            argument has another size.
    """
    require_size("secp256k1 secret", secret, 32)
    key = read_k256_point(public_key, UNCOMPRESSED, _FORM)
    try:
        point: bytes = key.multiply(secret).format(compressed=False)
    except ValueError as error:
        raise UsageError("secp256k1 secret: must be in 1..n-1", reason="invalid_key") from error
    return point[1:33]


def require_k256_point(public_key: bytes) -> None:
    """Check a secp256k1 public key in uncompressed SEC1, 65 bytes; UsageError if not valid."""
    read_k256_point(public_key, UNCOMPRESSED, _FORM)


def ethereum_address(public_key: bytes) -> bytes:
    """Return the Ethereum address, 20 bytes, of a secp256k1 public key: SEC1 of 33 or 65 bytes.

    Raises:
        UsageError: If the key is not a point of the curve, or has another size.
    """
    try:
        point: bytes = PublicKey(public_key).format(compressed=False)
    except ValueError as error:
        message = "secp256k1 public key: must be a point of the curve in SEC1, 33 or 65 bytes"
        raise UsageError(message, reason="invalid_key") from error
    return keccak256(point[1:])[12:]


def require_k256_public_key(public_key: bytes) -> None:
    """Check a secp256k1 public key in compressed SEC1, 33 bytes.

    Raises:
        UsageError: If it is not the encoding of a point of the curve.
    """
    read_k256_point(public_key, COMPRESSED, "33 bytes of compressed SEC1")


def k256_compressed(public_key: bytes) -> bytes:
    """Return the compressed form, 33 bytes, of a secp256k1 public key in SEC1, 33 or 65 bytes.

    Raises:
        UsageError: If it is not the encoding of a point of the curve.
    """
    key = read_k256_point(public_key, COMPRESSED | UNCOMPRESSED, "33 or 65 bytes of SEC1")
    compressed: bytes = key.format()
    return compressed


def read_k256_point(
    public_key: bytes, forms: Collection[tuple[int, bytes]], expected: str, what: str = _K256_PUBLIC
) -> PublicKey:
    """Return a SEC1 public key as coincurve's object, for attestkit._crypto only.

    libsecp256k1 also accepts the hybrid form (06, 07), which other implementations reject.

    Args:
        public_key: SEC1.
        forms: Accepted encodings: pairs of size in bytes and first byte.
        expected: Description of `forms` in the error.
        what: Name of the key in the error.

    Raises:
        UsageError: If it has another encoding, or is not a point of the curve.
    """
    if (len(public_key), public_key[:1]) not in forms:
        raise UsageError(f"{what}: must be {expected}", reason="invalid_key")
    try:
        return PublicKey(public_key)
    except ValueError as error:
        raise UsageError(f"{what}: not a point of the curve", reason="invalid_key") from error
