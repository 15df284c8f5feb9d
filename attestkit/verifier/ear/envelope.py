"""Signed tokens of an EAR: compact JWS (RFC 7515) and COSE_Sign1 (RFC 9052).

Decoding avoids known weaknesses of signed formats. The key determines the algorithm, and the header
must name it. Only alg, kid and typ are accepted as header parameters: no `crit`, no keys or key
URLs, and no unprotected parameters in COSE. Only the canonical encoding is accepted, so that tokens
are not malleable.
"""

import hmac
import json
from typing import Any, Final, Literal, NamedTuple, cast

from attestkit._formats.cbor import Value, read_value
from attestkit._formats.compact_jws import read_compact_jws, to_base64url
from attestkit.errors import FormatError, SignatureError, UsageError
from attestkit.verifier.ear.keys import EarKey, EarPublicKey

TokenFormat = Literal["jwt", "cose"]

MAX_TOKEN: Final = 262_144
"""Maximum size of a token in bytes."""

_TAG: Final = 0xD2  # of COSE_Sign1, 18 (RFC 9052, 2)
_ALG, _KID, _TYP = 1, 4, 16  # RFC 9052, 3.1; RFC 9596, 2
_COSE_ALGORITHMS: Final = {"EdDSA": -8, "ES256": -7}  # RFC 9053, 2
_COSE_TYPE: Final = "application/eat+cwt"  # RFC 9782
_JWT_TYPE: Final = "eat+jwt"


class VerifiedToken(NamedTuple):
    """Verified claims of a token, with text keys (jwt) or CBOR labels (cose)."""

    form: TokenFormat
    claims: dict[Any, Any]


def sign_token(claims: dict[Any, Any], key: EarKey, form: TokenFormat) -> bytes:
    """Sign claims: in JSON for `jwt`, in deterministic CBOR for `cose`.

    Raises:
        UsageError: If the token is over 262,144 bytes, or a claim has an unpaired surrogate.
    """
    try:
        token = _sign_jwt(claims, key) if form == "jwt" else _sign_cose(claims, key)
    except UnicodeEncodeError as error:
        raise UsageError("EAR: a claim has an unpaired surrogate", reason="encoding") from error
    if len(token) > MAX_TOKEN:
        raise UsageError(f"EAR: {len(token)} bytes, at most {MAX_TOKEN}", reason="too_large")
    return token


def verify_token(token: bytes, key: EarPublicKey) -> VerifiedToken:
    """Verify the signature of a token, and return its claims.

    Raises:
        FormatError: If the token is malformed, or over 262,144 bytes.
        SignatureError: If the signature is not valid, or the header names another algorithm or key,
            or has an unsupported parameter.
    """
    if len(token) > MAX_TOKEN:
        raise FormatError(f"EAR: {len(token)} bytes, at most {MAX_TOKEN}", reason="too_large")
    if token.startswith(bytes([_TAG])):
        return VerifiedToken("cose", _verify_cose(token, key))
    return VerifiedToken("jwt", _verify_jwt(token, key))


def _sign_jwt(claims: dict[Any, Any], key: EarKey) -> bytes:
    kid = to_base64url(key.public.thumbprint)
    header = {"alg": key.public.algorithm, "kid": kid, "typ": _JWT_TYPE}
    parts = [to_base64url(_json(part)) for part in (header, claims)]
    signed = ".".join(parts).encode("ascii")
    return signed + b"." + to_base64url(key.sign(signed)).encode("ascii")


def _json(value: object) -> bytes:
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return text.encode()


def _verify_jwt(token: bytes, key: EarPublicKey) -> dict[Any, Any]:
    token_parts = read_compact_jws(token, MAX_TOKEN, "EAR")
    expected = {"alg": key.algorithm, "kid": to_base64url(key.thumbprint), "typ": _JWT_TYPE}
    _check_headers(token_parts.header, expected, needed="alg")
    key.check(token_parts.signature, token_parts.signed)
    return token_parts.read_payload()


def _sign_cose(claims: dict[Any, Any], key: EarKey) -> bytes:
    import cbor2  # lazy: only for COSE

    public = key.public
    algorithm = _COSE_ALGORITHMS[public.algorithm]
    header = {_ALG: algorithm, _KID: public.cose_thumbprint, _TYP: _COSE_TYPE}
    protected, payload = [cbor2.dumps(part, canonical=True) for part in (header, claims)]
    signature = key.sign(_signed_region(protected, payload))
    return _envelope(protected, payload, signature)


def _verify_cose(token: bytes, key: EarPublicKey) -> dict[Any, Any]:
    envelope = read_value(token, tag=18)
    if not isinstance(envelope, list) or len(envelope) != 4:
        raise FormatError("EAR: not a COSE_Sign1 array of 4 items", reason="wrong_type")
    protected, unprotected, payload, signature = envelope
    if payload is None:
        raise FormatError("EAR: payload missing (detached)", reason="missing")
    if not (
        isinstance(protected, bytes)
        and isinstance(payload, bytes)
        and isinstance(signature, bytes)
        and isinstance(unprotected, dict)
    ):
        raise FormatError("EAR: COSE_Sign1 has an item of the wrong type", reason="wrong_type")
    if unprotected:
        raise _header("unprotected header parameters are not allowed")
    if not hmac.compare_digest(_envelope(protected, payload, signature), token):
        message = "EAR: COSE_Sign1 is not in deterministic encoding"
        raise FormatError(message, reason="not_canonical")
    algorithm = _COSE_ALGORITHMS[key.algorithm]
    expected = {_ALG: algorithm, _KID: key.cose_thumbprint, _TYP: _COSE_TYPE}
    _check_headers(_map(read_value(protected), "header"), expected, needed=_ALG)
    key.check(signature, _signed_region(protected, payload))
    return _map(read_value(payload), "payload")


def _map(value: Value, what: str) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise FormatError(f"EAR: {what} is not a map", reason="wrong_type")
    return cast("dict[Any, Any]", value)


def _envelope(protected: bytes, payload: bytes, signature: bytes) -> bytes:
    import cbor2

    return bytes([_TAG]) + cbor2.dumps([protected, {}, payload, signature])


def _signed_region(protected: bytes, payload: bytes) -> bytes:
    """Return the Sig_structure (RFC 9052, 4.4), with empty external data."""
    import cbor2

    return cbor2.dumps(["Signature1", protected, b"", payload])


def _check_headers(header: dict[Any, Any], expected: dict[Any, Any], needed: object) -> None:
    """Check a signed header: algorithm, key id and token type."""
    if needed not in header:
        raise _header("no algorithm in the header")
    for name, value in header.items():
        if name not in expected:
            raise _header(f"unsupported header parameter: {ascii(name)[:40]}")
        if not _same(value, expected[name]):
            raise _header(f"header parameter {name!r}: must be {_shown(expected[name])}")


def _same(value: object, expected: object) -> bool:
    """Compare values and types, because True == 1."""
    if isinstance(value, bytes) and isinstance(expected, bytes):
        return hmac.compare_digest(value, expected)
    return type(value) is type(expected) and value == expected


def _shown(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else repr(value)


def _header(problem: str) -> SignatureError:
    return SignatureError(f"EAR: {problem}", reason="ear_bad_header")
