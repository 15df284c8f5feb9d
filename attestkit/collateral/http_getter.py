"""HTTP client for collateral, with the standard library only; the server is untrusted.

Plain http is allowed as well as https: collateral is signed, so a network attacker can only
withhold it, or replay collateral that is still valid. Certificates are verified against the
system's CAs.
"""

import contextlib
import io
import socket
import ssl
import time
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import TYPE_CHECKING, Final, cast
from urllib.parse import SplitResult, urlsplit

from attestkit.collateral.pccs_client import BODY_LIMIT, Response
from attestkit.errors import CollateralError, UsageError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

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
    """Function object that gets an http or https URL.

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
            raise UsageError(
                f"timeout: {timeout}, must be a positive number of seconds", reason="out_of_range"
            )
        self._timeout = timeout
        self._context = context

    def __call__(self, url: str) -> Response:
        """Return the response to a GET of `url`, of any status.

        Raises:
            CollateralError: If the response is missing, truncated, malformed, too large or too
                late, or `url` is not an http or https URL. The message names the URL.
        """
        connection = self._connection(url)
        deadline = time.monotonic() + self._timeout
        with contextlib.closing(connection):
            try:
                return _exchange(connection, _target(urlsplit(url)), deadline)
            except (_TooLargeError, OSError, HTTPException, ValueError) as error:
                reason, problem = self._describe(error)
                raise CollateralError(f"{url}: {problem}", reason=reason) from error

    def _describe(self, error: Exception) -> "tuple[CollateralReason, str]":
        """Return reason and text of an error of the exchange."""
        if isinstance(error, _TooLargeError):
            return "too_large", f"response is {error}; check that the URL is that of a PCCS"
        if isinstance(error, TimeoutError):
            return (
                "fetch_failed",
                f"no response within {self._timeout:g} s; check that the service runs",
            )
        if isinstance(error, ssl.SSLError):
            problem = error.reason or type(error).__name__
            return (
                "fetch_failed",
                f"TLS failed: {problem}; pass a private CA in the context of HttpGetter",
            )
        if isinstance(error, OSError):
            return (
                "fetch_failed",
                f"{error.strerror or error}; check the URL, and that the service runs",
            )
        # HTTPException, or ValueError: invalid host name
        return (
            "malformed",
            f"invalid HTTP response ({type(error).__name__}); check that the URL is that of a PCCS",
        )

    def _connection(self, url: str) -> HTTPConnection:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise CollateralError(f"{url}: not a valid URL", reason="fetch_failed") from error
        if not host or "@" in parts.netloc:
            raise CollateralError(
                f"{url}: must have a host and no user name", reason="fetch_failed"
            )
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


class _TooLargeError(Exception):
    """The response exceeds its limits."""


def _exchange(connection: HTTPConnection, target: str, deadline: float) -> Response:
    connection.connect()
    sock: socket.socket = connection.sock
    sock.settimeout(_left(deadline))
    connection.request("GET", target, headers=_HEADERS)
    # Not read by the connection, whose limits are per line and per read.
    bounded = cast("socket.socket", _BoundedSocket(sock, deadline))
    response = HTTPResponse(bounded, method="GET")
    with contextlib.closing(response):
        response.begin()
        if (response.length or 0) > BODY_LIMIT:
            raise _TooLargeError(f"over {BODY_LIMIT} bytes")
        body = response.read(BODY_LIMIT + 1)
        if len(body) > BODY_LIMIT:
            raise _TooLargeError(f"over {BODY_LIMIT} bytes")
        if response.length:  # bytes that are missing
            raise HTTPException("body truncated")
        headers: dict[str, str] = {}
        for name, value in response.getheaders():
            known = headers.get(name.lower())
            text = value.strip()
            headers[name.lower()] = text if known is None else f"{known}, {text}"
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise HTTPException("content encoding not requested")
        return Response(response.status, headers, body)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class _BoundedSocket:
    """Socket for HTTPResponse, with one deadline and one size limit for all reads."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._deadline = deadline

    def makefile(self, _mode: str) -> io.BufferedReader:
        """Return a bounded reader."""
        raw = self._sock.makefile("rb", buffering=0)  # survives the connection
        return io.BufferedReader(_BoundedReader(raw, self._wait))

    def _wait(self) -> None:
        self._sock.settimeout(_left(self._deadline))


class _BoundedReader(io.RawIOBase):
    def __init__(self, raw: socket.SocketIO, before_read: Callable[[], None]) -> None:
        self._raw = raw
        self._before_read = before_read
        self._left = HEAD_LIMIT + BODY_LIMIT

    def readable(self) -> bool:
        """Return true."""
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Read some bytes within the deadline and the size limit."""
        self._before_read()
        size = self._raw.readinto(buffer) or 0
        self._left -= size
        if self._left < 0:
            raise _TooLargeError(f"over {BODY_LIMIT} bytes")
        return size

    def close(self) -> None:
        """Close the socket's reader."""
        self._raw.close()
        super().close()
