"""RSASSA-PSS with SHA-384, MGF1 with SHA-384 and a salt of 48 bytes, as in AMD's certificates.

Only simulated authorities have private keys here; keys and signatures are functions of a seed.
"""

import hmac
import math
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, PSS
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import load_der_public_key

from attestkit._crypto.der import BIT_STRING, INTEGER, SEQUENCE, encode_element
from attestkit._crypto.hashes import hkdf_sha256, sha384
from attestkit._crypto.zeroize import Secret
from attestkit.errors import SignatureError

_PADDING: Final = PSS(MGF1(SHA384()), salt_length=48)
_LEAST_BITS: Final = 2048
_SALT: Final = b"attestkit/rsa-key/v1"
_RSA: Final = bytes.fromhex("300d06092a864886f70d0101010500")  # an AlgorithmIdentifier
_SIZE: Final = 512  # bytes of modulus and signature
_PRIME_BITS: Final = (342,) * 4 + (341,) * 8  # 4096 together
_EXPONENT: Final = 65537
_ODD_NUMBERS: Final = math.prod(range(3, 1000, 2))
_BASES: Final = (2, 3, 5, 7)  # of the primality test; an error has a probability below 2^-80


def rsa_pss_verify(spki: bytes, signature: bytes, data: bytes) -> None:
    """Verify a signature over the SHA-384 of `data`.

    Args:
        spki: Public key as SubjectPublicKeyInfo in DER, of at least 2048 bits (AMD's have 4096).
        signature: As long as the modulus.
        data: The signed data.

    Raises:
        SignatureError: If the signature is not valid, or the key is malformed or too short.
    """
    try:
        key = load_der_public_key(spki)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SignatureError("RSA-PSS: malformed key", reason="invalid_key") from error
    if not isinstance(key, RSAPublicKey):
        raise SignatureError("public key: not RSA", reason="invalid_key")
    if key.key_size < _LEAST_BITS:
        message = f"RSA-PSS: key must have at least {_LEAST_BITS} bits, not {key.key_size}"
        raise SignatureError(message, reason="invalid_key")
    try:
        key.verify(signature, data, _PADDING, SHA384())
    except InvalidSignature as error:
        raise SignatureError("RSA-PSS: invalid signature", reason="bad_signature") from error


class RsaKey(Secret):
    """An RSA-4096 key pair derived from a seed, for simulated authorities.

    The modulus is a product of twelve primes (RFC 8017, section 3): they are found in a hundredth
    of the time of two primes of 2048 bits, and the public key has the usual form. Primes of 103
    digits are beyond factoring by elliptic curves, whose record has 83. Computations are not
    constant-time, and the key is not wiped.
    """

    __slots__ = ("_modulus", "_parts", "_salt_key", "spki")

    def __init__(self, seed: bytes) -> None:
        """Derive the key pair from a seed of 32 bytes."""
        wide = [hkdf_sha256(seed, b"prime/%d" % n, 64, _SALT) for n in range(len(_PRIME_BITS))]
        primes = [_find_prime(*pair) for pair in zip(wide, _PRIME_BITS, strict=True)]
        self._salt_key = hkdf_sha256(seed, b"salt", 32, _SALT)
        self._modulus = math.prod(primes)
        # For each prime: the private exponent, and the coefficient of the remainder theorem.
        self._parts = [
            (prime, pow(_EXPONENT, -1, prime - 1), rest * pow(rest, -1, prime))
            for prime in primes
            for rest in [self._modulus // prime]
        ]
        numbers = b"".join(encode_element(INTEGER, _signed(n)) for n in (self._modulus, _EXPONENT))
        point = encode_element(BIT_STRING, b"\0" + encode_element(SEQUENCE, numbers))
        self.spki = encode_element(SEQUENCE, _RSA + point)  # SubjectPublicKeyInfo in DER

    def sign(self, data: bytes) -> bytes:
        """Return the deterministic signature over the SHA-384 of `data`, 512 bytes."""
        encoded = int.from_bytes(self._encode(sha384(data)), "big")
        terms = (pow(encoded, exponent, prime) * part for prime, exponent, part in self._parts)
        return (sum(terms) % self._modulus).to_bytes(_SIZE, "big")

    def _encode(self, digest: bytes) -> bytes:
        """Return EMSA-PSS-ENCODE (RFC 8017, 9.1.1) for a modulus of 4096 bits."""
        salt = hmac.digest(self._salt_key, digest, "sha384")
        hashed = sha384(bytes(8) + digest + salt)
        block = (b"\1" + salt).rjust(_SIZE - len(hashed) - 1, b"\0")
        rounds = range(-(-len(block) // len(hashed)))
        mask = b"".join(sha384(hashed + n.to_bytes(4, "big")) for n in rounds)[: len(block)]
        masked = bytearray(a ^ b for a, b in zip(block, mask, strict=True))
        masked[0] &= 0x7F  # the encoded message has one bit less than the modulus
        return bytes(masked) + hashed + b"\xbc"

    def __repr__(self) -> str:
        return f"RsaKey(spki={self.spki.hex()})"


def _find_prime(wide: bytes, bits: int) -> int:
    """Return the first suitable prime from a number on that depends on `wide`, downwards.

    Its upper five bits are set, so that the product of all primes has 4096 bits. p = 3 mod 4 makes
    the primality test simple.
    """
    # `wide` has over 128 bits more than needed, so the bias is negligible.
    number = (1 << bits) - 1 - 4 * (int.from_bytes(wide, "big") % (1 << (bits - 7)))
    while not _is_prime(number) or number % _EXPONENT == 1:
        number -= 4
    return number


def _is_prime(number: int) -> bool:
    """Return whether a number that is 3 mod 4 is a prime (Miller and Rabin's test)."""
    if math.gcd(number, _ODD_NUMBERS) != 1:
        return False
    return all(pow(base, number >> 1, number) in (1, number - 1) for base in _BASES)


def _signed(value: int) -> bytes:
    return value.to_bytes(value.bit_length() // 8 + 1, "big")
