"""Targets: access tokens of the external listener, the keys that sign them, and chains of keys."""

import json
from base64 import b64encode
from typing import Any, Final

from attestkit._formats import strict_json
from attestkit.cli.commands.verify_key import parse_key
from attestkit.errors import ConfigError, FormatError
from attestkit.serve.external_auth.access_control import check_claims, verify_signature
from attestkit.serve.external_auth.access_errors import TokenError
from attestkit.serve.external_auth.settings import parse_public_key
from fuzz.parsers.contract import ParserTarget, check, check_same, obeys
from tests.serve.external_auth.tokens import HEADER, KEY, OTHER_KEY, make_token, sign_parts

_APP: Final = "ab" * 20
_NOW: Final = 1_700_000_000
_CLAIMS: Final = {"aud": _APP, "exp": _NOW + 60, "scope": "info logs"}
_KEYS: Final = (OTHER_KEY.public_key, KEY.public_key)
_HEADER: Final = json.dumps(HEADER).encode()


def _token(raw: bytes) -> dict[str, Any]:
    return verify_signature(raw, _KEYS)


def _signed(raw: bytes, claims: dict[str, Any]) -> None:
    text = raw.split(b".")[1].decode("ascii")
    check("of a signer", text and isinstance(claims, dict))


def _claims(raw: bytes) -> frozenset[str]:
    """Read claims that a trusted key signed, whatever they are."""
    return check_claims(verify_signature(sign_parts(_HEADER, raw), _KEYS), _APP, _NOW)


def _granted(raw: bytes, scopes: frozenset[str]) -> None:
    claims = strict_json.read_object(raw, "claims")
    check("for this app", _APP in claims["aud"])
    check("not expired", claims["exp"] + 60 > _NOW)
    check_same("scopes", scopes, {*claims.get("scope", "").split(" ")} - {""})


def token_samples() -> list[bytes]:
    """Return tokens, signed by each key, by neither, and with another header."""
    return [
        make_token(_CLAIMS),
        make_token({}, key=OTHER_KEY),
        make_token(_CLAIMS, {**HEADER, "kid": "a"}),
        make_token(_CLAIMS, {"alg": "none"}),
        make_token(_CLAIMS)[:-1],
    ]


def claim_samples() -> list[bytes]:
    """Return claims in JSON."""
    lists = {**_CLAIMS, "aud": ["other", _APP], "nbf": _NOW - 1, "iat": _NOW - 1.5}
    return [json.dumps(one).encode() for one in (_CLAIMS, lists, {**_CLAIMS, "exp": 1}, {})]


def _public_key(raw: bytes) -> bytes:
    return parse_public_key(raw, "key")


def key_file_samples() -> list[bytes]:
    """Return a key in each form of a file."""
    raw = KEY.public_key
    der = bytes.fromhex("302a300506032b6570032100") + raw
    body = b64encode(der).decode()
    pem = f"-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n"
    return [
        raw,
        raw.hex().encode() + b"\n",
        pem.encode(),
        pem.replace("PUBLIC", "PRIVATE").encode(),
    ]


def chain_samples() -> list[bytes]:
    """Return public keys with signature chains."""
    chain = ["00" * 65, "0x" + "11" * 65]
    key = {"public_key": "02" * 33, "signature_chain": chain}
    return [json.dumps(one).encode() for one in (key, {**key, "signature_chain": []}, {})]


def _chain(_raw: bytes, found: tuple[bytes, tuple[bytes, ...]]) -> None:
    check("bytes", all(isinstance(one, bytes) for one in (found[0], *found[1])))


def targets() -> list[ParserTarget]:
    """Return the targets of this file."""
    token = obeys(_token, TokenError, accepted=_signed)
    claims = obeys(_claims, TokenError, accepted=_granted)
    key = obeys(_public_key, ConfigError)
    chain = obeys(parse_key, FormatError, accepted=_chain)
    return [
        ParserTarget("access_token", token, token_samples, "json.dict"),
        ParserTarget("access_claims", claims, claim_samples, "json.dict", 1024),
        ParserTarget("token_key", key, key_file_samples, "x509.dict", 512),
        ParserTarget("key_chain", chain, chain_samples, "json.dict"),
    ]
