"""Derived ECC keys: signatures and exchanges agree with OpenSSL, with every hash of a TPM."""

import hashlib

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from attestkit._crypto.key_pairs import EcKeyPair
from attestkit.errors import SignatureError
from tests.raising import raises

CURVES: dict[str, ec.EllipticCurve] = {"p256": ec.SECP256R1(), "p384": ec.SECP384R1()}
ALGORITHMS: dict[str, type[hashes.HashAlgorithm]] = {
    "sha1": hashes.SHA1,
    "sha256": hashes.SHA256,
    "sha384": hashes.SHA384,
    "sha512": hashes.SHA512,
}
DATA = b"signed data"

every_curve = pytest.mark.parametrize("curve", CURVES)


@every_curve
def test_key_is_a_function_of_its_seed(curve: str) -> None:
    """A seed gives the same key; coordinates are as long as the curve's."""
    pair = EcKeyPair(b"\1" * 32, curve)
    assert (EcKeyPair(b"\1" * 32, curve).x, EcKeyPair(b"\2" * 32, curve).x != pair.x) == (
        pair.x,
        True,
    )
    assert len(pair.x) == len(pair.y) == CURVES[curve].key_size // 8
    assert repr(pair) == f"EcKeyPair(curve='{curve}', x={pair.x.hex()})"


@every_curve
@pytest.mark.parametrize("name", ALGORITHMS)
def test_signature_is_valid(curve: str, name: str) -> None:
    """Signatures are valid with each hash, also one longer than the order, and reproducible."""
    pair = EcKeyPair(b"\1" * 32, curve)
    r, s = pair.sign(hashlib.new(name, DATA).digest(), name)
    assert len(r) == len(s) == pair.size
    key = ec.EllipticCurvePublicKey.from_encoded_point(CURVES[curve], b"\4" + pair.x + pair.y)
    der = encode_dss_signature(int.from_bytes(r, "big"), int.from_bytes(s, "big"))
    key.verify(der, DATA, ec.ECDSA(ALGORITHMS[name]()))
    assert pair.sign(hashlib.new(name, DATA).digest(), name) == (r, s)


@every_curve
def test_exchange_is_symmetric(curve: str) -> None:
    """Both sides get the same point; coordinates may lack leading zeros."""
    one, other = EcKeyPair(b"\1" * 32, curve), EcKeyPair(b"\2" * 32, curve)
    shared = one.exchange(other.x, other.y)
    assert shared == other.exchange(one.x.lstrip(b"\0"), one.y) != one.x
    with raises(SignatureError, "invalid_key"):
        one.exchange(other.x, other.x)
