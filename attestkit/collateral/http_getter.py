"""HTTP client for endorsements, with the standard library only; the server is untrusted.

Plain http is allowed as well as https: endorsements are signed, so a network attacker can only
withhold them, or replay some that are still valid. Certificates are verified against the
system's CAs.
"""

import contextlib
import ssl
import time
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import TYPE_CHECKING, Final
from urllib.parse import SplitResult, urlsplit

from attestkit._system.bounded_http import ResponseLimits, TooLargeError, exchange
from attestkit.collateral.pccs_client import BODY_LIMIT, Response
from attestkit.errors import CollateralError, UsageError

if TYPE_CHECKING:
    from email.message import Message

    from attestkit._reasons import CollateralReason

__all__ = ["HttpGetter"]

HEAD_LIMIT: Final = 128 * 1024  # bytes of status line, header section and chunk framing
_HEADERS: Final = {
    "Accept": "*/*",
    "Accept-Encoding": "identity",
    "Connection": "close",
    "User-Agent": "attestkit",
}


class HttpGetter:
    """Function object that gets an http or https URL; its method `post` posts to one.

    It does not follow redirects, send cookies or credentials, or use the proxies of the environment
    (`HTTPS_PROXY`); if you need these, pass another function as `getter`. A body has at most 1 MiB,
    a header section 128 KiB.

    Args:
        timeout: Seconds for a whole response. The time for name resolution, and for addresses of
            the host that do not accept the connection, does not count.
        context: TLS context for https; None is the default context of `ssl`.

    Raises:
        UsageError: If `timeout` is not positive.
    """

    def __init__(self, timeout: float = 10.0, *, context: ssl.SSLContext | None = None) -> None:
        if not timeout > 0:
            text = f"timeout: {timeout}, must be a positive number of seconds"
            raise UsageError(text, reason="out_of_range")
        self._timeout = timeout
        self._context = context

    def __call__(self, url: str, headers: Mapping[str, str] = {}) -> Response:
        """Return the response to a GET of `url`, of any status.

        Args:
            url: An http or https URL.
            headers: Header fields, such as Authorization.

        Raises:
            CollateralError: If the response is missing, truncated, malformed, too large or too
                late, or `url` is not an http or https URL. The message names the URL.
        """
        return self._request("GET", url, None, headers)

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Response:
        """Return the response to a POST to `url`, of any status.

        Args:
            url: An http or https URL.
            body: Body of the request.
            headers: Header fields, such as Content-Type.

        Raises:
            CollateralError: As for a GET.
        """
        return self._request("POST", url, body, headers)

    def _request(
        self, method: str, url: str, body: bytes | None, headers: Mapping[str, str]
    ) -> Response:
        connection = self._connection(url)
        deadline = time.monotonic() + self._timeout
        limits = ResponseLimits(HEAD_LIMIT, BODY_LIMIT, lambda: deadline - time.monotonic())
        request = (method, _target(urlsplit(url)), body, {**_HEADERS, **headers})
        try:
            with contextlib.closing(connection):
                connection.connect()
                with contextlib.closing(connection.sock) as sock:
                    found = exchange(connection, sock, limits, request)
            return Response(found.status, _read_headers(found.headers), found.body)
        except (TooLargeError, OSError, HTTPException, ValueError) as error:
            reason, problem = self._describe(error)
            raise CollateralError(f"{url}: {problem}", reason=reason) from error

    def _describe(self, error: Exception) -> "tuple[CollateralReason, str]":
        """Return reason and text of an error of the exchange."""
        if isinstance(error, TooLargeError):
            return "too_large", f"response is over {error}; check the URL"
        if isinstance(error, TimeoutError):
            text = f"no response within {self._timeout:g} s; check that the service runs"
            return "fetch_failed", text
        if isinstance(error, ssl.SSLError):
            problem = error.reason or type(error).__name__
            text = f"TLS failed: {problem}; pass a private CA in the context of HttpGetter"
            return "fetch_failed", text
        if isinstance(error, OSError):
            text = f"{error.strerror or error}; check the URL, and that the service runs"
            return "fetch_failed", text
        # HTTPException, or ValueError: invalid host name
        return (
            "malformed",
            f"invalid HTTP response ({type(error).__name__}); check the URL",
        )

    def _connection(self, url: str) -> HTTPConnection:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise CollateralError(f"{url}: not a valid URL", reason="fetch_failed") from error
        if not host or "@" in parts.netloc:
            text = f"{url}: must have a host and no user name"
            raise CollateralError(text, reason="fetch_failed")
        if parts.scheme == "http":
            return HTTPConnection(host, port, timeout=self._timeout)
        if parts.scheme == "https":
            if self._context is None:
                self._context = ssl.create_default_context()  # kept, because it is slow to create
            return HTTPSConnection(host, port, timeout=self._timeout, context=self._context)
        raise CollateralError(f"{url}: scheme must be http or https", reason="fetch_failed")


def _target(parts: SplitResult) -> str:
    path = parts.path or "/"
    return f"{path}?{parts.query}" if parts.query else path


def _read_headers(fields: "Message") -> dict[str, str]:
    """Return header fields by their names in lower case; the values of repeated ones are joined.

    Raises:
        HTTPException: If the body has an encoding, which was not requested.
    """
    found: dict[str, str] = {}
    for name, value in fields.items():
        known = found.get(name.lower())
        text = value.strip()
        found[name.lower()] = text if known is None else f"{known}, {text}"
    if found.get("content-encoding", "identity").lower() != "identity":
        raise HTTPException("content encoding not requested")
    return found
