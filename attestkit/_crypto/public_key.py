"""Public keys in SubjectPublicKeyInfo: those of TPMs (RSA, P-256, P-384), and AMD's RSA-PSS.

TPMs sign with any of the schemes and hashes here; only a TPM decrypts RSAES-OAEP (RFC 8017, 7.1).
AMD's certificates have RSASSA-PSS with SHA-384, MGF1 with SHA-384 and a salt of 48 bytes.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Final, Literal, cast

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP, PSS, PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from attestkit._crypto.der import BIT_STRING, SEQUENCE, encode_element, encode_integer
from attestkit.errors import SignatureError, UsageError

SIGNATURE_HASHES: Final[Mapping[str, type[SHA256 | SHA384 | SHA512]]] = {
    "sha256": SHA256,
    "sha384": SHA384,
    "sha512": SHA512,
}
"""Hashes that signatures may use."""

_LEAST_BITS: Final = 2048
_MOST_BITS: Final = 8192  # verification time grows with the square
_LEAST_EXPONENT, _MOST_EXPONENT = 65537, 1 << 32  # a TPM's exponent has 4 bytes
_MAX_SIZE: Final = 4096  # bytes of a SubjectPublicKeyInfo

_RSA_ALGORITHM: Final = bytes.fromhex("300d06092a864886f70d0101010500")  # RFC 8017, A.1
_AMD_PADDING: Final = PSS(MGF1(SHA384()), salt_length=48)

KeyKind = Literal["rsa", "p256", "p384"]

_ALGORITHMS: Final[Mapping[KeyKind, frozenset[str]]] = {
    "rsa": frozenset({"rsassa", "rsapss"}),
    "p256": frozenset({"ecdsa"}),
    "p384": frozenset({"ecdsa"}),
}


class PublicVerificationKey:
    """An RSA, P-256 or P-384 public key that verifies signatures."""

    __slots__ = ("_key", "kind", "spki")

    def __init__(self, spki: bytes) -> None:
        """Read a key.

        Args:
            spki: SubjectPublicKeyInfo in DER. RSA keys have 2048 to 8192 bits and an odd exponent
                from 65537 to 2^32 - 1.

        Raises:
            SignatureError: If it is malformed, or a key of another kind, size or exponent
                (`invalid_key`).
        """
        self._key: RSAPublicKey | ec.EllipticCurvePublicKey = _load(spki)
        self.kind: KeyKind = _kind(self._key)
        # The canonical encoding, so that equal keys have equal bytes.
        self.spki: bytes = self._key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def verify(self, algorithm: str, hash_name: str, signature: bytes, data: bytes) -> None:
        """Verify a signature.

        Args:
            algorithm: `rsassa`, `rsapss` (with a salt of any length) or `ecdsa`.
            hash_name: sha256, sha384 or sha512.
            signature: Of ECDSA, r and s in DER; of RSA, as long as the modulus.
            data: The signed data.

        Raises:
            SignatureError: If the signature is not valid (`bad_signature`), or algorithm or hash
                are not of this key (`document_algorithm`).
        """
        chosen = SIGNATURE_HASHES.get(hash_name)
        if chosen is None or algorithm not in _ALGORITHMS[self.kind]:
            message = f"signature: {algorithm} with {hash_name} does not fit a key of {self.kind}"
            raise SignatureError(message, reason="document_algorithm")
        try:
            self._verify(algorithm, chosen(), signature, data)
        except InvalidSignature as error:
            message = f"{algorithm} with {hash_name}: invalid signature"
            raise SignatureError(message, reason="bad_signature") from error

    def _verify(
        self, algorithm: str, chosen: SHA256 | SHA384 | SHA512, signature: bytes, data: bytes
    ) -> None:
        key = self._key
        if algorithm == "ecdsa":
            cast("ec.EllipticCurvePublicKey", key).verify(signature, data, ec.ECDSA(chosen))
            return
        padding = PKCS1v15() if algorithm == "rsassa" else PSS(MGF1(chosen), PSS.AUTO)
        cast("RSAPublicKey", key).verify(signature, data, padding, chosen)

    def __repr__(self) -> str:
        return f"PublicVerificationKey(kind={self.kind!r}, spki={self.spki.hex()})"


@lru_cache(maxsize=256)
def load_verification_key(spki: bytes) -> PublicVerificationKey:
    """Return the key of `spki`, a SubjectPublicKeyInfo in DER, from a cache where possible.

    Raises:
        SignatureError: As the constructor of `PublicVerificationKey`.
    """
    return PublicVerificationKey(spki)


@lru_cache(maxsize=64)
def encode_rsa_spki(modulus: bytes, exponent: int) -> bytes:
    """Return an RSA public key as SubjectPublicKeyInfo in DER.

    `modulus` is big-endian, and `exponent` an integer such as 65537.
    """
    signed = encode_integer(int.from_bytes(modulus, "big")) + encode_integer(exponent)
    point = encode_element(BIT_STRING, b"\0" + encode_element(SEQUENCE, signed))
    return encode_element(SEQUENCE, _RSA_ALGORITHM + point)


def rsa_oaep_encrypt(spki: bytes, secret: bytes, hash_name: str, label: bytes) -> bytes:
    """Return `secret` encrypted to a public key; OAEP and MGF1 use the same hash.

    Args:
        spki: Public key as SubjectPublicKeyInfo in DER, of at least 2048 bits.
        secret: At most the modulus' size, less two digests and 2 bytes: 190 for 2048 bits, SHA-256.
        hash_name: sha256, sha384 or sha512.
        label: The label, which the TPM knows.

    Raises:
        UsageError: If the key is not such an RSA key, the hash is unknown or the secret too long.
    """
    if hash_name not in SIGNATURE_HASHES:
        message = f"RSA-OAEP: hash must be one of {', '.join(SIGNATURE_HASHES)}, not {hash_name!r}"
        raise UsageError(message, reason="unsupported_algorithm")
    key = _parse(spki)
    if not isinstance(key, RSAPublicKey) or key.key_size < _LEAST_BITS:
        message = f"RSA-OAEP: must be an RSA key of at least {_LEAST_BITS} bits"
        raise UsageError(message, reason="invalid_key")
    algorithm = SIGNATURE_HASHES[hash_name]()
    try:
        return key.encrypt(secret, OAEP(MGF1(algorithm), algorithm, label))
    except ValueError as error:
        message = f"RSA-OAEP: {len(secret)} bytes are too long for a key of {key.key_size} bits"
        raise UsageError(message, reason="too_large") from error


def rsa_pss_verify(spki: bytes, signature: bytes, data: bytes) -> None:
    """Verify an RSASSA-PSS signature (SHA-384, a salt of 48 bytes) over `data`.

    Args:
        spki: Public key as SubjectPublicKeyInfo in DER, of at least 2048 bits (AMD's have 4096).
        signature: As long as the modulus.
        data: The signed data.

    Raises:
        SignatureError: If the signature is not valid, or the key is malformed or too short.
    """
    key = _load_authority(spki)
    try:
        key.verify(signature, data, _AMD_PADDING, SHA384())
    except InvalidSignature as error:
        raise SignatureError("RSA-PSS: invalid signature", reason="bad_signature") from error


@lru_cache(maxsize=32)
def _load_authority(spki: bytes) -> RSAPublicKey:
    """Return the RSA key in `spki`, that of a CA; cached, because loading takes about 20 us."""
    key = _parse(spki)
    if not isinstance(key, RSAPublicKey) or key.key_size < _LEAST_BITS:
        message = f"RSA-PSS: must be an RSA key of at least {_LEAST_BITS} bits"
        raise SignatureError(message, reason="invalid_key")
    return key


def _parse(spki: bytes) -> object:
    """Return `spki` (SubjectPublicKeyInfo in DER) as `cryptography`'s key; None if malformed."""
    try:
        return load_der_public_key(spki)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None


def _load(spki: bytes) -> RSAPublicKey | ec.EllipticCurvePublicKey:
    key = _parse(spki) if len(spki) <= _MAX_SIZE else None
    if isinstance(key, RSAPublicKey):
        exponent = key.public_numbers().e
        if not _LEAST_BITS <= key.key_size <= _MOST_BITS:
            message = f"RSA key: {key.key_size} bits, must have {_LEAST_BITS} to {_MOST_BITS}"
            raise SignatureError(message, reason="invalid_key")
        if not _LEAST_EXPONENT <= exponent < _MOST_EXPONENT or exponent % 2 == 0:
            message = f"RSA key: exponent must be odd, from {_LEAST_EXPONENT} to 2^32 - 1"
            raise SignatureError(message, reason="invalid_key")
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(
        key.curve, (ec.SECP256R1, ec.SECP384R1)
    ):
        return key
    raise SignatureError("public key: must be RSA, P-256 or P-384 in DER", reason="invalid_key")


def _kind(key: RSAPublicKey | ec.EllipticCurvePublicKey) -> KeyKind:
    if isinstance(key, RSAPublicKey):
        return "rsa"
    return "p256" if isinstance(key.curve, ec.SECP256R1) else "p384"
