"""ECDSA and ECDH key pairs on P-256 and P-384 with a choice of hash, for simulated hardware.

Keys and signatures (RFC 6979) are reproducible.
"""

from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, decode_dss_signature

from attestkit._crypto.ecdsa import P256_ORDER
from attestkit._crypto.hashes import hkdf_sha256
from attestkit._crypto.p384 import P384_ORDER
from attestkit._crypto.zeroize import Secret
from attestkit.errors import SignatureError

_SALT: Final = b"attestkit/ec-key/v1"
_CURVES: Final[dict[str, tuple[type[ec.EllipticCurve], int, int]]] = {
    "p256": (ec.SECP256R1, P256_ORDER, 32),
    "p384": (ec.SECP384R1, P384_ORDER, 48),
}
_HASHES: Final[dict[str, type[hashes.HashAlgorithm]]] = {
    "sha1": hashes.SHA1,
    "sha256": hashes.SHA256,
    "sha384": hashes.SHA384,
    "sha512": hashes.SHA512,
}


class EcKeyPair(Secret):
    """A key pair on the curve "p256" or "p384", derived from a seed of 32 bytes."""

    __slots__ = ("_private", "curve", "size", "x", "y")

    def __init__(self, seed: bytes, curve: str) -> None:
        kind, order, size = _CURVES[curve]
        # 16 bytes more than the order has, so that the bias is negligible (FIPS 186-5, A.2.1).
        wide = int.from_bytes(hkdf_sha256(seed, curve.encode(), size + 16, _SALT), "big")
        self._private = ec.derive_private_key(wide % (order - 1) + 1, kind())
        point = self._private.public_key().public_numbers()
        self.curve: str = curve
        self.size: int = size  # bytes of a coordinate
        self.x: bytes = point.x.to_bytes(size, "big")
        self.y: bytes = point.y.to_bytes(size, "big")

    def sign(self, digest: bytes, hash_name: str) -> tuple[bytes, bytes]:
        """Return r and s of the signature over a digest, each as long as a coordinate."""
        algorithm = ec.ECDSA(Prehashed(_HASHES[hash_name]()), deterministic_signing=True)
        r, s = decode_dss_signature(self._private.sign(digest, algorithm))
        return r.to_bytes(self.size, "big"), s.to_bytes(self.size, "big")

    def exchange(self, x: bytes, y: bytes) -> bytes:
        """Return the x coordinate of the shared point with a public key.

        Raises:
            SignatureError: If the public key is not on the curve.
        """
        point = b"\4" + x.rjust(self.size, b"\0") + y.rjust(self.size, b"\0")
        try:
            other = ec.EllipticCurvePublicKey.from_encoded_point(self._private.curve, point)
        except ValueError as error:
            message = f"{self.curve}: public key not on the curve"
            raise SignatureError(message, reason="invalid_key") from error
        return self._private.exchange(ec.ECDH(), other)

    def __repr__(self) -> str:
        return f"EcKeyPair(curve={self.curve!r}, x={self.x.hex()})"
