"""ECDSA P-384 with SHA-384, for SEV-SNP reports and Nitro attestation documents.

Only simulated chips have private keys here; their signatures are deterministic (RFC 6979).
"""

from functools import lru_cache
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestkit._crypto.zeroize import Secret
from attestkit.errors import SignatureError, UsageError

P384_SIGNATURE_SIZE: Final = 96
P384_ORDER: Final = int(
    "FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973",
    16,
)
ECDSA_SHA384: Final = bytes.fromhex("300a06082a8648ce3d040303")
"""AlgorithmIdentifier of ecdsa-with-SHA384 in DER, without parameters (RFC 5758, 3.2)."""
# SubjectPublicKeyInfo (RFC 5480) before the coordinates, including the 04 of the point.
P384_SPKI_HEAD: Final = bytes.fromhex("3076301006072a8648ce3d020106052b8104002203620004")

_SIGNATURE: Final = ec.ECDSA(SHA384(), deterministic_signing=True)
_VERIFICATION: Final = ec.ECDSA(SHA384())


class P384Key(Secret):
    """A P-384 key pair for simulated chips."""

    __slots__ = ("private", "spki")

    def __init__(self, number: int) -> None:
        """Create a key pair from its scalar; UsageError if it is not in 1..n-1."""
        if not 0 < number < P384_ORDER:
            raise UsageError("P-384 secret: must be in 1..n-1", reason="invalid_key")
        # For attestkit._crypto only.
        self.private: ec.EllipticCurvePrivateKey = ec.derive_private_key(number, ec.SECP384R1())
        point = self.private.public_key().public_bytes(
            Encoding.X962, PublicFormat.UncompressedPoint
        )
        self.spki: bytes = P384_SPKI_HEAD + point[1:]  # SubjectPublicKeyInfo in DER

    def sign(self, data: bytes) -> tuple[int, int]:
        """Return the signature over the SHA-384 of `data`: the integers r and s."""
        return decode_dss_signature(self.private.sign(data, _SIGNATURE))

    def __repr__(self) -> str:
        return f"P384Key(spki={self.spki.hex()})"


class P384PublicKey:
    """A P-384 public key, to verify several signatures with: loading it takes about 12 us."""

    __slots__ = ("_key",)

    def __init__(self, spki: bytes) -> None:
        """Load a key.

        Args:
            spki: SubjectPublicKeyInfo in DER, with an uncompressed point.

        Raises:
            SignatureError: If the key is malformed, or not of P-384 (`invalid_key`).
        """
        size = len(P384_SPKI_HEAD) + 96
        if len(spki) != size or not spki.startswith(P384_SPKI_HEAD):
            raise SignatureError("public key: must be P-384, uncompressed", reason="invalid_key")
        try:
            point = spki[len(P384_SPKI_HEAD) - 1 :]
            self._key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), point)
        except ValueError as error:
            message = "P-384: public key not on the curve"
            raise SignatureError(message, reason="invalid_key") from error

    def verify(self, signature: bytes, data: bytes) -> None:
        """Verify a signature over the SHA-384 of `data`.

        Args:
            signature: r and s, 48 bytes each, big-endian.
            data: The signed data.

        Raises:
            SignatureError: If the signature is not valid or malformed (`bad_signature`).
        """
        if len(signature) != P384_SIGNATURE_SIZE:
            size = len(signature)
            message = f"P-384: signature must have {P384_SIGNATURE_SIZE} bytes, not {size}"
            raise SignatureError(message, reason="bad_signature")
        r, s = int.from_bytes(signature[:48], "big"), int.from_bytes(signature[48:], "big")
        self.verify_der(encode_dss_signature(r, s), data)

    def verify_der(self, signature: bytes, data: bytes) -> None:
        """Verify a signature, r and s in DER, over the SHA-384 of `data`; raises as `verify`."""
        try:
            self._key.verify(signature, data, _VERIFICATION)
        except InvalidSignature as error:
            raise SignatureError("P-384: invalid signature", reason="bad_signature") from error


@lru_cache(maxsize=256)
def load_p384_key(spki: bytes) -> P384PublicKey:
    """Return the key of `spki`, a SubjectPublicKeyInfo in DER, from a cache where possible.

    Raises:
        SignatureError: As the constructor of `P384PublicKey`.
    """
    return P384PublicKey(spki)


def p384_verify(spki: bytes, signature: bytes, data: bytes) -> None:
    """Verify a signature over the SHA-384 of `data`.

    Args:
        spki: Public key as SubjectPublicKeyInfo in DER, with an uncompressed point.
        signature: r and s, 48 bytes each, big-endian.
        data: The signed data.

    Raises:
        SignatureError: If the signature is not valid, or signature or key are malformed.
    """
    P384PublicKey(spki).verify(signature, data)


def p384_verify_der(spki: bytes, signature: bytes, data: bytes) -> None:
    """Verify a signature, r and s in DER, over the SHA-384 of `data`.

    `spki` is the public key, a SubjectPublicKeyInfo in DER. Raises as `p384_verify`.
    """
    P384PublicKey(spki).verify_der(signature, data)
