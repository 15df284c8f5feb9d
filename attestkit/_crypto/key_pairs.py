"""Key pairs derived from a seed, for simulated hardware and authorities.

RSA with PKCS #1 v1.5, PSS and OAEP (RFC 8017); ECDSA and ECDH on P-256 and P-384 with a choice of
hash. Keys are reproducible, and so are signatures: RFC 6979, or a salt that is a function of the
message.
"""

import hashlib
import hmac
import math
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, decode_dss_signature

from attestkit._crypto.ecdsa import P256_ORDER
from attestkit._crypto.hashes import hkdf_sha256, sha384
from attestkit._crypto.p384 import P384_ORDER
from attestkit._crypto.public_key import encode_rsa_spki
from attestkit._crypto.zeroize import Secret
from attestkit.errors import SignatureError, UsageError

RSA_EXPONENT: Final = 65537
_SALT: Final = b"attestkit/rsa-key/v1"
_PRIME_BITS: Final = {2048: (342,) * 2 + (341,) * 4, 4096: (342,) * 4 + (341,) * 8}
_ODD_NUMBERS: Final = math.prod(range(3, 1000, 2))
_BASES: Final = (2, 3, 5, 7)  # of the primality test; an error has a probability below 2^-80
# DigestInfo before the digest (RFC 8017, section 9.2, note 1), without the digest's size.
_DIGEST_INFO: Final = {
    "sha1": bytes.fromhex("3021300906052b0e03021a05000414"),
    "sha256": bytes.fromhex("3031300d060960864801650304020105000420"),
    "sha384": bytes.fromhex("3041300d060960864801650304020205000430"),
    "sha512": bytes.fromhex("3051300d060960864801650304020305000440"),
}
_EC_SALT: Final = b"attestkit/ec-key/v1"
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


class RsaKeyPair(Secret):
    """An RSA key pair of 2048 or 4096 bits, for simulated hardware and authorities.

    The modulus is a product of many primes (RFC 8017, section 3): they are found in a hundredth
    of the time of two large primes, and the public key has the usual form. Primes of 103 digits
    are beyond factoring by elliptic curves, whose record has 83. Computations are not
    constant-time, and the key is not wiped.
    """

    __slots__ = ("_modulus", "_parts", "_salt_key", "modulus", "size", "spki")

    def __init__(self, seed: bytes, bits: int) -> None:
        """Derive the key pair from a seed of 32 bytes.

        Raises:
            UsageError: If `bits` is not 2048 or 4096.
        """
        sizes = _PRIME_BITS.get(bits)
        if sizes is None:
            message = f"RSA key: must have 2048 or 4096 bits, not {bits}"
            raise UsageError(message, reason="out_of_range")
        wide = [hkdf_sha256(seed, b"prime/%d" % n, 64, _SALT) for n in range(len(sizes))]
        primes = [_find_prime(*pair) for pair in zip(wide, sizes, strict=True)]
        self._salt_key = hkdf_sha256(seed, b"salt", 32, _SALT)
        self._modulus = math.prod(primes)
        # For each prime: the private exponent, and the coefficient of the remainder theorem.
        self._parts = [
            (prime, pow(RSA_EXPONENT, -1, prime - 1), rest * pow(rest, -1, prime))
            for prime in primes
            for rest in [self._modulus // prime]
        ]
        self.size: int = bits // 8  # bytes of modulus, signature and ciphertext
        self.modulus: bytes = self._modulus.to_bytes(self.size, "big")
        self.spki: bytes = encode_rsa_spki(self.modulus, RSA_EXPONENT)
        """SubjectPublicKeyInfo in DER."""

    def sign_pkcs1(self, digest: bytes, hash_name: str) -> bytes:
        """Return the signature over a digest with PKCS #1 v1.5 padding (RFC 8017, 8.2.1).

        `hash_name` is the hash that made the digest: sha1, sha256, sha384 or sha512. The signature
        is as long as the modulus.
        """
        block = _DIGEST_INFO[hash_name] + digest
        return self._apply(b"\0\1" + b"\xff" * (self.size - len(block) - 3) + b"\0" + block)

    def sign_pss(self, digest: bytes, hash_name: str) -> bytes:
        """Return the signature over a digest with PSS (RFC 8017, 9.1.1).

        `hash_name` is the hash that made the digest, such as sha256; MGF1 uses it too. The salt is
        as long as the digest, and a function of it.
        """
        salt = hmac.digest(self._salt_key, digest, hash_name)
        hashed = hashlib.new(hash_name, bytes(8) + digest + salt).digest()
        block = (b"\1" + salt).rjust(self.size - len(hashed) - 1, b"\0")
        masked = bytearray(_mask(block, hashed, hash_name))
        masked[0] &= 0x7F  # the encoded message has one bit less than the modulus
        return self._apply(bytes(masked) + hashed + b"\xbc")

    def decrypt_oaep(self, ciphertext: bytes, hash_name: str, label: bytes) -> bytes:
        """Return the plaintext of a ciphertext with OAEP (RFC 8017, 7.1.2).

        OAEP and MGF1 use the hash `hash_name`.

        Raises:
            SignatureError: If the size is wrong, or the key, hash or label is not the sender's.
        """
        width = hashlib.new(hash_name).digest_size
        if len(ciphertext) != self.size or int.from_bytes(ciphertext, "big") >= self._modulus:
            message = f"RSA-OAEP: ciphertext must be {self.size} bytes, and below the modulus"
            raise SignatureError(message, reason="bad_signature")
        block = self._apply(ciphertext)
        masked_seed, masked = block[1 : 1 + width], block[1 + width :]
        content = _mask(masked, _mask(masked_seed, masked, hash_name), hash_name)
        padding, one, plaintext = content[width:].partition(b"\1")
        expected = hashlib.new(hash_name, label).digest()
        if block[0] or any(padding) or not one or content[:width] != expected:
            message = "RSA-OAEP: decryption failed: wrong key, or the ciphertext was changed"
            raise SignatureError(message, reason="bad_signature")
        return plaintext

    def _apply(self, block: bytes) -> bytes:
        """Apply the private key to a block as long as the modulus (RSASP1: RFC 8017, 5.2.1)."""
        number = int.from_bytes(block, "big")
        terms = (pow(number, exponent, prime) * part for prime, exponent, part in self._parts)
        return (sum(terms) % self._modulus).to_bytes(self.size, "big")

    def __repr__(self) -> str:
        return f"{type(self).__name__}(spki={self.spki.hex()})"


class RsaKey(RsaKeyPair):
    """An RSA-4096 key pair derived from a seed, for simulated authorities."""

    __slots__ = ()

    def __init__(self, seed: bytes) -> None:
        """Derive the key pair from a seed of 32 bytes."""
        super().__init__(seed, 4096)

    def sign(self, data: bytes) -> bytes:
        """Return the deterministic signature over the SHA-384 of `data`, 512 bytes."""
        return self.sign_pss(sha384(data), "sha384")


class EcKeyPair(Secret):
    """A key pair on the curve "p256" or "p384", derived from a seed of 32 bytes."""

    __slots__ = ("_private", "curve", "size", "x", "y")

    def __init__(self, seed: bytes, curve: str) -> None:
        kind, order, size = _CURVES[curve]
        # 16 bytes more than the order has, so that the bias is negligible (FIPS 186-5, A.2.1).
        wide = int.from_bytes(hkdf_sha256(seed, curve.encode(), size + 16, _EC_SALT), "big")
        self._private = ec.derive_private_key(wide % (order - 1) + 1, kind())
        point = self._private.public_key().public_numbers()
        self.curve: str = curve
        self.size: int = size  # bytes of a coordinate
        self.x: bytes = point.x.to_bytes(size, "big")
        self.y: bytes = point.y.to_bytes(size, "big")

    def sign(self, digest: bytes, hash_name: str) -> tuple[bytes, bytes]:
        """Return r and s of the signature over a digest, big-endian, each as long as a coordinate.

        `hash_name` is the hash that made the digest: sha1, sha256, sha384 or sha512.
        """
        algorithm = ec.ECDSA(Prehashed(_HASHES[hash_name]()), deterministic_signing=True)
        r, s = decode_dss_signature(self._private.sign(digest, algorithm))
        return r.to_bytes(self.size, "big"), s.to_bytes(self.size, "big")

    def exchange(self, x: bytes, y: bytes) -> bytes:
        """Return the x coordinate of the point shared with a public key, as long as a coordinate.

        `x` and `y` are the coordinates of that public key on the same curve, big-endian.

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


def _mask(block: bytes, seed: bytes, hash_name: str) -> bytes:
    """Return `block` XORed with MGF1 of `seed` (RFC 8017, B.2.1), whose hash is `hash_name`."""
    width = hashlib.new(hash_name).digest_size
    rounds = range(-(-len(block) // width))
    mask = b"".join(hashlib.new(hash_name, seed + n.to_bytes(4, "big")).digest() for n in rounds)
    return bytes(a ^ b for a, b in zip(block, mask[: len(block)], strict=True))


def _find_prime(wide: bytes, bits: int) -> int:
    """Return a prime of `bits` bits, the highest suitable one not above a number made of `wide`.

    Its upper five bits are set, so that the product of all primes has the intended size. It is 3
    mod 4, which makes the primality test simple.

    `wide` are derived random bytes, over 128 bits more than `bits`.
    """
    # `wide` has over 128 bits more than needed, so the bias is negligible.
    number = (1 << bits) - 1 - 4 * (int.from_bytes(wide, "big") % (1 << (bits - 7)))
    while not _is_prime(number) or number % RSA_EXPONENT == 1:
        number -= 4
    return number


def _is_prime(number: int) -> bool:
    """Return whether a number that is 3 mod 4 is a prime (Miller and Rabin's test)."""
    if math.gcd(number, _ODD_NUMBERS) != 1:
        return False
    return all(pow(base, number >> 1, number) in (1, number - 1) for base in _BASES)
