"""RSASSA-PKCS1-v1_5 with SHA-256, SHA-384 or SHA-512 (RFC 8017, 8.2), for keys of TPMs."""

from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512, HashAlgorithm
from cryptography.hazmat.primitives.serialization import load_der_public_key

from attestkit.errors import SignatureError

_LEAST_BITS: Final = 2048
_MOST_BITS: Final = 8192  # bounds the time of a verification
_HASHES: Final[dict[str, type[HashAlgorithm]]] = {
    "sha256": SHA256,
    "sha384": SHA384,
    "sha512": SHA512,
}


def rsa_pkcs1_verify(spki: bytes, signature: bytes, data: bytes, hash_name: str) -> None:
    """Verify a signature over the hash of `data`.

    Args:
        spki: Public key as SubjectPublicKeyInfo in DER, of 2048 to 8192 bits.
        signature: As long as the modulus.
        data: The signed data.
        hash_name: sha256, sha384 or sha512.

    Raises:
        SignatureError: If the signature is not valid, or the key is malformed or of another size.
    """
    try:
        key = load_der_public_key(spki)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SignatureError("RSA: malformed key", reason="invalid_key") from error
    if not isinstance(key, RSAPublicKey):
        raise SignatureError("public key: not RSA", reason="invalid_key")
    if not _LEAST_BITS <= key.key_size <= _MOST_BITS:
        message = (
            f"RSA: key must have {_LEAST_BITS} to {_MOST_BITS} bits, not {key.key_size}; use "
            "another key"
        )
        raise SignatureError(message, reason="invalid_key")
    try:
        key.verify(signature, data, PKCS1v15(), _HASHES[hash_name]())
    except InvalidSignature as error:
        raise SignatureError("RSA: invalid signature", reason="bad_signature") from error
