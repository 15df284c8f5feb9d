"""The two envelopes of signed claims: JWS compact (RFC 7515) and COSE_Sign1 (RFC 9052).

Reading is strict where signed formats have gone wrong before. The key decides on the algorithm, and
the header has to name just that one. No header is taken but those that are written here: no `crit`,
no key or address of a key, and of COSE nothing that is not signed. There is one way to write an
envelope; another one of the same parts is refused, so no bit of a token is without a meaning.
"""

import hmac
import json
from typing import Any, Final, Literal, NamedTuple, cast

from attestkit._formats import strict_json
from attestkit._formats.cbor import Value, read_value
from attestkit.errors import FormatError, SignatureError, UsageError
from attestkit.verifier.ear.keys import EarKey, EarPublicKey, from_base64url, to_base64url

__all__ = ["MAX_TOKEN", "Form", "Opened", "open_token", "seal"]

Form = Literal["jwt", "cose"]

MAX_TOKEN: Final = 262_144
"""Bytes of a signed verdict, in either form."""

_TAG: Final = 0xD2  # of COSE_Sign1, 18 (RFC 9052, 2)
_ALG, _KID, _TYP = 1, 4, 16  # RFC 9052, 3.1; RFC 9596, 2
_COSE_ALGORITHMS: Final = {"EdDSA": -8, "ES256": -7}  # RFC 9053, 2
_COSE_TYPE: Final = "application/eat+cwt"  # RFC 9782
_JWT_TYPE: Final = "eat+jwt"


class Opened(NamedTuple):
    """Claims that a key vouches for, in the form's own shape: text keys, or numbers."""

    form: Form
    claims: dict[Any, Any]


def seal(claims: dict[Any, Any], key: EarKey, form: Form) -> bytes:
    """Return the token: claims in JSON for `jwt`, in deterministic CBOR for `cose`.

    Raises:
        UsageError: The token would be over 262,144 bytes, or claims hold text without UTF-8 form.
    """
    try:
        token = _seal_jwt(claims, key) if form == "jwt" else _seal_cose(claims, key)
    except UnicodeEncodeError as error:
        raise UsageError("text with half a surrogate pair has no UTF-8 form") from error
    if len(token) > MAX_TOKEN:
        raise UsageError(f"the EAR would have {len(token)} bytes, over {MAX_TOKEN}")
    return token


def open_token(token: bytes, key: EarPublicKey) -> Opened:
    """Return the claims of a token, once the signature holds.

    Raises:
        FormatError: It is no such token, or over 262,144 bytes.
        SignatureError: The signature does not hold, or a header names another algorithm, another
            key, or something that is not known here.
    """
    if len(token) > MAX_TOKEN:
        raise FormatError(f"an EAR has at most {MAX_TOKEN} bytes, and this has more")
    if token.startswith(bytes([_TAG])):
        return Opened("cose", _open_cose(token, key))
    return Opened("jwt", _open_jwt(token, key))


def _seal_jwt(claims: dict[Any, Any], key: EarKey) -> bytes:
    kid = to_base64url(key.public.thumbprint)
    header = {"alg": key.public.algorithm, "kid": kid, "typ": _JWT_TYPE}
    parts = [to_base64url(_json(part)) for part in (header, claims)]
    signed = ".".join(parts).encode("ascii")
    return signed + b"." + to_base64url(key.sign(signed)).encode("ascii")


def _json(value: object) -> bytes:
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return text.encode()


def _open_jwt(token: bytes, key: EarPublicKey) -> dict[Any, Any]:
    parts = token.split(b".", 3)
    if len(parts) != 3 or not token.isascii():
        raise FormatError("an EAR is a JWT of three parts, or a tagged COSE_Sign1")
    head, body, tail = [part.decode("ascii") for part in parts]
    if not body:
        raise FormatError("the EAR's payload is detached")
    header = strict_json.read_object(from_base64url(head, "the EAR's header"), "the EAR's header")
    _check_headers(
        header,
        {"alg": key.algorithm, "kid": to_base64url(key.thumbprint), "typ": _JWT_TYPE},
        needed="alg",
    )
    signature = from_base64url(tail, "the EAR's signature")
    key.check(signature, token[: len(head) + 1 + len(body)])
    return strict_json.read_object(from_base64url(body, "the EAR's payload"), "the EAR's payload")


def _seal_cose(claims: dict[Any, Any], key: EarKey) -> bytes:
    import cbor2  # late: only who speaks COSE pays for it

    public = key.public
    algorithm = _COSE_ALGORITHMS[public.algorithm]
    header = {_ALG: algorithm, _KID: public.cose_thumbprint, _TYP: _COSE_TYPE}
    protected, payload = [cbor2.dumps(part, canonical=True) for part in (header, claims)]
    signature = key.sign(_signed_region(protected, payload))
    return _envelope(protected, payload, signature)


def _open_cose(token: bytes, key: EarPublicKey) -> dict[Any, Any]:
    envelope = read_value(token, tag=18)
    if not isinstance(envelope, list) or len(envelope) != 4:
        raise FormatError("the EAR is no COSE_Sign1")
    protected, unprotected, payload, signature = envelope
    if payload is None:
        raise FormatError("the EAR's payload is detached")
    if not (
        isinstance(protected, bytes)
        and isinstance(payload, bytes)
        and isinstance(signature, bytes)
        and isinstance(unprotected, dict)
    ):
        raise FormatError("the EAR is no COSE_Sign1")
    if unprotected:
        raise _header("has a header that is not signed")
    if not hmac.compare_digest(_envelope(protected, payload, signature), token):
        raise FormatError("the EAR's COSE_Sign1 is not in deterministic form")
    _check_headers(
        _map(read_value(protected), "header"),
        {
            _ALG: _COSE_ALGORITHMS[key.algorithm],
            _KID: key.cose_thumbprint,
            _TYP: _COSE_TYPE,
        },
        needed=_ALG,
    )
    key.check(signature, _signed_region(protected, payload))
    return _map(read_value(payload), "payload")


def _map(value: Value, what: str) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise FormatError(f"the EAR's {what} is no map")
    return cast("dict[Any, Any]", value)


def _envelope(protected: bytes, payload: bytes, signature: bytes) -> bytes:
    import cbor2

    return bytes([_TAG]) + cbor2.dumps([protected, {}, payload, signature])


def _signed_region(protected: bytes, payload: bytes) -> bytes:
    """Return the Sig_structure (RFC 9052, 4.4), without external data."""
    import cbor2

    return cbor2.dumps(["Signature1", protected, b"", payload])


def _check_headers(header: dict[Any, Any], expected: dict[Any, Any], needed: object) -> None:
    """Hold a signed header to what the key allows: its algorithm, its name, the token's type."""
    if needed not in header:
        raise _header("does not name its algorithm")
    for name, value in header.items():
        if name not in expected:
            raise _header(f"has a header that is not known here: {ascii(name)[:40]}")
        if not _same(value, expected[name]):
            raise _header(f"has a header {name!r} that is not {_shown(expected[name])}")


def _same(value: object, expected: object) -> bool:
    """Compare with the type: to Python, True is 1."""
    if isinstance(value, bytes) and isinstance(expected, bytes):
        return hmac.compare_digest(value, expected)
    return type(value) is type(expected) and value == expected


def _shown(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else repr(value)


def _header(problem: str) -> SignatureError:
    return SignatureError(f"the EAR {problem}", reason="ear_bad_header")
