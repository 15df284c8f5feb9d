"""Access control of the external listener: the scope of each route, and the check of tokens."""

import re
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from types import MappingProxyType
from typing import Final, NamedTuple

from attestkit._crypto.ed25519 import ed25519_has_prime_order
from attestkit.errors import UsageError
from attestkit.serve.external_auth.access_errors import ScopeError, TokenError
from attestkit.serve.external_auth.access_token import check_claims, verify_signature
from attestkit.serve.http.asgi import Scope, is_unix_peer

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
            point, others could sign), or a scope is unknown.
    """
    if not auth.keys:
        raise UsageError("access tokens: no public key", reason="missing")
    if not all(len(key) == 32 and ed25519_has_prime_order(key) for key in auth.keys):
        problem = "access tokens: not an Ed25519 public key of 32 bytes and prime order"
        raise UsageError(problem, reason="invalid_key")
    check_scopes(auth.anonymous_scopes)


def check_scopes(names: Iterable[str]) -> frozenset[str]:
    """Return the names of scopes.

    Raises:
        UsageError: If one is unknown.
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
        raise RuntimeError(f"external listener: no scope for the route {missing[0]}")
    return {route: scopes[route] for route in routes}


@dataclass(eq=False)
class AccessControl:
    """Check of the requests to the external listener.

    Args:
        auth: Keys and anonymous scopes.
        scopes: Scope of each route, by name.
        app_id: Returns the app id, the audience of tokens; raises an AttestKitError if the
            platform does not return it.
        now: Returns the Unix time.

    Raises:
        UsageError: As `check_auth`.
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
            request: The ASGI scope.
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
        raise TokenError("missing; send Authorization: Bearer TOKEN", reason="no_token")
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
