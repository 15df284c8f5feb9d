"""HTTP statuses of errors, and errors that have a status of their own."""

from attestkit.errors import (
    AttestKitError,
    FormatError,
    NotFoundError,
    UnsupportedError,
    UsageError,
)
from attestkit.serve.config.limits import LimitError
from attestkit.serve.external_auth.access_errors import ScopeError, TokenError
from attestkit.serve.http.request_body import TooLargeError


class NotImplementedHereError(UnsupportedError):
    """The method needs a device or feature that this machine does not have (501)."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="feature")


class MethodRefusedError(UsageError):
    """The listener does not serve the method to this client (403); nothing was run."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="not_applicable")


_STATUSES = (
    (TokenError, 401),
    (ScopeError, 403),
    (MethodRefusedError, 403),
    (TooLargeError, 413),
    (NotImplementedHereError, 501),
    (FormatError, 400),
    (UsageError, 400),
    (NotFoundError, 404),
    (LimitError, 503),
    (AttestKitError, 500),
)


def status_of(error: AttestKitError) -> int:
    """Return the HTTP status of an error: 400, 401, 403, 404, 413, 501, 503, else 500."""
    return next(status for kind, status in _STATUSES if isinstance(error, kind))


def text_of(error: AttestKitError) -> str:
    """Return an error's text for a response; for an unknown algorithm, that of dstack's agent."""
    text = str(error)
    is_algorithm = error.reason == "unsupported_algorithm" and text.startswith("algorithm: ")
    return "Unsupported algorithm" if is_algorithm else text
