"""Getting a URL with nothing but the standard library, from a server that nobody trusts.

Plain http is allowed as well as https: collateral is signed, and whoever sits in between can only
withhold it, or replay what holds still. Certificates of https are verified against the system's
authorities.
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

__all__ = ["HttpGetter"]

HEAD_LIMIT: Final = 128 * 1024  # bytes of status, headers and the framing of a body
_HEADERS: Final = {
    "Accept": "*/*",
    "Accept-Encoding": "identity",
    "Connection": "close",
    "User-Agent": "attestkit",
}


class HttpGetter:
    """A getter over http and https.

    Redirects are not followed, cookies and credentials not sent, and proxies of the environment
    (`HTTPS_PROXY` and the like) not used: where one is needed, hand in another getter. An answer is
    at most 1 MiB, behind at most 128 KiB of headers.

    Args:
        timeout: Seconds for the whole of an answer. Looking up the name comes on top, and so does
            every address of a host that does not connect.
        context: Verifies https; None is the default context of `ssl`.

    Raises:
        UsageError: `timeout` is not positive.
    """

    def __init__(self, timeout: float = 10.0, *, context: ssl.SSLContext | None = None) -> None:
        if not timeout > 0:
            raise UsageError(f"a timeout is a positive number of seconds, not {timeout}")
        self._timeout = timeout
        self._context = context

    def __call__(self, url: str) -> Response:
        """Return the answer to a GET of `url`, whatever its status.

        Raises:
            CollateralError: There is no answer, it is cut or malformed, too large or too late, or
                `url` is no http or https URL. The text names the URL.
        """
        connection = self._connection(url)
        deadline = time.monotonic() + self._timeout
        with contextlib.closing(connection):
            try:
                return _exchange(connection, _target(urlsplit(url)), deadline)
            except _TooLargeError as error:
                raise CollateralError(f"{url}: the answer is {error}: is this a PCCS?") from error
            except TimeoutError as error:
                raise CollateralError(
                    f"{url}: no answer within {self._timeout:g} s: check that the service runs, "
                    "and that this machine can reach it"
                ) from error
            except ssl.SSLError as error:
                raise CollateralError(
                    f"{url}: TLS failed: {error.reason or type(error).__name__}: check the "
                    "service's certificate; a private authority goes into a getter's context"
                ) from error
            except OSError as error:
                raise CollateralError(
                    f"{url}: {error.strerror or error}: check the URL, and that the service runs"
                ) from error
            except (HTTPException, ValueError) as error:  # ValueError: a name that is none
                raise CollateralError(
                    f"{url}: it does not answer as HTTP does ({type(error).__name__}): "
                    "is this a PCCS?"
                ) from error

    def _connection(self, url: str) -> HTTPConnection:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise CollateralError(f"{url}: not a URL") from error
        if not host or "@" in parts.netloc:
            raise CollateralError(f"{url}: not a URL with a host alone")
        if parts.scheme == "http":
            return HTTPConnection(host, port, timeout=self._timeout)
        if parts.scheme == "https":
            if self._context is None:
                self._context = ssl.create_default_context()  # kept: it takes a while to make
            return HTTPSConnection(host, port, timeout=self._timeout, context=self._context)
        raise CollateralError(f"{url}: only http and https are fetched")


def _target(parts: SplitResult) -> str:
    path = parts.path or "/"
    return f"{path}?{parts.query}" if parts.query else path


class _TooLargeError(Exception):
    """The server sent more than it may."""


def _exchange(connection: HTTPConnection, target: str, deadline: float) -> Response:
    connection.connect()
    sock: socket.socket = connection.sock
    sock.settimeout(_left(deadline))
    connection.request("GET", target, headers=_HEADERS)
    # Read by ourselves and not by the connection, whose bounds are per line and per read.
    bounded = cast("socket.socket", _BoundedSocket(sock, deadline))
    response = HTTPResponse(bounded, method="GET")
    with contextlib.closing(response):
        response.begin()
        if (response.length or 0) > BODY_LIMIT:
            raise _TooLargeError(f"over {BODY_LIMIT} bytes")
        body = response.read(BODY_LIMIT + 1)
        if len(body) > BODY_LIMIT:
            raise _TooLargeError(f"over {BODY_LIMIT} bytes")
        if response.length:  # what should have followed
            raise HTTPException("the body is cut")
        headers: dict[str, str] = {}
        for name, value in response.getheaders():
            known = headers.get(name.lower())
            text = value.strip()
            headers[name.lower()] = text if known is None else f"{known}, {text}"
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise HTTPException("a content encoding that was not asked for")
        return Response(response.status, headers, body)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class _BoundedSocket:
    """As much of a socket as HTTPResponse uses, with one deadline and one bound for all reads."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._deadline = deadline

    def makefile(self, _mode: str) -> io.BufferedReader:
        """Return what reads."""
        raw = self._sock.makefile("rb", buffering=0)  # outlives the connection's own close
        return io.BufferedReader(_BoundedReader(raw, self._wait))

    def _wait(self) -> None:
        self._sock.settimeout(_left(self._deadline))


class _BoundedReader(io.RawIOBase):
    def __init__(self, raw: socket.SocketIO, before_read: Callable[[], None]) -> None:
        self._raw = raw
        self._before_read = before_read
        self._left = HEAD_LIMIT + BODY_LIMIT

    def readable(self) -> bool:
        """Say that it reads."""
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Read some bytes, if there is time and room for them."""
        self._before_read()
        size = self._raw.readinto(buffer) or 0
        self._left -= size
        if self._left < 0:
            raise _TooLargeError(f"over {BODY_LIMIT} bytes")
        return size

    def close(self) -> None:
        """Let go of the socket."""
        self._raw.close()
        super().close()
