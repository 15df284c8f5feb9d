"""Ed25519 and X25519 give the published values, and accept what the guest agent accepts."""

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from attestkit._crypto import ed25519
from attestkit._crypto.ed25519 import Ed25519Key
from attestkit._crypto.hashes import sha256
from attestkit.errors import UsageError
from tests.raising import raises

ORDER = 2**252 + 27742317777372353535851937790883648493
FIELD = 2**255 - 19
SEED = bytes(range(32))
# Points of small order: X25519 with them is always zero (RFC 7748, 6.1).
SMALL_ORDER_U = [bytes(32), b"\1" + bytes(31)]


def test_ed25519_matches_rfc8032() -> None:
    """Key and signature match those of RFC 8032, 7.1, test 3, and verify."""
    secret = bytes.fromhex("c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7")
    public = bytes.fromhex("fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025")
    signature = bytes.fromhex(
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
        "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"
    )
    assert ed25519.ed25519_public_key(secret) == public
    assert Ed25519Key(secret).sign(b"\xaf\x82") == signature
    assert ed25519.ed25519_verify(public, signature, b"\xaf\x82")
    assert not ed25519.ed25519_verify(public, signature, b"\xaf\x83")


def test_ed25519_verify_of_malformed_input_fails() -> None:
    """Sizes are checked, and a key must be a point, whatever the signature."""
    key = Ed25519Key(SEED)
    signature = key.sign(b"")
    for size in (0, 31, 33):
        with raises(UsageError, "invalid_key", text="invalid public key"):
            ed25519.ed25519_verify(bytes(size), signature, b"")
    for size in (0, 63, 65):
        with raises(UsageError, "wrong_size"):
            ed25519.ed25519_verify(key.public_key, bytes(size), b"")
    no_point = (2).to_bytes(32, "little")
    with raises(UsageError, "invalid_key", text="invalid public key"):
        ed25519.ed25519_verify(no_point, signature, b"")


def test_ed25519_verify_strict_checks_the_size() -> None:
    """Bytes of the data cannot complete a signature, nor bytes of the memory a key."""
    key = Ed25519Key(SEED)
    signature = key.sign(b"data")
    assert ed25519.ed25519_verify_strict(key.public_key, signature, b"data")
    for size in (0, 63):
        rest = signature[size:] + b"data"
        assert not ed25519.ed25519_verify_strict(key.public_key, signature[:size], rest)
    assert not ed25519.ed25519_verify_strict(key.public_key, signature + b"d", b"ata")
    for other in (b"", key.public_key[:31], key.public_key + b"\0"):
        assert not ed25519.ed25519_verify_strict(other, signature, b"data")
    short = Ed25519Key(sha256(b"124"))  # its public key ends in 0, as a copy of 31 bytes does
    assert short.public_key[31] == 0
    assert not ed25519.ed25519_verify_strict(short.public_key[:31], short.sign(b"data"), b"data")


def test_ed25519_verify_rejects_keys_off_the_curve() -> None:
    """Of y from 0 to 200, exactly those without x on the curve are rejected."""
    d = -121665 * pow(121666, FIELD - 2, FIELD) % FIELD
    signature = Ed25519Key(SEED).sign(b"")
    rejected = 0
    for y in range(200):
        numerator, denominator = y * y - 1, d * y * y + 1
        # u/v is a square exactly if u*v is, and v is never 0.
        square = pow(numerator * denominator % FIELD, (FIELD - 1) // 2, FIELD) in {0, 1}
        try:
            ed25519.ed25519_verify(y.to_bytes(32, "little"), signature, b"")
        except UsageError:
            rejected += 1
            assert not square
        else:
            assert square
    assert rejected > 50


def test_ed25519_verify_accepts_small_order_keys() -> None:
    """A key of small order is accepted as by the agent; libsodium would reject it.

    With the neutral element as key and as R, s = 0 solves the equation for every message.
    """
    neutral = b"\1" + bytes(31)
    assert ed25519.ed25519_verify(neutral, neutral + bytes(32), b"anything")


def test_ed25519_verify_of_non_canonical_s_is_false() -> None:
    """S plus the group order is rejected, because it would give a second valid signature."""
    key = Ed25519Key(SEED)
    signature = key.sign(b"x")
    s = int.from_bytes(signature[32:], "little") + ORDER
    assert not ed25519.ed25519_verify(
        key.public_key, signature[:32] + s.to_bytes(32, "little"), b"x"
    )


def test_x25519_matches_rfc7748() -> None:
    """A product of RFC 7748, 5.2, and a public key of 6.1."""
    scalar = bytes.fromhex("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4")
    point = bytes.fromhex("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c")
    assert ed25519.x25519(scalar, point).hex() == (
        "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552"
    )
    bob = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    assert ed25519.x25519_public_key(bob).hex() == (
        "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    )


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_x25519_agrees_with_openssl(secret: bytes, other: bytes) -> None:
    """Keys and shared secrets match those of OpenSSL."""
    openssl_key = X25519PrivateKey.from_private_bytes(secret)
    public = ed25519.x25519_public_key(other)
    assert ed25519.x25519_public_key(secret) == openssl_key.public_key().public_bytes_raw()
    assert ed25519.x25519(secret, public) == openssl_key.exchange(
        X25519PublicKey.from_public_bytes(public)
    )


@pytest.mark.parametrize("public", SMALL_ORDER_U)
def test_x25519_with_zero_shared_secret_fails(public: bytes) -> None:
    """A shared secret of zeros is an error with the agent's text."""
    with raises(UsageError, "invalid_key", text="invalid X25519 shared secret"):
        ed25519.x25519(SEED, public)


def test_ed25519_and_x25519_of_wrong_size_fail() -> None:
    """Wrong sizes are rejected before the library is called."""
    for size in (0, 31, 33, 64):
        for call in (
            lambda data: ed25519.x25519(data, SEED),
            lambda data: ed25519.x25519(SEED, data),
            ed25519.x25519_public_key,
            ed25519.ed25519_public_key,
            Ed25519Key,
        ):
            with raises(UsageError, "wrong_size"):
                call(b"\1" * size)
