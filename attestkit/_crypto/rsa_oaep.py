"""Encryption by RSAES-OAEP (RFC 8017, 7.1), for secrets that only a TPM can decrypt."""

from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512, HashAlgorithm
from cryptography.hazmat.primitives.serialization import load_der_public_key

from attestkit.errors import UsageError

_LEAST_BITS: Final = 2048
_HASHES: Final[dict[str, type[HashAlgorithm]]] = {
    "sha256": SHA256,
    "sha384": SHA384,
    "sha512": SHA512,
}


def rsa_oaep_encrypt(spki: bytes, secret: bytes, hash_name: str, label: bytes) -> bytes:
    """Return `secret` encrypted to a public key; OAEP and MGF1 use the same hash.

    Args:
        spki: Public key as SubjectPublicKeyInfo in DER, of at least 2048 bits.
        secret: At most the size of the modulus, less twice that of a digest and 2 bytes.
        hash_name: sha256, sha384 or sha512.
        label: The label, which the TPM knows.

    Raises:
        UsageError: If the key is not such an RSA key, the hash is unknown or the secret too long.
    """
    if hash_name not in _HASHES:
        message = f"RSA-OAEP: hash must be one of {', '.join(_HASHES)}, not {hash_name!r}"
        raise UsageError(message, reason="unsupported_algorithm")
    try:
        key = load_der_public_key(spki)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UsageError("RSA-OAEP: malformed key", reason="invalid_key") from error
    if not isinstance(key, RSAPublicKey) or key.key_size < _LEAST_BITS:
        message = f"RSA-OAEP: must be an RSA key of at least {_LEAST_BITS} bits"
        raise UsageError(message, reason="invalid_key")
    algorithm = _HASHES[hash_name]()
    try:
        return key.encrypt(secret, OAEP(MGF1(algorithm), algorithm, label))
    except ValueError as error:
        raise UsageError("RSA-OAEP: secret too long for the key", reason="too_large") from error
