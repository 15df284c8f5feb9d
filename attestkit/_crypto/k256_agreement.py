"""Key agreement on secp256k1 (ECDH), and public keys in uncompressed SEC1."""

from coincurve import PublicKey

from attestkit._argument_checks import require_size
from attestkit._crypto.hashes import keccak256
from attestkit.errors import UsageError


def k256_shared_secret(secret: bytes, public_key: bytes) -> bytes:
    """Return the x coordinate of the shared point, 32 bytes.

    Args:
        secret: Scalar, 32 bytes.
        public_key: Uncompressed SEC1, 65 bytes.

    Raises:
        UsageError: If the secret is not in 1..n-1, the key is not a point of the curve, or an
            argument has another size.
    """
    require_size("secp256k1 secret", secret, 32)
    key = _read(public_key)
    try:
        point: bytes = key.multiply(secret).format(compressed=False)
    except ValueError as error:
        raise UsageError("secp256k1 secret: must be in 1..n-1", reason="invalid_key") from error
    return point[1:33]


def require_k256_point(public_key: bytes) -> None:
    """Check a public key in uncompressed SEC1, 65 bytes; UsageError if it is not valid."""
    _read(public_key)


def ethereum_address(public_key: bytes) -> bytes:
    """Return the 20 bytes that name a secp256k1 key in any form of SEC1.

    Raises:
        UsageError: If the key is not a point of the curve.
    """
    try:
        point: bytes = PublicKey(public_key).format(compressed=False)
    except ValueError as error:
        message = "secp256k1 public key: not a point of the curve"
        raise UsageError(message, reason="invalid_key") from error
    return keccak256(point[1:])[12:]


def _read(public_key: bytes) -> PublicKey:
    # libsecp256k1 also accepts the hybrid form (06, 07), which other implementations reject.
    if len(public_key) != 65 or public_key[0] != 4:
        message = "secp256k1 public key: must be 65 bytes of uncompressed SEC1"
        raise UsageError(message, reason="invalid_key")
    try:
        return PublicKey(public_key)
    except ValueError as error:
        message = "secp256k1 public key: not a point of the curve"
        raise UsageError(message, reason="invalid_key") from error
