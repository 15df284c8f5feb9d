"""SSL contexts for libraries that open their own connections: aiohttp, websockets, urllib3.

A key is *proven* as long as evidence that was verified and accepted names it. On a blocking socket
the server is verified at the end of the handshake, with a request for evidence if its key is new.
Connections of event loops cannot send one there: they are accepted if their key is proven, and
otherwise refused. The program then verifies the server (`await endpoint.aprove()`) and connects
again.

After a proof has ended, a connection that was opened before it carries no new request of HTTP/1.1,
but finishes the one under way; a WebSocket stays open.
"""

# The attribute of the base class is the result of another verification.
# pyright: reportIncompatibleVariableOverride=false

import logging
import ssl
from typing import TYPE_CHECKING, Any, Final, NoReturn

from attestkit._sanitize import one_line
from attestkit.client.wire.httpcore_streams import observe
from attestkit.client.wire.observed_peer import ObservedPeer
from attestkit.client.wire.pools import ProofPeriod, period
from attestkit.client.wire.steps import ConnectionVerifier, drive
from attestkit.client.wire.tls import SocketChannel, tls_context
from attestkit.errors import AttestKitError, UsageError
from attestkit.ra_tls.connection import AttestedObject, AttestedSocket, PeerRefusedError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

_logger = logging.getLogger("attestkit.client")
_PROVEN: Final = object()


def pinned_context(
    server_verifier: ConnectionVerifier,
    server_ca: str | bytes | None = None,
    *,
    webpki: bool = True,
) -> ssl.SSLContext:
    """Return a client's context whose connections exchange data with an attested server only.

    A blocking socket requests and verifies evidence in its handshake, if the server's key is new. A
    connection of an event loop is refused unless evidence that was accepted before names the key.

    Args:
        server_verifier: Verifier of the server, which also has the keys that are accepted now.
        server_ca: CA certificates in PEM; None: those of the system.
        webpki: Whether the server's name and certificate chain are verified, too; off for RA-TLS.

    Raises:
        FormatError: If `server_ca` is not PEM, or a certificate in it is malformed.
    """

    class Socket(ProvenSocket):
        _server_verifier = server_verifier

    class Object(PinnedObject):
        _server_verifier = server_verifier

    context = tls_context(server_ca, webpki=webpki)
    context.sslsocket_class, context.sslobject_class = Socket, Object
    return context


class _Proven:
    """Common base of PinnedObject and ProvenSocket: verifies the server after the handshake."""

    _server_verifier: ConnectionVerifier  # of the context
    _result: Any = None  # of AttestedObject and AttestedSocket; not None once they are proven
    _refused: tuple[str, str] | None = None  # of both: text and reason
    _period: ProofPeriod | None = None

    @property
    def attested_peer(self) -> NoReturn:
        """Raise UsageError: proofs are properties of the endpoint, not of a connection."""
        message = "connection: has no attested_peer of its own; use the proof of the endpoint"
        raise UsageError(message, reason="not_applicable")

    def _check(self, connection: Any) -> None:
        """Check after the handshake the host name, and that accepted evidence names the key.

        Args:
            connection: SSLSocket or SSLObject, or the `_ssl._SSLSocket` inside of it.

        Raises:
            PeerRefusedError: If one is not accepted; later reads and writes raise it again.
            ReconnectError: If the server closes the connection after its evidence: connect again.
        """
        opened = period(self._server_verifier)
        try:
            self._server_verifier.check_open()
            self._check_name(connection)
            self._prove(observe(connection, self._server_verifier))
        except PeerRefusedError as error:
            self._refused = error.verify_message, error.reason
            _logger.info("TLS peer refused: %r", error.verify_message)
            raise
        self._period = ProofPeriod(self._server_verifier, opened)
        self._result = _PROVEN

    def _check_name(self, connection: Any) -> None:
        """Check the connection's host name: clients also use the context for redirects.

        Raises:
            PeerRefusedError: If it is not the host of the endpoint (reason `other_origin`).
        """
        name, own = connection.server_hostname, self._server_verifier.host
        if name is not None and name.lower() != own.lower():  # None without WebPKI only
            message = (
                f"connection to {one_line(name, 100)}: the endpoint is for {own} only; use another "
                "endpoint, with a policy of its own, for the other server"
            )
            raise PeerRefusedError(message, reason="other_origin")

    def _prove(self, peer: ObservedPeer) -> None:
        """Check that evidence accepted before names the peer's key; else PeerRefusedError."""
        if not self._server_verifier.accepts(peer):
            message = (
                f"{peer.host}:{peer.port}: no evidence accepted before names its key "
                f"{peer.spki_sha256.hex()[:16]}...; `await endpoint.aprove()`, and connect again"
            )
            raise PeerRefusedError(message, reason="other_key")

    def read(self, len: int = 1024, buffer: "WriteableBuffer | None" = None) -> Any:
        """Read from the connection, as the ssl module does, once the peer is accepted.

        Args:
            len: Maximum number of bytes.
            buffer: Buffer that gets the bytes; None: they are returned.

        Returns:
            The bytes, or with a buffer their number.

        Raises:
            PeerRefusedError: If the peer is not accepted.
        """
        data = super().read(len, buffer)  # type: ignore[misc] # of the other base
        if self._period is not None:
            self._period.after_read()
        return data

    def write(self, data: "ReadableBuffer") -> int:
        """Write `data` as the ssl module does, once the peer is accepted; return how many bytes.

        Raises:
            PeerRefusedError: If the peer is not accepted.
            ReconnectError: If `data` begins a request of HTTP/1.1, and the proof has ended.
        """
        self._before_write(data)
        sent: int = super().write(data)  # type: ignore[misc] # as above
        return sent

    def _before_write(self, data: "ReadableBuffer") -> None:
        self._ready()  # type: ignore[attr-defined] # as above
        if self._period is not None:
            self._period.before_write(data)


class PinnedObject(_Proven, AttestedObject):
    """TLS for asyncio (SSLObject) that accepts only keys named by evidence accepted before."""

    def _check(self, connection: Any) -> None:
        """Check the peer after the handshake, as `_Proven._check` does with `connection`.

        Raises:
            PeerRefusedError: If the peer is not accepted, or the check fails: an `ssl.SSLError`,
                which event loops expect.
        """
        try:
            super()._check(connection)
        except PeerRefusedError:
            raise
        except AttestKitError as error:
            raise PeerRefusedError(str(error), reason=error.reason) from error


class ProvenSocket(_Proven, AttestedSocket):
    """TLS socket that verifies the server's evidence in its handshake; closed if it is refused."""

    def _prove(self, peer: ObservedPeer) -> None:
        if self.gettimeout() == 0:
            super()._prove(peer)
            return
        timeout = self.gettimeout()
        drive(self._server_verifier.steps(peer), SocketChannel(self))
        self.settimeout(timeout)

    def send(self, data: "ReadableBuffer", flags: int = 0) -> int:
        """Send as the ssl module does, once the peer is accepted; return the number of bytes.

        Args:
            data: The bytes; some of them may remain unsent.
            flags: Must be 0, as in the ssl module.

        Raises:
            PeerRefusedError, ReconnectError: As for `write`.
        """
        self._before_write(data)
        return super().send(data, flags)
