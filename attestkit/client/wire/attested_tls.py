"""SSL contexts for libraries that open their own connections: aiohttp, websockets, urllib3.

Blocking sockets are proven at the end of the handshake, with a request for evidence if their key is
new. Connections of event loops cannot send one there: they are accepted if their key was proven
before, and otherwise refused. The program then proves the server (`await endpoint.aprove()`) and
connects again.

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
from attestkit.client.wire.steps import ConnectionProver, drive
from attestkit.client.wire.tls import SocketChannel, tls_context
from attestkit.errors import AttestKitError, UsageError
from attestkit.ra_tls.connection import AttestedObject, AttestedSocket, PeerRefusedError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

_logger = logging.getLogger("attestkit.client")
_PROVEN: Final = object()


def pinned_context(
    prover: ConnectionProver, server_ca: str | bytes | None = None, *, webpki: bool = True
) -> ssl.SSLContext:
    """Return a context whose connections are proven, or have a key that was proven.

    Args:
        prover: Prover of the server.
        server_ca: As for `tls_context`.
        webpki: As for `tls_context`.

    Raises:
        FormatError: If `server_ca` is not PEM.
    """

    class Socket(ProvenSocket):
        _prover = prover

    class Object(PinnedObject):
        _prover = prover

    context = tls_context(server_ca, webpki=webpki)
    context.sslsocket_class, context.sslobject_class = Socket, Object
    return context


class _Proven:
    """State of the proof: common base of PinnedObject and ProvenSocket."""

    _prover: ConnectionProver  # of the context
    _result: Any = None  # of AttestedObject and AttestedSocket; not None once they are proven
    _refused: tuple[str, str] | None = None  # of both: text and reason
    _period: ProofPeriod | None = None

    @property
    def attested_peer(self) -> NoReturn:
        """Raise UsageError: proofs are properties of the endpoint, not of a connection."""
        message = "connection: has no result of its own; use the proof of the endpoint"
        raise UsageError(message, reason="not_applicable")

    def _check(self, connection: Any) -> None:
        """Prove the peer after the handshake.

        Raises:
            PeerRefusedError: If it is refused; later calls then raise it again.
            ReconnectError: If the server closes the connection after its answer.
        """
        opened = period(self._prover)
        try:
            self._prover.check_open()
            self._check_name(connection)
            self._prove(observe(connection, self._prover))
        except PeerRefusedError as error:
            self._refused = error.verify_message, error.reason
            _logger.info("TLS peer refused: %r", error.verify_message)
            raise
        self._period = ProofPeriod(self._prover, opened)
        self._result = _PROVEN

    def _check_name(self, connection: Any) -> None:
        """Check the connection's host name: clients also use the context for redirects.

        Raises:
            PeerRefusedError: If it is another one (reason `other_origin`).
        """
        name, own = connection.server_hostname, self._prover.host
        if name is not None and name.lower() != own.lower():  # None without WebPKI only
            message = (
                f"connection to {one_line(name, 100)}: only {own} is proven here; connect to the "
                "other server, with a policy of its own"
            )
            raise PeerRefusedError(message, reason="other_origin")

    def _prove(self, peer: ObservedPeer) -> None:
        """Check that the peer's key is proven."""
        if not self._prover.accepts(peer.spki_sha256):
            message = (
                f"{peer.host}:{peer.port}: its key {peer.spki_sha256.hex()[:16]}... is not proven; "
                "prove the server afresh with `await endpoint.aprove()`, and connect again"
            )
            raise PeerRefusedError(message, reason="other_key")

    def read(self, len: int = 1024, buffer: "WriteableBuffer | None" = None) -> Any:
        """Read, after the peer is accepted."""
        data = super().read(len, buffer)  # type: ignore[misc] # of the other base
        if self._period is not None:
            self._period.after_read()
        return data

    def write(self, data: "ReadableBuffer") -> int:
        """Write, after the peer is accepted, unless it begins a request after the proof's end."""
        self._before_write(data)
        sent: int = super().write(data)  # type: ignore[misc] # as above
        return sent

    def _before_write(self, data: "ReadableBuffer") -> None:
        self._ready()  # type: ignore[attr-defined] # as above
        if self._period is not None:
            self._period.before_write(data)


class PinnedObject(_Proven, AttestedObject):
    """TLS in memory, for asyncio and its libraries; the peer's key must have been proven before."""

    def _check(self, connection: Any) -> None:
        """Check the peer after the handshake; raise errors of TLS, which event loops expect.

        Raises:
            PeerRefusedError: If it is not accepted.
        """
        try:
            super()._check(connection)
        except PeerRefusedError:
            raise
        except AttestKitError as error:
            raise PeerRefusedError(str(error), reason=error.reason) from error


class ProvenSocket(_Proven, AttestedSocket):
    """TLS on a socket, which is reset and closed if the peer is refused."""

    def _prove(self, peer: ObservedPeer) -> None:
        if self.gettimeout() == 0:
            super()._prove(peer)
            return
        timeout = self.gettimeout()
        drive(self._prover.steps(peer), SocketChannel(self))
        self.settimeout(timeout)

    def send(self, data: "ReadableBuffer", flags: int = 0) -> int:
        """Send, after the peer is proven, unless it begins a request after the proof's end."""
        self._before_write(data)
        return super().send(data, flags)
