"""ECDH on secp256k1 against OpenSSL, and Ethereum's addresses."""

from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from attestkit._crypto.ecdsa import K256_ORDER, k256_public_key
from attestkit._crypto.k256_agreement import (
    ethereum_address,
    k256_shared_secret,
    require_k256_point,
)
from attestkit.errors import UsageError
from tests.raising import raises

scalars = st.integers(1, K256_ORDER - 1)
ONE: Final = (1).to_bytes(32, "big")


def public_point(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a public key in uncompressed SEC1."""
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


@given(scalars, scalars)
def test_shared_secret_is_that_of_openssl(first: int, second: int) -> None:
    """The secret is the x coordinate of the shared point."""
    mine = ec.derive_private_key(first, ec.SECP256K1())
    theirs = ec.derive_private_key(second, ec.SECP256K1())
    expected = mine.exchange(ec.ECDH(), theirs.public_key())
    assert k256_shared_secret(first.to_bytes(32, "big"), public_point(theirs)) == expected


def test_address_of_a_known_key() -> None:
    """The address of the key 1 is well known; every form of the key has it."""
    expected = bytes.fromhex("7e5f4552091a69125d5dfcb7b8c2659029395bdf")
    for compressed in (True, False):
        assert ethereum_address(k256_public_key(ONE, compressed=compressed)) == expected
    with raises(UsageError, "invalid_key"):
        ethereum_address(bytes(33))


def test_invalid_keys_are_refused() -> None:
    """Neither other forms of a point, nor points off the curve, nor a scalar of zero."""
    point = k256_public_key(ONE, compressed=False)
    require_k256_point(point)
    for wrong in (point[:-1], b"\6" + point[1:], point[:-1] + b"\0", k256_public_key(ONE), b""):
        with raises(UsageError, "invalid_key"):
            require_k256_point(wrong)
        with raises(UsageError, "invalid_key"):
            k256_shared_secret(ONE, wrong)
    with raises(UsageError, "invalid_key"):
        k256_shared_secret(bytes(32), point)
    with raises(UsageError, "wrong_size"):
        k256_shared_secret(ONE[1:], point)
