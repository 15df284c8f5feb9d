"""Access tokens: signature, header, claims, and attacks on each of them."""

import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from typing import Any

import pytest

from attestkit._crypto import ed25519
from attestkit._crypto.ed25519 import ed25519_verify
from attestkit._formats.compact_jws import from_base64url, read_compact_jws, to_base64url
from attestkit.errors import FormatError
from attestkit.serve.external_auth.access_control import (
    LEEWAY,
    MAX_TOKEN,
    check_claims,
    verify_signature,
)
from attestkit.serve.external_auth.access_errors import TokenError
from tests.raising import raises
from tests.runner.cases import every_case
from tests.serve.external_auth.tokens import HEADER, KEY, OTHER_KEY, make_token, sign_parts

NOW = 1_800_000_000
APP_ID = "ab" * 20
CLAIMS: Mapping[str, Any] = {"exp": NOW + 300, "aud": APP_ID, "scope": "info logs"}
KEYS = (OTHER_KEY.public_key, KEY.public_key)


def check(claims: Mapping[str, Any], now: float = NOW) -> frozenset[str]:
    """Check claims for the app."""
    return check_claims(claims, APP_ID, now)


def test_read_compact_jws_of_rfc_8037() -> None:
    """The example of RFC 8037, appendix A.4, has a valid signature."""
    token = (
        b"eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc."
        b"hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg"
    )
    jws = read_compact_jws(token, MAX_TOKEN, "a")
    key = from_base64url("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo", "x")
    assert jws.header == {"alg": "EdDSA"}
    assert ed25519_verify(key, jws.signature, jws.signed)
    with raises(FormatError, "syntax"):
        jws.read_payload()


@every_case(
    "header",
    [
        {"alg": "EdDSA"},
        {"alg": "EdDSA", "typ": "jwt", "kid": "2026-11"},
        {"alg": "EdDSA", "typ": "at+jwt"},
        {"alg": "EdDSA", "typ": "application/at+jwt"},
    ],
)
def test_verify_signature_valid_header(header: dict[str, Any]) -> None:
    """A token of any of the keys is valid, with the usual headers of JWT libraries."""
    assert verify_signature(make_token(CLAIMS, header), KEYS) == CLAIMS


@every_case(
    "header",
    [
        {"alg": "none"},
        {"alg": "None"},
        {"alg": "HS256"},
        {"alg": "ES256"},
        {"alg": "eddsa"},
        {"alg": "Ed25519"},
        {"alg": ["EdDSA"]},
        {"alg": None},
        {},
        {**HEADER, "crit": ["exp"]},
        {**HEADER, "crit": []},
        {**HEADER, "jwk": {"kty": "OKP", "crv": "Ed25519", "x": to_base64url(KEY.public_key)}},
        {**HEADER, "jku": "https://example.com/keys"},
        {**HEADER, "x5c": []},
        {**HEADER, "b64": False},
        {**HEADER, "cty": "JWT"},
        {**HEADER, "typ": "eat+jwt"},  # a signed attestation result
        {**HEADER, "typ": 5},
        {**HEADER, "kid": 5},
        {**HEADER, "kid": "a" * 257},
    ],
)
def test_verify_signature_other_header_is_refused(header: dict[str, Any]) -> None:
    """Another algorithm, another type and every other parameter are refused, though signed."""
    with raises(TokenError, "bad_token"):
        verify_signature(make_token(CLAIMS, header), KEYS)


def test_verify_signature_public_key_as_secret_is_refused() -> None:
    """A MAC with the public key as its secret (HS256) and an unsigned token are refused."""
    body = to_base64url(json.dumps(CLAIMS).encode())
    for algorithm in ("HS256", "none", "EdDSA"):
        head = to_base64url(json.dumps({"alg": algorithm, "typ": "JWT"}).encode())
        signed = f"{head}.{body}".encode()
        mac = hmac.new(KEY.public_key, signed, hashlib.sha256).digest()
        for signature in (mac, mac * 2, b""):
            with raises(TokenError, "bad_token"):
                verify_signature(signed + b"." + to_base64url(signature).encode(), KEYS)


def test_verify_signature_other_key_is_refused() -> None:
    """A token of a key that is not configured is refused."""
    with raises(TokenError, "bad_token"):
        verify_signature(make_token(CLAIMS, key=OTHER_KEY), [KEY.public_key])


def test_verify_signature_any_changed_character_is_refused() -> None:
    """A token with one changed character is refused, wherever it is: none is malleable."""
    token = make_token(CLAIMS)
    for at in range(len(token)):
        changed = b"B" if token[at : at + 1] == b"A" else b"A"
        with raises(TokenError, "bad_token"):
            verify_signature(token[:at] + changed + token[at + 1 :], KEYS)


TOKEN = make_token(CLAIMS)


@every_case(
    "token",
    [
        *(b"", b".", b"..", b"...", b"a.b.c", TOKEN + b".", b"." + TOKEN, TOKEN + b"="),
        *(TOKEN[:-1], TOKEN + b"A", TOKEN + b"\n", TOKEN.replace(b".", b"..", 1)),
        *(TOKEN.replace(b".", b""), TOKEN.partition(b".")[2], TOKEN + b"." + TOKEN),
        *("\u00e9".encode() + TOKEN, b"\0" * 100, b"A" * 30_000, b"." * 30_000),
        sign_parts(b'{"alg":"none","alg":"EdDSA"}', b"{}"),
        sign_parts(b'{"alg":"EdDSA","alg":"EdDSA"}', b"{}"),
        sign_parts(b'{"alg":"EdDSA"}', b'{"aud":"a","aud":"b"}'),
        sign_parts(b'{"alg":"EdDSA"}', b"[]"),
        sign_parts(b'{"alg":"EdDSA"}', b'{"exp":NaN}'),
        sign_parts(b'{"alg":"EdDSA"}', b'{"exp":1}x'),
        sign_parts(b'{"alg":"EdDSA"}', b"\xff"),
        sign_parts(b'{"alg":"EdDSA"}', b'{"a":' + b"[" * 300 + b"]" * 300 + b"}"),
        sign_parts(b'{"alg":"EdDSA"}', b'{"exp":' + b"9" * 5000 + b"}"),
        sign_parts(b'"EdDSA"', b"{}"),
        sign_parts(b"[" * 500, b"{}"),
        make_token({**CLAIMS, "x": "a" * MAX_TOKEN}),
    ],
)
def test_verify_signature_malformed_token_is_refused(token: bytes) -> None:
    """A malformed or oversized token is refused, with an error that shows none of it."""
    with raises(TokenError, "bad_token") as caught:
        verify_signature(token, KEYS)
    assert len(str(caught.value)) < 100


@pytest.mark.parametrize("signature", [b"\1" * 64, bytes(64), b"\1" * 63], ids=["1", "0", "63"])
def test_verify_signature_forged_token_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, signature: bytes
) -> None:
    """A forged token, which anyone can send, costs one short verification for each key."""
    monkeypatch.setattr(ed25519, "_openssl_verify", pytest.fail)
    signed = TOKEN.rpartition(b".")[0]
    with raises(TokenError, "bad_token"):
        verify_signature(signed + b"." + to_base64url(signature).encode(), KEYS)


def test_verify_signature_work_is_bounded() -> None:
    """The longest token takes milliseconds, with eight keys."""
    token = make_token({**CLAIMS, "x": "a" * 5000})
    assert len(token) < MAX_TOKEN
    keys = [OTHER_KEY.public_key] * 7 + [KEY.public_key]
    begin = time.process_time()
    for _ in range(10):
        verify_signature(token, keys)
    assert time.process_time() - begin < 1


def test_check_claims_returns_scopes() -> None:
    """Scopes are the words of `scope`; unknown words are kept and match no route."""
    assert check(CLAIMS) == {"info", "logs"}
    assert check({**CLAIMS, "scope": " metrics  x "}) == {"metrics", "x"}
    assert check({**CLAIMS, "scope": ""}) == frozenset()
    assert check({"exp": NOW + 1, "aud": [APP_ID]}) == frozenset()
    assert check({**CLAIMS, "aud": ["x", APP_ID], "iss": 5, "jti": None}) == {"info", "logs"}


def test_check_claims_times_have_leeway() -> None:
    """The claims exp, nbf and iat are compared with a leeway of 60 s."""
    assert check({**CLAIMS, "exp": NOW - LEEWAY + 1})
    assert check({**CLAIMS, "nbf": NOW + LEEWAY, "iat": NOW + LEEWAY})
    assert check({**CLAIMS, "exp": NOW + 0.5, "iat": 0})


@every_case(
    "claims",
    [
        {"exp": NOW - LEEWAY},
        {"exp": 0},
        {"exp": None},
        {"exp": True},
        {"exp": str(NOW + 300)},
        {"exp": [NOW + 300]},
        {"exp": -1},
        {"exp": 1 << 53},
        {"exp": float("inf")},
        {"exp": float("nan")},
        {"exp": 10**400},
        {"nbf": NOW + LEEWAY + 1},
        {"nbf": None},
        {"nbf": True},  # as a number it would be long past, and so the next one
        {"iat": False},
        {"nbf": "0"},
        {"iat": NOW + LEEWAY + 1},
        {"iat": {}},
        {"aud": None},
        {"aud": ""},
        {"aud": []},
        {"aud": "cd" * 20},
        {"aud": APP_ID.upper()},
        {"aud": f"0x{APP_ID}"},
        {"aud": f" {APP_ID}"},
        {"aud": f"{APP_ID},x"},
        {"aud": [[APP_ID]]},
        {"aud": {APP_ID: 1}},
        {"aud": [APP_ID, 5]},
        {"aud": [APP_ID] * 17},
        {"scope": None},
        {"scope": ["info"]},
        {"scope": "info " * 300},
    ],
)
def test_check_claims_invalid_claim_is_refused(claims: dict[str, Any]) -> None:
    """Expired, future, malformed, of another app: each is refused."""
    with raises(TokenError, "bad_token"):
        check({**CLAIMS, **claims})


@pytest.mark.parametrize("name", ["exp", "aud"])
def test_check_claims_missing_claim_is_refused(name: str) -> None:
    """The claims exp and aud are required."""
    with raises(TokenError, "bad_token"):
        check({key: value for key, value in CLAIMS.items() if key != name})


@every_case("audience", ["", [""], [], None])
def test_check_claims_unknown_app_matches_nothing(audience: object) -> None:
    """Without an app id every token is refused, also one with an empty audience."""
    with raises(TokenError, "bad_token"):
        check_claims({**CLAIMS, "aud": audience}, "", NOW)
