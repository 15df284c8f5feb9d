"""TLS connections that verify the peer's evidence before application data is exchanged.

Python's ssl module has no callback for certificates, so the evidence is verified at the end of the
handshake. OpenSSL also performs a pending handshake inside the first read or write; therefore every
method that reads or writes completes handshake and verification first. Data that a rejected peer
sends with the end of its handshake is discarded unread.

In TLS 1.3 the client finishes the handshake before the server has received its certificate. A
client that the server rejects gets the error from its first read or a later write: sockets raise
ConnectionResetError, streams of an event loop are at EOF.
"""

# The list of reasons of a class is a part of that of its base.
# pyright: reportIncompatibleVariableOverride=false

import contextlib
import errno
import logging
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Final

from attestkit.errors import AttestKitError, UsageError, VerificationError
from attestkit.ra_tls.certificate import MAX_LIFETIME, verify

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

    from attestkit.verifier import AttestationResult, Verifier

_logger = logging.getLogger("attestkit.ra_tls")
_APPLICATION_VERIFICATION: Final = 50  # X509_V_ERR_APPLICATION_VERIFICATION of OpenSSL
_CLOSED_BY_PEER: Final = {ssl.SSL_ERROR_EOF, ssl.SSL_ERROR_SYSCALL}
_NO_LATER_CERTIFICATE: Final = "post-handshake authentication: not available with attested TLS"
_UNEXPECTED_EOF: Final = "UNEXPECTED_EOF_WHILE_READING"
_RESET: Final = struct.pack("ii", 1, 0)  # struct linger: on, 0 s


class PeerRefusedError(AttestKitError, ssl.SSLCertVerificationError):
    """Verification of a TLS peer's evidence failed; no application data was exchanged.

    An `ssl.SSLError`, so that asyncio and HTTP libraries treat it as a failed handshake. The error
    of the verification is `__cause__`, and `reason` is its reason; "internal" if the cause is not
    an AttestKitError.
    """

    verify_code: int
    verify_message: str

    def __init__(self, message: str, *, reason: str) -> None:
        # errno and strerror as in errors of OpenSSL, for asyncio and anyio.
        text = f"TLS peer refused: {message}"
        ssl.SSLCertVerificationError.__init__(self, ssl.SSL_ERROR_SSL.value, text)
        self._reason = reason
        self.library = "attestkit"
        self.verify_code, self.verify_message = _APPLICATION_VERIFICATION, message

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle message and reason."""
        return partial(type(self), reason=self.reason), (self.verify_message,)


def peer(connection: object) -> "AttestationResult":
    """Return the attestation result of a connection's peer.

    Args:
        connection: An SSLSocket or SSLObject, or an object that returns one from `get_extra_info`:
            a transport or StreamWriter of asyncio or uvloop, or httpx's
            `response.extensions["network_stream"]`.

    Raises:
        UsageError: If the connection does not use `client_context`, or `server_context` with a
            verifier (reason `not_applicable`), or its handshake has not finished (`not_ready`).
    """
    candidates = [connection]
    if (find := getattr(connection, "get_extra_info", None)) is not None:
        candidates = [find("ssl_object"), find("socket")]  # in httpcore, the socket is an SSLSocket
    found = next((one for one in candidates if isinstance(one, _Attested)), None)
    if found is None:
        message = "connection: the peer's evidence was not verified; use a context of ra_tls"
        raise UsageError(message, reason="not_applicable")
    result = found.attested_peer
    if result is None:
        message = "connection: its TLS handshake must have finished"
        raise UsageError(message, reason="not_ready")
    return result


def peer_certificate(connection: Any) -> bytes:
    """Return the peer's certificate (DER), of whose private key this handshake shows possession.

    Args:
        connection: SSLSocket or SSLObject after its handshake; or an object of the `_ssl` module.

    Raises:
        VerificationError: If the peer sent none (reason `no_certificate`), or resumed a session
            (`session_reused`).
    """
    certificate: bytes | None = connection.getpeercert(True)  # _SSLSocket takes no keyword
    if not certificate:
        raise VerificationError("TLS peer: sent no certificate", reason="no_certificate")
    if connection.session_reused:  # the certificate is that of the original session
        message = "TLS peer: resumed a session, which does not prove the key; connect anew"
        raise VerificationError(message, reason="session_reused")
    return certificate


class _Attested:
    """State of the peer's verification: common base of AttestedObject and AttestedSocket."""

    _verifier: "Verifier"  # of the context
    _max_lifetime: timedelta | None = MAX_LIFETIME
    _result: "AttestationResult | None" = None
    _refused: tuple[str, str] | None = None  # text and reason

    @property
    def attested_peer(self) -> "AttestationResult | None":
        """Attestation result of the peer; None until the handshake has finished."""
        return self._result

    def _check(self, connection: ssl.SSLSocket | ssl.SSLObject) -> None:
        """Verify the peer's evidence after the handshake, which has verified the peer's key.

        Raises:
            PeerRefusedError: If verification fails; later calls then raise it again.
        """
        try:
            self._result = self._verify_peer(connection)
        except Exception as error:  # any error rejects the peer
            known = isinstance(error, AttestKitError)
            text = str(error) if known else f"verification failed ({type(error).__name__})"
            self._refused = text, error.reason if isinstance(error, AttestKitError) else "internal"
            _logger.info("TLS peer refused: %r", text)  # quoted: the peer may control parts of it
            raise PeerRefusedError(text, reason=self._refused[1]) from error

    def _verify_peer(self, connection: ssl.SSLSocket | ssl.SSLObject) -> "AttestationResult":
        certificate = peer_certificate(connection)
        return verify(certificate, self._verifier, max_lifetime=self._max_lifetime)

    def verify_client_post_handshake(self) -> None:
        """Raise UsageError: a later certificate of the client would replace the verified one."""
        raise UsageError(_NO_LATER_CERTIFICATE, reason="not_applicable")

    def _raise_if_refused(self) -> None:
        if self._refused is not None:
            text, reason = self._refused
            raise PeerRefusedError(text, reason=reason)


def _is_closed_by_peer(error: OSError) -> bool:
    """Return whether an error means that the peer closed or reset the connection."""
    if isinstance(error, ssl.SSLError):
        return error.errno in _CLOSED_BY_PEER or getattr(error, "library", "") == "SYS"
    return isinstance(error, ConnectionResetError | BrokenPipeError)


@contextlib.contextmanager
def _eof_errors() -> Iterator[None]:
    """Context manager: raise SSLEOFError for an end without close_notify, as newer CPython does.

    It changed with gh-95494; Debian 12's Python 3.11.2 with OpenSSL 3 raises a plain SSLError.
    """
    try:
        yield
    except ssl.SSLError as error:
        if isinstance(error, ssl.SSLEOFError) or error.reason != _UNEXPECTED_EOF:
            raise
        raise ssl.SSLEOFError(ssl.SSL_ERROR_EOF.value, error.strerror) from error


class AttestedObject(_Attested, ssl.SSLObject):
    """SSLObject that verifies the peer's evidence after the handshake.

    For asyncio, uvloop and anyio, which close the connection after an error.
    """

    def do_handshake(self) -> None:
        """Continue the handshake; verify the peer when it has finished.

        Raises:
            PeerRefusedError: If the verification fails; reads and writes then raise it, too.
        """
        self._raise_if_refused()
        with _eof_errors():
            super().do_handshake()
        if self._result is None:
            self._check(self)

    def _ready(self) -> None:
        if self._result is None:
            self.do_handshake()

    def read(self, len: int = 1024, buffer: "WriteableBuffer | None" = None) -> Any:
        """Read up to `len` bytes, into `buffer` unless it is None, after the peer is verified.

        The result is as of `ssl.SSLObject.read`: the bytes, or the number of them in `buffer`.
        """
        self._ready()
        with _eof_errors():
            return super().read(len, buffer)

    def write(self, data: "ReadableBuffer") -> int:
        """Write `data` after the peer is verified; return the number of bytes written."""
        self._ready()
        return super().write(data)


class AttestedSocket(_Attested, ssl.SSLSocket):
    """SSLSocket that verifies the peer's evidence after the handshake; closed if it is rejected.

    It does not send or receive plaintext before it is connected, nor after `shutdown`, which drops
    the TLS layer of an SSLSocket. After `unwrap` it is a plain socket, as any SSLSocket.
    """

    _connected: bool  # of SSLSocket; not set while SSLSocket examines the wrapped socket
    _sslobj: object  # of SSLSocket; None without TLS
    suppress_ragged_eofs: bool  # of SSLSocket, from wrap_socket
    _is_plain = False  # after `unwrap`
    _has_received = False

    def do_handshake(self, block: bool = False) -> None:
        """Perform the handshake, or a part of it if non-blocking, and verify the peer.

        Raises:
            PeerRefusedError: If the verification fails; reads and writes then raise it, too.
            OSError: If the TLS handshake fails, or the socket is not connected: before `connect`,
                or after `shutdown`.
        """
        self._raise_if_refused()
        self._refuse_plaintext()
        with _eof_errors():
            super().do_handshake(block)
        if self._result is not None:
            return
        try:
            self._check(self)
        except BaseException:
            # Reset the connection, so that the peer does not take its end for a regular EOF.
            with contextlib.suppress(OSError):
                self.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.close()
            raise

    def _ready(self) -> None:
        if self._result is not None and self._sslobj is not None:
            return
        # The constructor of SSLSocket reads from a socket that is not connected.
        if self._is_plain or not hasattr(self, "_connected"):
            return
        self.do_handshake()

    def _refuse_plaintext(self) -> None:
        if self._sslobj is None:
            message = "socket: no TLS connection; plaintext is neither sent nor received"
            raise OSError(errno.ENOTCONN, message)

    def read(self, len: int = 1024, buffer: "WriteableBuffer | None" = None) -> Any:
        """Read up to `len` bytes, into `buffer` unless it is None, after the peer is verified.

        The result is as of `ssl.SSLSocket.read`: the bytes, or the number of them in `buffer`.

        Raises:
            ConnectionResetError: If the server closed the connection abruptly before it sent data.
        """
        self._ready()
        if self._has_received or self.server_side:
            return self._read(len, buffer)
        # By default ssl reports a reset as EOF, but it means that the server rejected the client.
        suppress, self.suppress_ragged_eofs = self.suppress_ragged_eofs, False
        try:
            with self._explain_reset():
                data = self._read(len, buffer)
        finally:
            self.suppress_ragged_eofs = suppress
        self._has_received = True
        return data

    def _read(self, len: int, buffer: "WriteableBuffer | None") -> Any:
        try:
            with _eof_errors():
                return super().read(len, buffer)
        except ssl.SSLEOFError:
            if not self.suppress_ragged_eofs:
                raise
            return b"" if buffer is None else 0

    def write(self, data: "ReadableBuffer") -> int:
        """Write `data` after the peer is verified; return the number of bytes written."""
        self._ready()
        with self._explain_reset(), _eof_errors():
            return super().write(data)

    @contextlib.contextmanager
    def _explain_reset(self) -> Iterator[None]:
        """Context manager: raise ConnectionResetError if the server closes before it sends data."""
        try:
            yield
        except OSError as error:
            if self._has_received or self.server_side or not _is_closed_by_peer(error):
                raise
            text = (
                "server closed the connection before it sent data; it may have refused the "
                "client's certificate or evidence"
            )
            raise ConnectionResetError(errno.ECONNRESET, text) from error

    def send(self, data: "ReadableBuffer", flags: int = 0) -> int:
        """Send `data` after the peer is verified; return the number of bytes sent.

        `flags` must be 0, as in `ssl.SSLSocket.send`.
        """
        self._ready()
        with self._explain_reset(), _eof_errors():
            return super().send(data, flags)

    def unwrap(self) -> socket.socket:
        """Close the TLS layer; return the socket, which transfers plaintext from now on."""
        self._ready()
        plain = super().unwrap()
        self._is_plain = True
        return plain


def _when_verified(name: str) -> Callable[..., Any]:
    """Return the method `name` of SSLSocket, which completes handshake and verification first."""
    method = getattr(ssl.SSLSocket, name)

    @wraps(method)
    def run(self: AttestedSocket, *arguments: Any, **named: Any) -> Any:
        self._ready()
        return method(self, *arguments, **named)

    return run


# The other methods that transfer data. recvfrom, recvfrom_into and sendto then raise ValueError.
for _name in ("recv", "recv_into", "recvfrom", "recvfrom_into", "sendall", "sendfile", "sendto"):
    setattr(AttestedSocket, _name, _when_verified(_name))
