"""Keys of NVIDIA's service are read strictly."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit._crypto.p384 import P384PublicKey
from attestkit.errors import FormatError, UsageError
from attestkit.gpu.nras.tokens import MAX_JWKS, MAX_KEYS, read_jwks
from tests.gpu.nras.nras_tokens import KEY_ID, b64, jwk, jwks
from tests.pki.ocsp_pki import certificate_of, der
from tests.raising import raises, repeated_subjects
from tests.runner.cases import every_case
from tests.untyped import untyped
from tests.vectors import data, needs_shared


def test_read_jwks_returns_keys_by_kid() -> None:
    """All P-384 keys are returned; keys of other types are ignored."""
    others: list[dict[str, Any]] = [
        {"kty": "RSA", "n": "AQAB", "e": "AQAB"},
        {"kty": "EC", "crv": "P-256"},
        {"kty": [1]},
    ]
    found = read_jwks(jwks(jwk(), jwk("other", "2", x5c=False), *others))
    assert [*found] == [KEY_ID, "2"]
    assert all(isinstance(key, P384PublicKey) for key in found.values())
    named = jwk() | {"alg": "ES384", "use": "sig"}
    assert [*read_jwks(jwks(named).decode())] == [KEY_ID]


@needs_shared
def test_read_jwks_of_recovered_key() -> None:
    """The key that was computed from NVIDIA's signatures is read."""
    text = data("gpu/eat/nras-hopper/recovered-jwks.json")
    assert [*read_jwks(text)] == [json.loads(text)["keys"][0]["kid"]]


def _changed(**members: Any) -> bytes:
    """Return a set with one key whose members are changed, or left out (...)."""
    found = {name: value for name, value in (jwk() | members).items() if value is not ...}
    return jwks(found)


def _x5c(*certificates: bytes) -> list[str]:
    return [base64.b64encode(each).decode() for each in certificates]


OTHER = der(certificate_of("other", "issuer"))
OWN = der(certificate_of("nras", "issuer"))


@every_case(
    ("text", "reason"),
    [
        (b"", "syntax"),
        (b"[]", "wrong_type"),
        (b"{}", "missing"),
        (b'{"keys": {}}', "wrong_type"),
        (b'{"keys": []}', "missing"),
        (b'{"keys": [1]}', "wrong_type"),
        (b'{"keys": [], "keys": []}', "duplicate"),
        (jwks({"kty": "RSA"}), "missing"),
        (jwks(jwk(), jwk("other")), "duplicate"),
        (_changed(kid=...), "missing"),
        (_changed(kid=1), "wrong_type"),
        (_changed(kid=""), "wrong_value"),
        (_changed(kid="a" * 257), "wrong_value"),
        (_changed(kid="a\n"), "wrong_value"),
        (_changed(x=...), "missing"),
        (_changed(x=1), "wrong_type"),
        (_changed(x=b64(bytes(47))), "wrong_size"),
        (_changed(x=b64(bytes(49))), "wrong_size"),
        (_changed(x=b64(bytes(48))), "wrong_value"),
        (_changed(x=jwk()["x"] + "="), "encoding"),
        (_changed(y=jwk()["x"]), "wrong_value"),
        (_changed(alg="ES256"), "inconsistent"),
        (_changed(alg=None), "inconsistent"),
        (_changed(use="enc"), "inconsistent"),
        (_changed(d=b64(bytes(48))), "unknown_field"),
        (jwks(jwk(), {"kty": "oct", "k": "AA"}), "unknown_field"),
        (_changed(x5c=None), "wrong_type"),
        (_changed(x5c=""), "wrong_type"),
        (_changed(x5c=[]), "wrong_size"),
        (_changed(x5c=_x5c(*[OWN] * 9)), "wrong_size"),
        (_changed(x5c=_x5c(OTHER)), "inconsistent"),
        (_changed(x5c=_x5c(OTHER, OWN)), "inconsistent"),
        (_changed(x5c=[1]), "wrong_type"),
        (_changed(x5c=["AAAA"]), "syntax"),
        (_changed(x5c=[_x5c(OWN)[0], "A"]), "encoding"),
        (jwks(*[{"kty": "oct"}] * (MAX_KEYS + 1)), "too_many"),
        (bytes(MAX_JWKS + 1), "too_large"),
    ],
)
def test_read_jwks_malformed_raises_format_error(text: bytes, reason: str) -> None:
    """A set that is malformed, ambiguous or private is refused."""
    with raises(FormatError, reason) as caught:
        read_jwks(text)
    assert not repeated_subjects(caught.value)


def test_read_jwks_malformed_certificate_is_named() -> None:
    """The error names the position of the certificate in its array."""
    for second, reason in (("A", "encoding"), ("AAAA", "syntax")):
        with raises(FormatError, reason, part=": x5c[1]: ") as caught:
            read_jwks(_changed(x5c=[*_x5c(OWN), second]))
        assert not repeated_subjects(caught.value)


def test_read_jwks_cut_at_any_length_raises_format_error() -> None:
    """Each prefix is refused."""
    whole = jwks(jwk(x5c=False))
    for size in range(len(whole)):
        with pytest.raises(FormatError):
            read_jwks(whole[:size])


def test_read_jwks_of_other_type_raises_usage_error() -> None:
    """A set is bytes or text."""
    with raises(UsageError, "wrong_type"):
        read_jwks(untyped({}))


@given(st.binary(max_size=100))
def test_read_jwks_any_bytes_raise_format_error(junk: bytes) -> None:
    """Random bytes raise FormatError alone."""
    with pytest.raises(FormatError):
        read_jwks(junk)
