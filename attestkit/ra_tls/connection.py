"""TLS connections that judge the peer's certificate before a byte of theirs or ours gets through.

Python's ssl has no callback for certificates, so the check is the last part of the handshake here.
OpenSSL also does a handshake inside the first read or write if nobody has asked for one; so every
way to the data asks for it first, and passes only once there is a result. What the peer sends
together with the end of its handshake stays unread, and is gone with the connection.

In TLS 1.3 a client is done before the server has seen its certificate. A refused client therefore
learns so with its first read, or a later write: sockets raise a ConnectionResetError that says so,
streams of an event loop are at their end.
"""

import contextlib
import errno
import logging
import socket
import ssl
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from attestkit.errors import AttestKitError, UsageError, VerificationError
from attestkit.ra_tls.certificate import verify

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

    from attestkit.verifier import AttestationResult, Verifier

__all__ = ["AttestedObject", "AttestedSocket", "PeerRefusedError", "peer"]

_logger = logging.getLogger("attestkit.ra_tls")
_APPLICATION_VERIFICATION: Final = 50  # X509_V_ERR_APPLICATION_VERIFICATION of OpenSSL
_BROKEN_OFF: Final = {ssl.SSL_ERROR_EOF, ssl.SSL_ERROR_SYSCALL}
_UNEXPECTED_EOF: Final = "UNEXPECTED_EOF_WHILE_READING"
_RESET: Final = struct.pack("ii", 1, 0)  # struct linger: on, no seconds


class PeerRefusedError(AttestKitError, ssl.SSLCertVerificationError):
    """The other side of a TLS connection is not who we accept; nothing was exchanged with it.

    An `ssl.SSLError`, so that asyncio and HTTP libraries take it for a failed handshake. `reason`
    is that of the refusal, which is `__cause__`.
    """


def peer(connection: object) -> "AttestationResult":
    """Return the result for the other side of a connection.

    Args:
        connection: An SSLSocket or SSLObject, or what knows one by its `get_extra_info`: a
            transport or StreamWriter of asyncio or uvloop, and httpx's
            `response.extensions["network_stream"]`.

    Raises:
        UsageError: It is no connection of `server_context` with a verifier or `client_context`, or
            its handshake is not over.
    """
    known = [connection]
    if (find := getattr(connection, "get_extra_info", None)) is not None:
        known = [find("ssl_object"), find("socket")]  # the latter is an SSLSocket in httpcore
    found = next((one for one in known if isinstance(one, _Attested)), None)
    if found is None:
        raise UsageError("nobody's evidence was asked for: this connection has no such context")
    result = found.attested_peer
    if result is None:
        raise UsageError("the peer's evidence is checked by the handshake, which is not over")
    return result


class _Attested:
    """What is known of the peer, for both kinds of connections."""

    _verifier: "Verifier"  # of the context
    _result: "AttestationResult | None" = None
    _refused: tuple[str, str] | None = None  # text and reason

    @property
    def attested_peer(self) -> "AttestationResult | None":
        """The result for the other side; None until the handshake is over."""
        return self._result

    def _check(self, connection: ssl.SSLSocket | ssl.SSLObject) -> None:
        """Judge the peer, once; its key has signed this very handshake.

        Raises:
            PeerRefusedError: It is refused, for good.
        """
        try:
            self._result = self._judge(connection)
        except Exception as error:  # whatever it is, nobody has been accepted
            known = isinstance(error, AttestKitError)
            text = str(error) if known else f"the check failed ({type(error).__name__})"
            self._refused = text, getattr(error, "reason", "") if known else "internal"
            _logger.info("TLS peer refused: %r", text)  # quoted: parts may be the peer's own words
            raise _refusal(*self._refused) from error

    def _judge(self, connection: ssl.SSLSocket | ssl.SSLObject) -> "AttestationResult":
        certificate = connection.getpeercert(binary_form=True)
        if not certificate:
            raise VerificationError("the peer showed no certificate", reason="no_certificate")
        if connection.session_reused:  # then the certificate is remembered, not shown
            raise VerificationError(
                "the peer resumed an older session, which proves no key: connect anew",
                reason="session_reused",
            )
        return verify(certificate, self._verifier)

    def _raise_if_refused(self) -> None:
        if self._refused is not None:
            raise _refusal(*self._refused)


def _refusal(text: str, reason: str) -> PeerRefusedError:
    # Two arguments as of OpenSSL's own errors: asyncio and anyio look at errno and strerror.
    error = PeerRefusedError(ssl.SSL_ERROR_SSL.value, f"the TLS peer is refused: {text}")
    error.library, error.reason = "attestkit", reason
    error.verify_code, error.verify_message = _APPLICATION_VERIFICATION, text
    return error


def _broke_off(error: OSError) -> bool:
    """Tell whether the other side is gone: the system's word, which OpenSSL may pass on as SYS."""
    if isinstance(error, ssl.SSLError):
        return error.errno in _BROKEN_OFF or getattr(error, "library", "") == "SYS"
    return isinstance(error, ConnectionResetError | BrokenPipeError)


@contextlib.contextmanager
def _eof_errors() -> Iterator[None]:
    """Raise SSLEOFError for an end without close_notify, as CPython does since gh-95494.

    Debian 12's Python 3.11.2 with OpenSSL 3 raises a plain SSLError.
    """
    try:
        yield
    except ssl.SSLError as error:
        if isinstance(error, ssl.SSLEOFError) or error.reason != _UNEXPECTED_EOF:
            raise
        raise ssl.SSLEOFError(ssl.SSL_ERROR_EOF.value, error.strerror) from error


class AttestedObject(_Attested, ssl.SSLObject):
    """TLS in memory, for asyncio, uvloop and anyio. Whoever moves its bytes ends the connection."""

    def do_handshake(self) -> None:
        """Do the handshake as far as it gets; where it ends, judge the peer."""
        self._raise_if_refused()
        with _eof_errors():
            super().do_handshake()
        if self._result is None:
            self._check(self)

    def _ready(self) -> None:
        if self._result is None:
            self.do_handshake()

    def read(self, len: int = 1024, buffer: "WriteableBuffer | None" = None) -> Any:
        """Read as any SSLObject, after the check."""
        self._ready()
        with _eof_errors():
            return super().read(len, buffer)

    def write(self, data: "ReadableBuffer") -> int:
        """Write as any SSLObject, after the check."""
        self._ready()
        return super().write(data)

    def verify_client_post_handshake(self) -> None:
        """Refuse: another certificate would take the place of the one that was judged."""
        raise UsageError("a client's evidence is asked for in the handshake only")


class AttestedSocket(_Attested, ssl.SSLSocket):
    """TLS on a socket. It is reset and closed where the peer is refused.

    Without TLS it neither sends nor receives: not while it is not connected, not once `shutdown`
    has dropped the TLS layer. Only after `unwrap` it is a plain socket, as any SSLSocket.
    """

    _connected: bool  # of SSLSocket; missing until it has looked at the socket it is made of
    _sslobj: object  # of SSLSocket; None without TLS
    suppress_ragged_eofs: bool  # of SSLSocket, from wrap_socket
    _plain = False
    _heard = False

    def do_handshake(self, block: bool = False) -> None:
        """Do the handshake, or as much as is possible without blocking, and judge the peer."""
        self._raise_if_refused()
        self._refuse_plaintext()
        with _eof_errors():
            super().do_handshake(block)
        if self._result is not None:
            return
        try:
            self._check(self)
        except BaseException:
            # A reset tells the peer that this is no end of what it might have been waiting for.
            with contextlib.suppress(OSError):
                self.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.close()
            raise

    def _ready(self) -> None:
        if self._result is not None and self._sslobj is not None:
            return
        # SSLSocket itself looks for data on a socket that is not connected, when it is made.
        if self._plain or not hasattr(self, "_connected"):
            return
        self.do_handshake()

    def _refuse_plaintext(self) -> None:
        if self._sslobj is None:
            raise OSError(
                errno.ENOTCONN, "the socket has no TLS connection, and does not do without"
            )

    def read(self, len: int = 1024, buffer: "WriteableBuffer | None" = None) -> Any:
        """Read as any SSLSocket, after the check.

        Raises:
            ConnectionResetError: The server has not said a word, and not closed in order either.
        """
        self._ready()
        if self._heard or self.server_side:
            return self._read(len, buffer)
        # ssl takes a reset for an end, and hides that; it is how a client learns of its refusal.
        hide, self.suppress_ragged_eofs = self.suppress_ragged_eofs, False
        try:
            with self._first_word():
                got = self._read(len, buffer)
        finally:
            self.suppress_ragged_eofs = hide
        self._heard = True
        return got

    def _read(self, len: int, buffer: "WriteableBuffer | None") -> Any:
        try:
            with _eof_errors():
                return super().read(len, buffer)
        except ssl.SSLEOFError:
            if not self.suppress_ragged_eofs:
                raise
            return b"" if buffer is None else 0

    def write(self, data: "ReadableBuffer") -> int:
        """Write as any SSLSocket, after the check."""
        self._ready()
        with self._first_word(), _eof_errors():
            return super().write(data)

    @contextlib.contextmanager
    def _first_word(self) -> Iterator[None]:
        """Say what it may mean that a server breaks off before it has said a word."""
        try:
            yield
        except OSError as error:
            if self._heard or self.server_side or not _broke_off(error):
                raise
            text = "the server broke off before it said anything: it may have refused us"
            raise ConnectionResetError(errno.ECONNRESET, text) from error

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """Receive, after the check."""
        self._ready()
        return super().recv(buflen, flags)

    def recv_into(
        self, buffer: "WriteableBuffer", nbytes: int | None = None, flags: int = 0
    ) -> int:
        """Receive into a buffer, after the check."""
        self._ready()
        return super().recv_into(buffer, nbytes, flags)

    def recvfrom(self, buflen: int = 1024, flags: int = 0) -> tuple[bytes, Any]:
        """Refuse, as any SSLSocket."""
        self._ready()
        return super().recvfrom(buflen, flags)

    def recvfrom_into(
        self, buffer: "WriteableBuffer", nbytes: int | None = None, flags: int = 0
    ) -> tuple[int, Any]:
        """Refuse, as any SSLSocket."""
        self._ready()
        return super().recvfrom_into(buffer, nbytes, flags)

    def send(self, data: "ReadableBuffer", flags: int = 0) -> int:
        """Send, after the check."""
        self._ready()
        with self._first_word(), _eof_errors():
            return super().send(data, flags)

    def sendall(self, data: "ReadableBuffer", flags: int = 0) -> None:
        """Send everything, after the check."""
        self._ready()
        super().sendall(data, flags)

    def sendto(self, *arguments: Any, **named: Any) -> int:
        """Refuse, as any SSLSocket."""
        self._ready()
        return super().sendto(*arguments, **named)

    def sendfile(self, *arguments: Any, **named: Any) -> int:
        """Send a file, after the check."""
        self._ready()
        return super().sendfile(*arguments, **named)

    def unwrap(self) -> socket.socket:
        """End TLS in order; what is sent and received afterwards is plain."""
        self._ready()
        found = super().unwrap()
        self._plain = True
        return found

    def verify_client_post_handshake(self) -> None:
        """Refuse: another certificate would take the place of the one that was judged."""
        raise UsageError("a client's evidence is asked for in the handshake only")
