"""Keys of signed verdicts: read from what others write, and never shown."""

import contextlib
import json
import pickle
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from attestkit.errors import FormatError, SignatureError, UsageError
from attestkit.verifier.ear.result_token import EarKey, EarPublicKey
from tests.untyped import untyped
from tests.verifier.ear.ears import ED25519, KEYS, P256

SEED = bytes(range(32))
PEM = ed25519.Ed25519PrivateKey.from_private_bytes(SEED).private_bytes(
    Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
)


def test_private_keys_of_every_form() -> None:
    """Raw, PKCS#8 and SEC1, as OpenSSL writes them."""
    assert EarKey.from_bytes(SEED).public == EarKey.from_bytes(PEM).public == ED25519.public
    assert EarKey.from_bytes(b"\n" + PEM.replace(b"\n", b"\r\n")).public == ED25519.public
    key = ec.derive_private_key(int.from_bytes(bytes(range(1, 33)), "big"), ec.SECP256R1())
    for form in (PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL):
        text = key.private_bytes(Encoding.PEM, form, NoEncryption())
        assert EarKey.from_bytes(text).public == P256.public


def test_other_private_keys() -> None:
    """Another kind, encrypted, cut or nothing: refused, without a word of it."""
    private = ed25519.Ed25519PrivateKey.from_private_bytes(SEED)
    locked = private.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    other = rsa.generate_private_key(65537, 2048).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    p384 = ec.generate_private_key(ec.SECP384R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    cut = PEM.replace(b"\n-----END", b"AAAA\n-----END")
    for data in (locked, other, p384, cut, b"", bytes(31), bytes(33), SEED.hex().encode()):
        with pytest.raises(FormatError) as caught:
            EarKey.from_bytes(data)
        assert len(str(caught.value)) < 100
    with pytest.raises(FormatError, match="65536"):
        EarKey.from_bytes(bytes(65_537))


@given(st.integers(0, len(PEM) - 1), st.binary(max_size=3))
def test_any_pem(at: int, put: bytes) -> None:
    """A damaged file is a key or a FormatError."""
    for data in (PEM[:at], PEM[:at] + put + PEM[at + 1 :]):
        with contextlib.suppress(FormatError):
            EarKey.from_bytes(data)


def test_secrets_stay_secret() -> None:
    """Neither its text nor a pickle has the private half."""
    for key in KEYS.values():
        with pytest.raises(UsageError):
            pickle.dumps(key)
        assert repr(SEED)[2:-1] not in repr(key)
        assert SEED.hex() not in repr(key)


@pytest.mark.parametrize("name", KEYS)
def test_key_sets_go_round(name: str) -> None:
    """What we publish we read, and it has nothing private in it."""
    public = KEYS[name].public
    jwk = public.to_jwk()
    assert jwk["alg"] == name
    assert "d" not in jwk
    assert EarPublicKey.from_jwks(json.dumps({"keys": [jwk]})) == (public,)


BAD: list[dict[str, Any]] = [
    {"kty": "RSA"},
    {"crv": "Ed448"},
    {"crv": "X25519"},
    {"x": None},
    {"x": "AA"},
    {"x": "A" * 43 + "="},
    {"x": "A" * 42 + "B"},
    {"x": "\u20ac" * 43},
    {"d": "AA"},
    {"alg": "ES256"},
    {"alg": None},
    {"use": "enc"},
]


@pytest.mark.parametrize("members", BAD)
def test_other_public_keys(members: dict[str, Any]) -> None:
    """Of another kind, for another use, private, or malformed."""
    jwk: dict[str, Any] = {**ED25519.public.to_jwk(), **members}
    with pytest.raises(FormatError):
        EarPublicKey.from_jwk(jwk)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"keys":[]}', '{"keys":[7]}', '{"keys":{}}', '{"keys":[{}]}', "x" * 65_537],
)
def test_what_is_no_key_set(text: str) -> None:
    """Nothing but a set with keys in it."""
    with pytest.raises(FormatError):
        EarPublicKey.from_jwks(text)
    jwk = json.dumps(ED25519.public.to_jwk())
    with pytest.raises(FormatError, match="32"):
        EarPublicKey.from_jwks(f'{{"keys":[{",".join([jwk] * 33)}]}}')


OTHERS: list[dict[str, Any]] = [
    {},
    {"kty": "RSA", "n": "AQAB", "e": "AQAB", "alg": "RS256"},
    {"kty": "EC", "crv": "P-384", "x": "AA", "y": "AA"},
    {"kty": "OKP", "crv": "X25519", "x": "AA"},
    {"kty": ["OKP"], "crv": {"Ed25519": 1}},
    {"kty": "AKP", "alg": "ML-DSA-44", "pub": "AA"},
]


@pytest.mark.parametrize("other", OTHERS)
def test_keys_of_other_kinds_are_passed_over(other: dict[str, Any]) -> None:
    """A set may have keys for others (RFC 7517, 5); alone they are none to check an EAR with."""
    ours = [key.public.to_jwk() for key in KEYS.values()]
    read = EarPublicKey.from_jwks(json.dumps({"keys": [other, ours[0], other, ours[1]]}))
    assert read == tuple(key.public for key in KEYS.values())
    with pytest.raises(FormatError, match="has no Ed25519"):
        EarPublicKey.from_jwks(json.dumps({"keys": [other]}))


@pytest.mark.parametrize("private", ["d", "p", "q", "dp", "dq", "qi", "oth", "k"])
def test_a_set_with_a_private_key(private: str) -> None:
    """Of whatever kind it is, and also beside good ones."""
    for other in (*OTHERS, ED25519.public.to_jwk()):
        keys = [ED25519.public.to_jwk(), {**other, private: "AA"}]
        with pytest.raises(FormatError, match="private key"):
            EarPublicKey.from_jwks(json.dumps({"keys": keys}))


@pytest.mark.parametrize("members", [{"x": "AA"}, {"alg": "ES256"}, {"use": "enc"}])
def test_a_set_with_a_broken_key(members: dict[str, Any]) -> None:
    """One of our kinds is not passed over."""
    keys = [ED25519.public.to_jwk(), {**ED25519.public.to_jwk(), **members}]
    with pytest.raises(FormatError):
        EarPublicKey.from_jwks(json.dumps({"keys": keys}))


@pytest.mark.parametrize("text", [None, {}, [], 5, bytearray(b"{}"), memoryview(b"{}")])
def test_key_sets_of_other_types(text: object) -> None:
    """A set is text or bytes, not what somebody has parsed."""
    with pytest.raises(UsageError, match="a key set is text or bytes"):
        EarPublicKey.from_jwks(untyped(text))


def test_public_keys_that_are_no_points() -> None:
    """They check nothing."""
    publics = [EarPublicKey("EdDSA", b"\x02" + bytes(31)), EarPublicKey("EdDSA", b"")]
    for public in (*publics, EarPublicKey("ES256", b"\1" * 64)):
        with pytest.raises(SignatureError):
            public.check(bytes(64), b"")
