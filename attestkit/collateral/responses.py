"""Responses of the services of vendors, which are untrusted."""

from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from attestkit._system.bounded_http import Response
from attestkit.errors import CollateralError

__all__ = ["BODY_LIMIT", "Getter", "Poster", "Response", "read_body"]

BODY_LIMIT: Final = 1 << 20
"""Maximum size of a response body in bytes; Intel's largest is below 50 kB."""

Getter: TypeAlias = Callable[[str], Response]
"""Function that gets a URL without following redirects; CollateralError if it fails."""

Poster: TypeAlias = Callable[[str, bytes, Mapping[str, str]], Response]
"""Function that posts a body with header fields to a URL; otherwise as a Getter."""


def read_body(
    response: Response,
    name: str,
    limit: int = BODY_LIMIT,
    advice: Mapping[int, str] = {},
    detail: str = "",
) -> bytes:
    """Return the body of a successful response.

    Args:
        response: Response of the service, of any status.
        name: Name of the request in errors, such as its URL.
        limit: Maximum size in bytes.
        advice: Remedies for the error's text, by HTTP status.
        detail: The service's text about its error, which begins with a colon; empty for none.

    Raises:
        CollateralError: If the status is not 200 (`fetch_failed`), or the body is `too_large`.
    """
    status, size = response.status, len(response.body)
    if status != 200:
        remedy = advice.get(status) or _advice(status)
        message = f"{name}: HTTP status {status}{detail}; {remedy}"
        raise CollateralError(message, reason="fetch_failed")
    if size > limit:
        message = f"{name}: response has {size} bytes, at most {limit}; check the URL"
        raise CollateralError(message, reason="too_large")
    return response.body


def _advice(status: int) -> str:
    if 300 <= status < 400:
        return "redirects are not followed: use the URL of the redirect's target"
    if status == 429 or status >= 500:
        return "the service is overloaded or failing: retry later"
    return "check the URL"
