"""Tests of EAR keys: their encodings, JWK sets, and secrecy."""

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

from attestkit.errors import FormatError, SignatureError, UsageError
from attestkit.verifier.ear.signed_token import EarKey, EarPublicKey
from tests.raising import raises
from tests.runner.cases import every_case
from tests.untyped import untyped
from tests.verifier.ear.ears import ED25519, KEYS, P256

SEED = bytes(range(32))
PEM = ed25519.Ed25519PrivateKey.from_private_bytes(SEED).private_bytes(
    Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
)


def test_private_key_encodings() -> None:
    """Raw, PKCS#8 and SEC1 keys, as OpenSSL writes them, are accepted."""
    assert EarKey.from_bytes(SEED).public == EarKey.from_bytes(PEM).public == ED25519.public
    assert EarKey.from_bytes(b"\n" + PEM.replace(b"\n", b"\r\n")).public == ED25519.public
    key = ec.derive_private_key(int.from_bytes(bytes(range(1, 33)), "big"), ec.SECP256R1())
    for form in (PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL):
        text = key.private_bytes(Encoding.PEM, form, NoEncryption())
        assert EarKey.from_bytes(text).public == P256.public


def test_private_key_of_other_type_raises_format_error() -> None:
    """Other key types, encrypted and malformed keys are rejected without their content."""
    private = ed25519.Ed25519PrivateKey.from_private_bytes(SEED)
    encrypted = private.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    other = rsa.generate_private_key(65537, 2048).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    p384 = ec.generate_private_key(ec.SECP384R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    longer, unpadded = (
        PEM.replace(b"\n-----END", b"%s\n-----END" % end) for end in (b"AAAA", b"A")
    )
    for data in (
        encrypted,
        other,
        p384,
        longer,
        unpadded,
        b"",
        bytes(31),
        bytes(33),
        SEED.hex().encode(),
    ):
        with pytest.raises(FormatError) as caught:
            EarKey.from_bytes(data)
        assert len(str(caught.value)) < 100
    with raises(FormatError, "too_large"):
        EarKey.from_bytes(bytes(65_537))


def test_private_key_is_not_in_repr_or_pickle() -> None:
    """Neither repr nor a pickle contains the private key."""
    for key in KEYS.values():
        with pytest.raises(UsageError):
            pickle.dumps(key)
        assert repr(SEED)[2:-1] not in repr(key)
        assert SEED.hex() not in repr(key)


@pytest.mark.parametrize("name", KEYS)
def test_jwk_set_round_trip(name: str) -> None:
    """A published JWK set can be read, and contains no private key."""
    public = KEYS[name].public
    jwk = public.to_jwk()
    assert jwk["alg"] == name
    assert "d" not in jwk
    assert EarPublicKey.from_jwks(json.dumps({"keys": [jwk]})) == (public,)


INVALID_MEMBERS: list[dict[str, Any]] = [
    {"kty": "RSA"},
    {"crv": "Ed448"},
    {"x": None},
    {"x": "A" * 43 + "="},
    {"x": "A" * 42 + "B"},
    {"x": "\u20ac" * 43},
    {"d": "AA"},
    {"alg": "ES256"},
    {"use": "enc"},
]


@every_case("members", INVALID_MEMBERS)
def test_jwk_with_invalid_member_raises_format_error(members: dict[str, Any]) -> None:
    """A JWK of another type or use, private, or malformed raises FormatError."""
    jwk: dict[str, Any] = {**ED25519.public.to_jwk(), **members}
    with pytest.raises(FormatError):
        EarPublicKey.from_jwk(jwk)


@every_case("text", ["", "{}", '{"keys":[]}', '{"keys":[7]}', "x" * 65_537])
def test_jwk_set_invalid_text_raises_format_error(text: str) -> None:
    """Text that is not a JWK set of 1 to 32 keys raises FormatError."""
    with pytest.raises(FormatError):
        EarPublicKey.from_jwks(text)
    jwk = json.dumps(ED25519.public.to_jwk())
    with raises(FormatError, "wrong_size"):
        EarPublicKey.from_jwks(f'{{"keys":[{",".join([jwk] * 33)}]}}')


UNSUPPORTED_KEYS: list[dict[str, Any]] = [
    {},
    {"kty": "RSA", "n": "AQAB", "e": "AQAB", "alg": "RS256"},
    {"kty": "EC", "crv": "P-384", "x": "AA", "y": "AA"},
    {"kty": "OKP", "crv": "X25519", "x": "AA"},
    {"kty": ["OKP"], "crv": {"Ed25519": 1}},
    {"kty": "AKP", "alg": "ML-DSA-44", "pub": "AA"},
]


@every_case("other", UNSUPPORTED_KEYS)
def test_jwk_set_skips_unsupported_keys(other: dict[str, Any]) -> None:
    """Keys of unsupported types are skipped (RFC 7517, 5), but not all keys may be unsupported."""
    supported = [key.public.to_jwk() for key in KEYS.values()]
    read = EarPublicKey.from_jwks(json.dumps({"keys": [other, supported[0], other, supported[1]]}))
    assert read == tuple(key.public for key in KEYS.values())
    with raises(FormatError, "unsupported"):
        EarPublicKey.from_jwks(json.dumps({"keys": [other]}))


@every_case("private", ["d", "p", "q", "dp", "dq", "qi", "oth", "k"])
def test_jwk_set_with_private_member_is_rejected(private: str) -> None:
    """A private member of any key type is rejected, also beside valid keys."""
    for other in (*UNSUPPORTED_KEYS, ED25519.public.to_jwk()):
        keys = [ED25519.public.to_jwk(), {**other, private: "AA"}]
        with raises(FormatError, "unknown_field"):
            EarPublicKey.from_jwks(json.dumps({"keys": keys}))


@pytest.mark.parametrize("members", [{"x": "AA"}, {"alg": "ES256"}, {"use": "enc"}])
def test_jwk_set_with_malformed_supported_key_is_rejected(members: dict[str, Any]) -> None:
    """A malformed key of a supported type is not skipped."""
    keys = [ED25519.public.to_jwk(), {**ED25519.public.to_jwk(), **members}]
    with pytest.raises(FormatError):
        EarPublicKey.from_jwks(json.dumps({"keys": keys}))


@every_case("text", [None, {}, [], 5, bytearray(b"{}"), memoryview(b"{}")])
def test_jwk_set_wrong_type_raises_usage_error(text: object) -> None:
    """A JWK set is passed as str or bytes, not parsed."""
    with raises(UsageError, "wrong_type"):
        EarPublicKey.from_jwks(untyped(text))


def test_public_key_not_on_curve_raises_signature_error() -> None:
    """A public key that is not on its curve verifies nothing."""
    publics = [EarPublicKey("EdDSA", b"\x02" + bytes(31)), EarPublicKey("EdDSA", b"")]
    for public in (*publics, EarPublicKey("ES256", b"\1" * 64)):
        with pytest.raises(SignatureError):
            public.check(bytes(64), b"")
