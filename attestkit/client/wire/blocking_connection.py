"""TLS connections of the client's own, over a socket, to ask for evidence."""

import socket
import ssl
import time
from base64 import b64encode
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException
from typing import Final
from urllib.parse import unquote, urlsplit

from attestkit._sanitize import one_line
from attestkit._system.bounded_http import connect_tcp
from attestkit.errors import ServiceError, UsageError

_SHORTEST: Final = 0.001  # seconds; 0 would make a socket non-blocking


class SocketChannel:
    """The I/O of a socket, for `drive`: by the methods of SSLSocket.

    Those of `ProvenSocket` wait for the proof, whose steps this channel performs.
    """

    def __init__(self, connection: ssl.SSLSocket) -> None:
        self._connection = connection

    def send(self, data: bytes, seconds: float) -> None:
        """Send all of the bytes."""
        self._connection.settimeout(max(seconds, _SHORTEST))
        view = memoryview(data)
        while view:
            view = view[ssl.SSLSocket.send(self._connection, view) :]

    def receive(self, limit: int, seconds: float) -> bytes:
        """Receive 1 to `limit` bytes; nothing at the end of the stream."""
        self._connection.settimeout(max(seconds, _SHORTEST))
        data: bytes = ssl.SSLSocket.read(self._connection, limit)
        return data


class NoChannel:
    """The I/O of steps that neither send nor receive."""

    def send(self, data: bytes, seconds: float) -> None:
        """Raise OSError."""
        del data, seconds
        raise OSError("no connection")

    def receive(self, limit: int, seconds: float) -> bytes:
        """Raise OSError."""
        del limit, seconds
        raise OSError("no connection")


def open_tls(
    host: str, port: int, context: ssl.SSLContext, *, proxy: str | None, seconds: float
) -> ssl.SSLSocket:
    """Return a connection whose handshake has finished; nothing is known of the peer.

    Args:
        host: Name or address, without brackets.
        port: Port.
        context: Context of `tls_context`.
        proxy: URL of an HTTP proxy, which is asked for a tunnel (CONNECT); None for none.
        seconds: Limit for connection and handshake.

    Raises:
        ServiceError: If the connection fails (reason `connection` or `timeout`).
        ssl.SSLCertVerificationError: If the server's certificate is not accepted.
        UsageError: If the proxy's URL is not valid.
    """
    deadline = time.monotonic() + seconds
    where = f"{host}:{port}"

    def time_left() -> float:
        return max(deadline - time.monotonic(), _SHORTEST)

    plain: socket.socket | None = None
    try:
        plain = _connect(host, port, proxy, time_left)
        plain.settimeout(time_left())
        return context.wrap_socket(plain, server_hostname=host, suppress_ragged_eofs=False)
    except ssl.SSLCertVerificationError:
        raise
    except TimeoutError as error:
        message = f"{where}: no connection within {seconds:g} s"
        raise ServiceError(message, reason="timeout") from error
    except (OSError, HTTPException) as error:
        text = getattr(error, "reason", None) or getattr(error, "strerror", None)
        problem = one_line(str(text or type(error).__name__), 100)
        raise ServiceError(f"{where}: no connection: {problem}", reason="connection") from error
    finally:
        if plain is not None:
            plain.close()  # of a failed handshake; else wrap_socket has taken the descriptor


def _connect(
    host: str, port: int, proxy: str | None, time_left: Callable[[], float]
) -> socket.socket:
    if proxy is None:
        direct = connect_tcp(host, port, time_left(), time_left)
        # Else the question waits until the server has acknowledged the end of the handshake.
        direct.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return direct
    proxy_host, proxy_port, headers = _proxy_address(proxy)
    tunnel = HTTPConnection(proxy_host, proxy_port, timeout=time_left())
    tunnel.set_tunnel(host, port, headers)
    try:
        tunnel.connect()
    except BaseException:
        tunnel.close()
        raise
    return tunnel.sock


def _proxy_address(proxy: str) -> tuple[str, int, dict[str, str]]:
    """Return host and port of a proxy, and the headers with its user and password, if any."""
    message = "proxy: must be http://HOST:PORT"
    try:
        parts = urlsplit(proxy)
        host, port = parts.hostname, parts.port or 80
    except ValueError as error:
        raise UsageError(message, reason="wrong_value") from error
    if parts.scheme != "http" or not host:
        raise UsageError(message, reason="wrong_value")
    if parts.username is None:
        return host, port, {}
    user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return host, port, {"Proxy-Authorization": f"Basic {b64encode(user.encode()).decode()}"}
