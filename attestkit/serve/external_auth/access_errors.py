"""Errors of access control, with their challenge (RFC 6750, section 3)."""

from typing import Literal

from attestkit.errors import AttestKitError, ReasonOf

AccessReason = Literal[
    "no_token",  # the request has no token
    "bad_token",  # the token is malformed, expired, of another app, or not signed by a known key
    "no_scope",  # the token does not have the scope of the route
]


class AccessError(AttestKitError):
    """The request is not allowed: 401 without a valid token, 403 without the scope.

    Attributes:
        challenge: Value of the header WWW-Authenticate.
    """

    reason = ReasonOf[AccessReason]()

    def __init__(self, message: str, *, reason: AccessReason, challenge: str = "") -> None:
        super().__init__(message, reason=reason)
        self.challenge: str = f"Bearer {challenge}".rstrip()


class TokenError(AccessError):
    """The request has no valid token (401)."""

    def __init__(self, problem: str, *, reason: Literal["no_token", "bad_token"]) -> None:
        challenge = 'error="invalid_token"' if reason == "bad_token" else ""
        super().__init__(f"access token: {problem}", reason=reason, challenge=challenge)


class ScopeError(AccessError):
    """The token does not have the scope of the route (403)."""

    def __init__(self, scope: str) -> None:
        super().__init__(
            f"access token: the scope {scope} is required",
            reason="no_scope",
            challenge=f'error="insufficient_scope", scope="{scope}"',
        )
