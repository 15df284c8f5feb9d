"""RSA public keys in DER."""

from functools import lru_cache
from typing import Final

from attestkit._crypto.der import BIT_STRING, SEQUENCE, encode_element, encode_integer

_ALGORITHM: Final = bytes.fromhex("300d06092a864886f70d0101010500")  # rsaEncryption, RFC 8017, A.1


@lru_cache(maxsize=64)
def encode_rsa_spki(modulus: bytes, exponent: int) -> bytes:
    """Return a public key as SubjectPublicKeyInfo; the modulus is big-endian."""
    signed = encode_integer(int.from_bytes(modulus, "big")) + encode_integer(exponent)
    point = encode_element(BIT_STRING, b"\0" + encode_element(SEQUENCE, signed))
    return encode_element(SEQUENCE, _ALGORITHM + point)
