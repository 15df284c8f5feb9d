"""TLS of the client: contexts (TLS 1.3, HTTP/1.1, no session resumption), and connections.

Neither SSLKEYLOGFILE nor the variables of HTTP clients that name CAs have an effect; SSL_CERT_FILE
and SSL_CERT_DIR, which OpenSSL reads itself, do.
"""

import socket
import ssl
import time
from typing import Final

from attestkit._argument_checks import wrong_type
from attestkit._formats.host_names import read_proxy
from attestkit._sanitize import one_line
from attestkit._system.bounded_http import TimeLeft, connect_tcp, open_tunnel
from attestkit.errors import ServiceError
from attestkit.ra_tls.contexts import load_authorities

_OPTIONS: Final = ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION


def tls_context(server_ca: str | bytes | None = None, *, webpki: bool = True) -> ssl.SSLContext:
    """Return a client's SSLContext for TLS 1.3 and HTTP/1.1, without session resumption.

    Args:
        server_ca: CA certificates in PEM; the server's certificate chain must lead to one of them.
            None: those of the system, or without `webpki` any chain.
        webpki: Whether the server's name and chain are verified; off for RA-TLS alone, whose
            certificates are self-issued.

    Raises:
        FormatError: If `server_ca` is not PEM, or a certificate in it is malformed.
    """
    # Not create_default_context, which writes keys to SSLKEYLOGFILE.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.options |= _OPTIONS
    # Python 3.11.2 sets it with OpenSSL 3, and then a truncated stream ends in order (gh-95494).
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    context.set_alpn_protocols(["http/1.1"])
    if not webpki:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if server_ca is not None:
        load_authorities(context, server_ca)
    elif webpki:
        _load_system_authorities(context)
    return context


def _load_system_authorities(context: ssl.SSLContext) -> None:
    paths = ssl.get_default_verify_paths()
    context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    if not (paths.cafile or paths.capath or context.get_ca_certs()):
        try:
            import certifi  # lazy: of httpx; for systems whose OpenSSL knows no CAs
        except ImportError:
            return  # each server is refused
        context.load_verify_locations(certifi.where())


def require_plain_context(context: object) -> None:
    """Raise UsageError unless a context is a plain one, as `tls_context` returns it."""
    if not isinstance(context, ssl.SSLContext) or context.sslsocket_class is not ssl.SSLSocket:
        raise wrong_type("context", "a context of tls_context", context)


_SHORTEST: Final = 0.001  # seconds; 0 would make a socket non-blocking


class SocketChannel:
    """The I/O of a TLS socket, for `drive`.

    It calls the methods of SSLSocket, not their overrides in `ProvenSocket`, because these wait for
    the verification whose I/O this channel performs.
    """

    def __init__(self, connection: ssl.SSLSocket) -> None:
        self._connection = connection

    def send(self, data: bytes, seconds: float) -> None:
        """Send all of `data`; TimeoutError if one wait takes over `seconds`."""
        self._connection.settimeout(max(seconds, _SHORTEST))
        view = memoryview(data)
        while view:
            view = view[ssl.SSLSocket.send(self._connection, view) :]

    def receive(self, limit: int, seconds: float) -> bytes:
        """Receive 1 to `limit` bytes, none at the stream's end; TimeoutError after `seconds`."""
        self._connection.settimeout(max(seconds, _SHORTEST))
        data: bytes = ssl.SSLSocket.read(self._connection, limit)
        return data


def open_tls(
    host: str, port: int, context: ssl.SSLContext, *, proxy: str | None, seconds: float
) -> ssl.SSLSocket:
    """Return a connection after its TLS handshake; the peer's attestation is not verified.

    Args:
        host: Name or address, without brackets.
        port: Port.
        context: Context of `tls_context`.
        proxy: URL of an HTTP proxy for a tunnel (CONNECT); None: a direct connection.
        seconds: Limit for connection and handshake.

    Raises:
        ServiceError: If the connection fails (reason `connection` or `timeout`).
        ssl.SSLCertVerificationError: If the server's certificate is not accepted.
        UsageError: If the proxy's URL is not valid.
    """
    deadline = time.monotonic() + seconds
    where = f"{host}:{port}"

    def time_left() -> float:
        return deadline - time.monotonic()

    plain: socket.socket | None = None
    try:
        plain = _connect(host, port, proxy, time_left)
        plain.settimeout(max(time_left(), _SHORTEST))
        return context.wrap_socket(plain, server_hostname=host, suppress_ragged_eofs=False)
    except ssl.SSLCertVerificationError:
        raise
    except TimeoutError as error:
        message = f"{where}: no connection within {seconds:g} s"
        raise ServiceError(message, reason="timeout") from error
    except OSError as error:
        text = getattr(error, "reason", None) or getattr(error, "strerror", None)
        problem = one_line(str(text or type(error).__name__), 100)
        raise ServiceError(f"{where}: no connection: {problem}", reason="connection") from error
    finally:
        if plain is not None:
            plain.close()  # of a failed handshake; else wrap_socket has taken the descriptor


def _connect(host: str, port: int, proxy: str | None, time_left: TimeLeft) -> socket.socket:
    if proxy is not None:
        return open_tunnel(host, port, read_proxy(proxy), time_left(), time_left)
    direct = connect_tcp(host, port, time_left(), time_left)
    # Else the question waits until the server has acknowledged the end of the handshake.
    direct.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return direct
