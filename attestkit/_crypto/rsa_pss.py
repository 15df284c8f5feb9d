"""RSASSA-PSS with SHA-384, MGF1 with SHA-384 and a salt of 48 bytes, as AMD signs certificates."""

from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, PSS
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import load_der_public_key

from attestkit.errors import SignatureError

__all__ = ["rsa_pss_verify"]

_PADDING: Final = PSS(MGF1(SHA384()), salt_length=48)
_LEAST_BITS: Final = 2048


def rsa_pss_verify(spki: bytes, signature: bytes, data: bytes) -> None:
    """Check a signature over the SHA-384 of `data`.

    Args:
        spki: the key as SubjectPublicKeyInfo in DER; AMD's have 4096 bits, 2048 are the least.
        signature: as long as the modulus.
        data: what was signed.

    Raises:
        SignatureError: the signature does not hold, or the key is malformed or too short.
    """
    try:
        key = load_der_public_key(spki)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SignatureError("the RSA key is malformed") from error
    if not isinstance(key, RSAPublicKey):
        raise SignatureError("the key is not RSA")
    if key.key_size < _LEAST_BITS:
        raise SignatureError(f"the RSA key has {key.key_size} bits, under {_LEAST_BITS}")
    try:
        key.verify(signature, data, _PADDING, SHA384())
    except InvalidSignature as error:
        raise SignatureError("the RSA-PSS signature does not hold") from error
