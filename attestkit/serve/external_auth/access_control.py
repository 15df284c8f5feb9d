"""Access control of the external listener: the scope of each route, and the check of tokens.

Tokens are JWTs (RFC 7519) signed with Ed25519 (RFC 8037). Their check follows RFC 8725: the
algorithm is fixed, the header has only alg, typ and kid, a token of another kind (such as a signed
attestation result) is refused by its typ, and the audience is required. Work per token is bounded:
its size, one Ed25519 verification for each of up to 8 keys.
"""

import re
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from attestkit._crypto.ed25519 import ed25519_has_prime_order, ed25519_verify_strict
from attestkit._formats.compact_jws import read_compact_jws
from attestkit.errors import FormatError, UsageError
from attestkit.serve.external_auth.access_errors import ScopeError, TokenError
from attestkit.serve.http.asgi import Scope, is_unix_peer

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
        token: The token, a JWT in its compact form.
        keys: Ed25519 public keys, 32 bytes each.

    Raises:
        TokenError: If the token is malformed, over 8192 bytes, of an algorithm other than EdDSA or
            a type other than JWT, or not signed by one of the keys.
    """
    try:
        jws = read_compact_jws(token, MAX_TOKEN, "access token")
        _check_header(jws.header)
        signature, signed = jws.signature, jws.signed
        if not any(ed25519_verify_strict(key, signature, signed) for key in keys):
            raise _bad("the signature is not valid for any of the keys")
        return jws.read_payload()
    except FormatError as error:
        raise _bad("not a JWT signed with Ed25519") from error


def check_claims(claims: Mapping[str, Any], audience: str, now: float) -> frozenset[str]:
    """Return the scopes that the claims of a verified token grant; unknown ones are included.

    Args:
        claims: Claims, from `verify_signature`.
        audience: The app id in lower-case hex, which `aud` must contain.
        now: Unix time.

    Raises:
        TokenError: If the token is expired, not valid yet, or not for `audience`, or a claim is
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
    """Check that `found`, the claim `aud`, is `audience` or a list with it (RFC 7519, 4.1.3).

    Raises:
        TokenError: If it does not, or has another type.
    """
    named: list[Any] = found if isinstance(found, list) else [found]
    if len(named) > _MOST_AUDIENCES or not all(isinstance(one, str) for one in named):
        raise _bad(f"the claim aud must be a text, or a list of up to {_MOST_AUDIENCES} texts")
    if not audience or audience not in named:
        raise _bad("the claim aud does not contain the app id in lower-case hex")


def _time(claims: Mapping[str, Any], name: str) -> float | None:
    """Return the claim `name` in seconds since 1970 (RFC 7519, NumericDate); None if missing.

    Raises:
        TokenError: If it is not a number of seconds from 0 to 2**53.
    """
    if name not in claims:
        return None
    value = claims[name]
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 <= value < 1 << 53:  # also refuses NaN
        raise _bad(f"the claim {name} must be seconds since 1970")
    return float(value)


def _bad(problem: str) -> TokenError:
    return TokenError(problem, reason="bad_token")


SCOPES: Final = ("info", "version", "health", "attestation", "logs", "metrics")
"""Names of the scopes."""

_VERSIONS: Final = frozenset({"Version", "v1.Version"})
_SCOPE_OF: Final[Mapping[str, str]] = MappingProxyType(
    {
        "Info": "info",
        "v1.Info": "info",
        **dict.fromkeys(_VERSIONS, "version"),
        "v1.Health": "health",
        "GetAttestationForAppKey": "attestation",
        "/": "info",
        "/assets/": "info",
        "/logs/": "logs",
        "/metrics": "metrics",
    }
)
_CREDENTIALS: Final = re.compile(rb"bearer +([A-Za-z0-9._~+/=-]+)", re.IGNORECASE)


class ExternalAuth(NamedTuple):
    """Access rules of the external listener.

    Attributes:
        keys: Ed25519 public keys that sign access tokens, 32 bytes each.
        anonymous_scopes: Scopes of requests without a token.
    """

    keys: tuple[bytes, ...]
    anonymous_scopes: frozenset[str] = frozenset()


def check_auth(auth: ExternalAuth) -> None:
    """Check the keys and scopes of an access control.

    Raises:
        UsageError: If there is no key, one is not an Ed25519 public key of prime order (for another
            point, signatures can be forged), or a scope is unknown.
    """
    if not auth.keys:
        raise UsageError("access tokens: no public key; pass one", reason="missing")
    if not all(len(key) == 32 and ed25519_has_prime_order(key) for key in auth.keys):
        problem = "access tokens: a key must be an Ed25519 public key: 32 bytes, of prime order"
        raise UsageError(problem, reason="invalid_key")
    check_scopes(auth.anonymous_scopes)


def check_scopes(names: Iterable[str]) -> frozenset[str]:
    """Return names of scopes as a set, after checking that each is known.

    Raises:
        UsageError: If a name is not in SCOPES.
    """
    found = frozenset(names)
    if unknown := sorted(found.difference(SCOPES)):
        problem = f"unknown scope {unknown[0][:64]!a}; the scopes are {', '.join(SCOPES)}"
        raise UsageError(problem, reason="unknown_name")
    return found


def assign_scopes(routes: Collection[str], documents: Collection[str]) -> dict[str, str]:
    """Return the scope of each route.

    Args:
        routes: Names of methods, and mount points of views.
        documents: Those of the views that are API documents, which have the scope `info`.

    Raises:
        RuntimeError: If a route has no scope: a new one must be given a scope here.
    """
    scopes = {**dict.fromkeys(documents, "info"), **_SCOPE_OF}
    if missing := sorted(set(routes) - scopes.keys()):
        text = f"external listener: no scope for the route {missing[0]}"
        raise RuntimeError(f"{text}; this is a bug of attestkit, report it")
    return {route: scopes[route] for route in routes}


@dataclass(eq=False)
class AccessControl:
    """Check of the requests to the external listener.

    Args:
        auth: Keys and anonymous scopes.
        scopes: Scope of each route, by name.
        app_id: Coroutine function that returns the app id, the audience of tokens in hex; raises an
            AttestKitError if the platform does not return it.
        now: Returns the Unix time.

    Raises:
        UsageError: If a key in `auth` is missing or not valid, or a scope is unknown.
    """

    auth: ExternalAuth
    scopes: Mapping[str, str]
    app_id: Callable[[], Awaitable[bytes]]
    now: Callable[[], float]

    def __post_init__(self) -> None:
        check_auth(self.auth)

    async def check(self, request: Scope, route: str | None) -> None:
        """Check a request.

        Args:
            request: The ASGI scope of the request.
            route: Name of the route that answers the request; None for an unknown path, for which
                any valid token suffices.

        Raises:
            TokenError: If the route needs a token, and the request has no valid one.
            ScopeError: If its token does not have the scope of the route.
        """
        scope = None if route is None else self.scopes[route]
        if scope in self.auth.anonymous_scopes:
            return
        if route in _VERSIONS and _is_local(request):
            return
        claims = verify_signature(_find_token(request), self.auth.keys)
        app_id = await self.app_id()
        granted = check_claims(claims, app_id.hex(), self.now())
        if scope is not None and scope not in granted:
            raise ScopeError(scope)


def _find_token(request: Scope) -> bytes:
    """Return the token in the Authorization header (RFC 6750, 2.1); queries are never read."""
    values = [value for name, value in request["headers"] if name == b"authorization"]
    if not values:
        raise TokenError("missing; send the header Authorization: Bearer TOKEN", reason="no_token")
    found = _CREDENTIALS.fullmatch(values[0])
    if len(values) > 1 or found is None:
        raise TokenError("must be one header Authorization: Bearer TOKEN", reason="bad_token")
    token: bytes = found[1]
    return token


def _is_local(request: Scope) -> bool:
    """Return whether the peer is on loopback, or on a unix socket."""
    client = request.get("client")
    if client is None:
        return is_unix_peer(request)
    try:
        address = ip_address(client[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return address.is_loopback or (mapped is not None and mapped.is_loopback)
