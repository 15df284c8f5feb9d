"""RSASSA-PSS with SHA-384, MGF1 with SHA-384 and a salt of 48 bytes, as in AMD's certificates.

Only simulated authorities have private keys here; keys and signatures are functions of a seed.
"""

from functools import lru_cache
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, PSS
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import load_der_public_key

from attestkit._crypto.hashes import sha384
from attestkit._crypto.rsa_key_pair import RsaKeyPair
from attestkit.errors import SignatureError

_PADDING: Final = PSS(MGF1(SHA384()), salt_length=48)
_LEAST_BITS: Final = 2048


def rsa_pss_verify(spki: bytes, signature: bytes, data: bytes) -> None:
    """Verify a signature over the SHA-384 of `data`.

    Args:
        spki: Public key as SubjectPublicKeyInfo in DER, of at least 2048 bits (AMD's have 4096).
        signature: As long as the modulus.
        data: The signed data.

    Raises:
        SignatureError: If the signature is not valid, or the key is malformed or too short.
    """
    key = _public_key(spki)
    try:
        key.verify(signature, data, _PADDING, SHA384())
    except InvalidSignature as error:
        raise SignatureError("RSA-PSS: invalid signature", reason="bad_signature") from error


@lru_cache(maxsize=32)
def _public_key(spki: bytes) -> RSAPublicKey:
    """Return the key of an authority, of which there are few: loading it takes about 20 us."""
    try:
        key = load_der_public_key(spki)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SignatureError("RSA-PSS: malformed key", reason="invalid_key") from error
    if not isinstance(key, RSAPublicKey):
        raise SignatureError("public key: not RSA", reason="invalid_key")
    if key.key_size < _LEAST_BITS:
        message = f"RSA-PSS: key must have at least {_LEAST_BITS} bits, not {key.key_size}"
        raise SignatureError(message, reason="invalid_key")
    return key


class RsaKey(RsaKeyPair):
    """An RSA-4096 key pair derived from a seed, for simulated authorities."""

    __slots__ = ()

    def __init__(self, seed: bytes) -> None:
        """Derive the key pair from a seed of 32 bytes."""
        super().__init__(seed, 4096)

    def sign(self, data: bytes) -> bytes:
        """Return the deterministic signature over the SHA-384 of `data`, 512 bytes."""
        return self.sign_pss(sha384(data), "sha384")
