"""Responses to failed requests: statuses, texts and headers by error."""

import logging

from attestkit.errors import (
    AttestKitError,
    FormatError,
    NotFoundError,
    UnsupportedError,
    UsageError,
)
from attestkit.serve.config.limits import LimitError
from attestkit.serve.external_auth.access_errors import AccessError, ScopeError, TokenError
from attestkit.serve.http.request_body import TooLargeError, TooManyBodiesError
from attestkit.serve.rpc.codecs import Codec, RpcResponse

CLOSE = ((b"connection", b"close"),)
_logger = logging.getLogger("attestkit.serve")


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


def error_response(error: Exception, codec: Codec, request_id: bytes) -> RpcResponse:
    """Return the response to a request that failed with `error`.

    An unexpected error may contain secrets: it is logged, and the response has only `request_id`.
    """
    if isinstance(error, AttestKitError):
        status, text = status_of(error), text_of(error)
    else:
        name = request_id.decode("ascii")
        _logger.error("request %s failed", name, exc_info=error, extra={"request_id": name})
        status, text = 500, f"internal error, request {name}"
    response = RpcResponse(status, codec.content_type, (codec.encode_error(text),))
    if isinstance(error, (TooLargeError, TooManyBodiesError)):
        return response._replace(headers=CLOSE)
    if isinstance(error, AccessError):
        challenge = (b"www-authenticate", error.challenge.encode("ascii"))
        return response._replace(headers=(challenge,))
    return response
