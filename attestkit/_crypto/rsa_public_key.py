"""RSA public keys in DER."""

from functools import lru_cache
from typing import Final

from attestkit._crypto.der import BIT_STRING, INTEGER, SEQUENCE, encode_element

_ALGORITHM: Final = bytes.fromhex("300d06092a864886f70d0101010500")  # rsaEncryption, RFC 8017, A.1


@lru_cache(maxsize=64)
def encode_rsa_spki(modulus: bytes, exponent: int) -> bytes:
    """Return a public key as SubjectPublicKeyInfo; the modulus is big-endian."""
    numbers = (int.from_bytes(modulus, "big"), exponent)
    signed = b"".join(
        encode_element(INTEGER, n.to_bytes(n.bit_length() // 8 + 1, "big")) for n in numbers
    )
    point = encode_element(BIT_STRING, b"\0" + encode_element(SEQUENCE, signed))
    return encode_element(SEQUENCE, _ALGORITHM + point)
