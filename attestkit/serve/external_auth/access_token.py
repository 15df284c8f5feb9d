"""Verification of access tokens: JWTs (RFC 7519) signed with Ed25519 (RFC 8037).

It follows RFC 8725: the algorithm is fixed, the header has only alg, typ and kid, a token of
another kind (such as a signed attestation result) is refused by its typ, and the audience is
required. Work per token is bounded: its size, one Ed25519 verification for each of up to 8 keys.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from attestkit._crypto.ed25519 import ed25519_verify_strict
from attestkit._formats.compact_jws import read_compact_jws
from attestkit.errors import FormatError
from attestkit.serve.external_auth.access_errors import TokenError

MAX_TOKEN: Final = 8192
"""Maximum size of a token in bytes."""

LEEWAY: Final = 60
"""Tolerated difference of clocks in seconds."""

_ALGORITHM: Final = "EdDSA"
_TYPES: Final = frozenset({"jwt", "at+jwt", "application/at+jwt"})  # RFC 7519, 5.1; RFC 9068, 2.1
_MOST_TEXT: Final = 256  # characters of kid
_MOST_AUDIENCES: Final = 16
_MOST_SCOPE: Final = 1024  # characters


def verify_signature(token: bytes, keys: Sequence[bytes]) -> dict[str, Any]:
    """Return the claims of a token that one of the keys has signed.

    Args:
        token: The token.
        keys: Ed25519 public keys, 32 bytes each.

    Raises:
        TokenError: If the token is malformed, over 8192 bytes, of another algorithm or type, or
            not signed by one of the keys.
    """
    try:
        jws = read_compact_jws(token, MAX_TOKEN, "access token")
        _check_header(jws.header)
        signature, signed = jws.signature, jws.signed
        if len(signature) != 64 or not any(
            ed25519_verify_strict(key, signature, signed) for key in keys
        ):
            raise _bad("the signature is not valid for any of the keys")
        return jws.read_payload()
    except FormatError as error:
        raise _bad("not a JWT signed with Ed25519") from error


def check_claims(claims: Mapping[str, Any], audience: str, now: float) -> frozenset[str]:
    """Return the scopes of verified claims.

    Args:
        claims: The claims.
        audience: The app id in lower-case hex, which `aud` must contain.
        now: Unix time.

    Raises:
        TokenError: If the token is expired, not valid yet, or for another audience, or a claim is
            missing or malformed.
    """
    expires = _time(claims, "exp")
    if expires is None:
        raise _bad("the claim exp is missing")
    if now >= expires + LEEWAY:
        raise _bad("expired")
    for name in ("nbf", "iat"):
        begins = _time(claims, name)
        if begins is not None and now < begins - LEEWAY:
            raise _bad(f"not valid yet ({name}); check the clocks")
    _check_audience(claims.get("aud"), audience)
    scope = claims.get("scope", "")
    if not isinstance(scope, str) or len(scope) > _MOST_SCOPE:
        raise _bad(f"the claim scope must be words of up to {_MOST_SCOPE} characters")
    return frozenset(scope.split(" ")) - {""}


def _check_header(header: Mapping[str, Any]) -> None:
    if header.get("alg") != _ALGORITHM:
        raise _bad(f"the algorithm must be {_ALGORITHM}")
    if not header.keys() <= {"alg", "typ", "kid"}:
        raise _bad("the header may have alg, typ and kid only")
    kind, key_id = header.get("typ", "JWT"), header.get("kid", "")
    if not isinstance(kind, str) or kind.lower() not in _TYPES:
        raise _bad("typ must be JWT or at+jwt")
    if not isinstance(key_id, str) or len(key_id) > _MOST_TEXT:
        raise _bad(f"kid must be a text of up to {_MOST_TEXT} characters")


def _check_audience(found: object, audience: str) -> None:
    """Check that `aud`, a text or a list of texts, contains the audience (RFC 7519, 4.1.3)."""
    named: list[Any] = found if isinstance(found, list) else [found]
    if len(named) > _MOST_AUDIENCES or not all(isinstance(one, str) for one in named):
        raise _bad(f"the claim aud must be a text, or a list of up to {_MOST_AUDIENCES} texts")
    if not audience or audience not in named:
        raise _bad("the claim aud does not contain the app id in lower-case hex")


def _time(claims: Mapping[str, Any], name: str) -> float | None:
    """Return a NumericDate (RFC 7519, 2); None if it is missing."""
    if name not in claims:
        return None
    value = claims[name]
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 <= value < 1 << 53:  # also refuses NaN
        raise _bad(f"the claim {name} must be seconds since 1970")
    return float(value)


def _bad(problem: str) -> TokenError:
    return TokenError(problem, reason="bad_token")
