"""RSA-OAEP: the holder of the private key decrypts; other keys and hashes are refused."""

from functools import cache

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestkit._crypto.public_key import rsa_oaep_encrypt
from attestkit.errors import UsageError
from tests.raising import raises

LABEL = b"SECRET\0"


@cache
def private_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    """Return a key, the same for all tests."""
    return rsa.generate_private_key(65537, bits)


def spki(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    """Return the public key."""
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize(
    ("name", "algorithm"), [("sha256", SHA256()), ("sha384", SHA384()), ("sha512", SHA512())]
)
def test_private_key_decrypts(name: str, algorithm: SHA256 | SHA384 | SHA512) -> None:
    """OAEP and MGF1 use the named hash, and the label is part of it."""
    key = private_key()
    encrypted = rsa_oaep_encrypt(spki(key), b"salt", name, LABEL)
    assert encrypted != rsa_oaep_encrypt(spki(key), b"salt", name, LABEL)
    assert key.decrypt(encrypted, OAEP(MGF1(algorithm), algorithm, LABEL)) == b"salt"
    with pytest.raises(ValueError, match=r"(?i)decryption failed"):
        key.decrypt(encrypted, OAEP(MGF1(algorithm), algorithm, b"OTHER\0"))


def test_other_keys_and_hashes_are_usage_errors() -> None:
    """SHA-1, short keys, keys of other kinds and long secrets are refused."""
    key = spki(private_key())
    with raises(UsageError, "unsupported_algorithm"):
        rsa_oaep_encrypt(key, b"salt", "sha1", LABEL)
    with raises(UsageError, "too_large"):
        rsa_oaep_encrypt(key, bytes(200), "sha256", LABEL)
    for other in (
        key[:-1],
        b"",
        spki(private_key(1024)),
        spki(ec.generate_private_key(ec.SECP256R1())),
    ):
        with raises(UsageError, "invalid_key"):
            rsa_oaep_encrypt(other, b"salt", "sha256", LABEL)
