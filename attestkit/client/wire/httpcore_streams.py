"""Network backends of httpcore and httpcore2 whose `start_tls` verifies a server's attestation.

A pool receives a connection only after `start_tls` has returned, also through the tunnels of
proxies. Until then only the handshake and the requests for evidence are sent to the server.
"""

import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from attestkit.client.wire.observed_peer import ObservedPeer, observe_peer
from attestkit.client.wire.pools import ProofPeriod, period
from attestkit.client.wire.steps import (
    AWAITED,
    BLOCKING,
    Calls,
    ConnectionVerifier,
    drive_steps,
    finish,
)
from attestkit.errors import AttestKitError
from attestkit.ra_tls.connection import PeerRefusedError

Module = Any
"""httpcore or httpcore2, httpx or httpx2: modules of the same names with types of their own."""


class ConnectionRefusal(Exception):  # noqa: N818 - carries another error
    """Carries an error of the verification through httpcore's pool, which removes causes."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class ProvenOrigin:
    """The only server to which a backend opens streams, with the verifier of that server.

    Args:
        server_verifier: Verifier of the server.
        context: SSLContext of connections to the server; any other is for TLS to a proxy.
        httpcore: httpcore or httpcore2.
        proxied: Whether connections go through a proxy, which gets data (CONNECT) before TLS.
    """

    def __init__(
        self,
        server_verifier: ConnectionVerifier,
        context: ssl.SSLContext,
        httpcore: Module,
        *,
        proxied: bool,
    ) -> None:
        self.server_verifier: ConnectionVerifier = server_verifier
        self.context: ssl.SSLContext = context
        self.proxied: bool = proxied
        self._httpcore = httpcore

    def check_open(self) -> None:
        """Check that a connection may be opened; see `ConnectionVerifier.check_open`.

        Raises:
            ConnectionRefusal: If it may not.
        """
        with carry_errors():
            self.server_verifier.check_open()

    def observe(self, stream: Any) -> ObservedPeer:
        """Return certificate and key of the peer of `stream`, a stream of httpcore over TLS.

        Raises:
            PeerRefusedError: If the peer sent no certificate, or resumed a session.
        """
        return observe(stream.get_extra_info("ssl_object"), self.server_verifier)

    @contextmanager
    def os_errors(self) -> Iterator[None]:
        """Context manager: raise httpcore's errors of I/O as TimeoutError or ConnectionError."""
        try:
            yield
        except self._httpcore.TimeoutException as error:
            raise TimeoutError(str(error) or "no answer in time") from error
        except self._httpcore.NetworkError as error:
            raise ConnectionError(str(error)) from error


@contextmanager
def carry_errors() -> Iterator[None]:
    """Context manager: wrap errors of the block in a ConnectionRefusal, and raise that."""
    try:
        yield
    except Exception as error:
        raise ConnectionRefusal(error) from error


def observe(connection: Any, server_verifier: ConnectionVerifier) -> ObservedPeer:
    """Return certificate and key of a TLS connection's peer.

    Args:
        connection: SSLSocket or SSLObject after the handshake, or the `_ssl._SSLSocket` inside of
            it.
        server_verifier: Verifier of the server, which has its host and port.

    Raises:
        PeerRefusedError: If the peer sent no certificate, a malformed one, or resumed a session.
    """
    try:
        return observe_peer(connection, server_verifier.host, server_verifier.port)
    except AttestKitError as error:
        raise PeerRefusedError(str(error), reason=error.reason) from error


@dataclass(eq=False, repr=False)
class _Delegating:
    """Common base of the streams: operations of httpcore's stream, and the start of TLS."""

    _inner: Any
    _origin: ProvenOrigin
    _proven: ProofPeriod | None = None

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)

    def _before_write(self, buffer: bytes) -> None:
        proven = self._proven
        if proven is not None:
            if not proven.in_request:
                proven.before_write(buffer)
        elif not self._origin.proxied:  # to proxies, CONNECT travels before the tunnel is there
            message = "connection: the server is not verified, so no data is sent; start TLS first"
            raise ConnectionError(message)

    async def _start_tls(self, calls: Calls, context: ssl.SSLContext, *arguments: Any) -> Any:
        """Start TLS as `ProvenStream.start_tls` does; return the new stream.

        Args:
            calls: Blocking or awaited I/O, as that of the stream.
            context: SSLContext of the endpoint, or of a proxy.
            arguments: Server name and timeout in seconds.
        """
        origin, kind = self._origin, type(self)
        if context is not origin.context:  # TLS to a proxy, which gets CONNECT
            return kind(await calls.call(self._inner.start_tls, context, *arguments), origin)
        opened = period(origin.server_verifier)
        secured = self._inner  # which httpcore leaves open, if the handshake is cancelled
        try:
            # The name is the server's, whatever the extension `sni_hostname` of a request says.
            _, timeout = arguments
            secured = await calls.call(
                self._inner.start_tls, context, origin.server_verifier.host, timeout
            )
            with carry_errors():
                steps = origin.server_verifier.steps(origin.observe(secured))
                channel = _StreamChannel(secured.write, secured.read)
                await drive_steps(steps, channel, calls, origin.os_errors)
        except BaseException:
            await self._abort(secured)
            raise
        return kind(secured, origin, ProofPeriod(origin.server_verifier, opened))

    async def _abort(self, stream: Any) -> None:
        stream.close()


class ProvenStream(_Delegating):
    """A blocking stream of httpcore whose `start_tls` verifies the server's attestation."""

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read up to `max_bytes`, as soon as there are some; none at the end of the stream.

        Args:
            max_bytes: Maximum number of bytes.
            timeout: Limit in seconds for one wait; None: no limit.
        """
        data: bytes = self._inner.read(max_bytes, timeout)
        if self._proven is not None:
            self._proven.in_request = False
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Write all bytes.

        Args:
            buffer: The bytes.
            timeout: Limit in seconds for one wait; None: no limit.

        Raises:
            ReconnectError: If they begin a request after the proof has ended.
            ConnectionError: If TLS was not started, and the stream is not to a proxy.
        """
        self._before_write(buffer)
        self._inner.write(buffer, timeout)

    def close(self) -> None:
        """Close the connection."""
        self._inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> "ProvenStream":
        """Start TLS, and return the stream over TLS, on which the server was verified.

        With the SSLContext for TLS to a proxy, nothing is verified.

        Args:
            ssl_context: Context of the endpoint, or of a proxy.
            server_hostname: Name of the proxy for its TLS; for the server, its own name is used
                instead.
            timeout: Limit in seconds for the handshake; None: no limit.

        Raises:
            ConnectionRefusal: If the server is refused; it carries the error.
        """
        started = self._start_tls(BLOCKING, ssl_context, server_hostname, timeout)
        stream: ProvenStream = finish(started)
        return stream


class AsyncProvenStream(_Delegating):
    """A stream of httpcore on asyncio whose `start_tls` verifies the server's attestation."""

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read up to `max_bytes`, as soon as there are some; none at the end of the stream.

        Args:
            max_bytes: Maximum number of bytes.
            timeout: Limit in seconds for one wait; None: no limit.
        """
        data: bytes = await self._inner.read(max_bytes, timeout)
        if self._proven is not None:
            self._proven.in_request = False
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Write all bytes.

        Args:
            buffer: The bytes.
            timeout: Limit in seconds for one wait; None: no limit.

        Raises:
            ReconnectError: If they begin a request after the proof has ended.
            ConnectionError: If TLS was not started, and the stream is not to a proxy.
        """
        self._before_write(buffer)
        await self._inner.write(buffer, timeout)

    async def aclose(self) -> None:
        """Close the connection."""
        await self._inner.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> "AsyncProvenStream":
        """Start TLS as `ProvenStream.start_tls` does, whose arguments it has."""
        stream: AsyncProvenStream = await self._start_tls(
            AWAITED, ssl_context, server_hostname, timeout
        )
        return stream

    async def _abort(self, stream: Any) -> None:
        import anyio  # lazy: of httpcore

        with anyio.CancelScope(shield=True):
            await stream.aclose()


@dataclass(frozen=True, slots=True)
class _StreamChannel:
    """The `Channel` of a verification, on a stream of httpcore."""

    send: Callable[[bytes, float], Any]
    receive: Callable[[int, float], Any]


class ProvingBackend:
    """A network backend of httpcore for blocking I/O, whose streams are `ProvenStream`."""

    def __init__(self, origin: ProvenOrigin, httpcore: Module) -> None:
        self._origin, self._inner = origin, httpcore.SyncBackend()

    def connect_tcp(self, *arguments: Any, **options: Any) -> ProvenStream:  # as httpcore has them
        """Return a stream to the server or a proxy; arguments are those of httpcore's backends.

        Raises:
            ConnectionRefusal: If the endpoint is closed, or the server was refused shortly before.
        """
        self._origin.check_open()
        return ProvenStream(self._inner.connect_tcp(*arguments, **options), self._origin)

    def sleep(self, seconds: float) -> None:
        """Sleep for `seconds` between attempts to connect."""
        self._inner.sleep(seconds)


class AsyncProvingBackend:
    """A network backend of httpcore for asyncio, whose streams are `AsyncProvenStream`."""

    def __init__(self, origin: ProvenOrigin, httpcore: Module) -> None:
        self._origin, self._inner = origin, httpcore.AnyIOBackend()

    async def connect_tcp(self, *arguments: Any, **options: Any) -> AsyncProvenStream:
        """Return a stream to the server or a proxy; arguments are those of httpcore's backends.

        Raises:
            ConnectionRefusal: As `ProvingBackend.connect_tcp`.
        """
        self._origin.check_open()
        stream = await self._inner.connect_tcp(*arguments, **options)
        return AsyncProvenStream(stream, self._origin)

    async def sleep(self, seconds: float) -> None:
        """Sleep for `seconds` between attempts to connect."""
        await self._inner.sleep(seconds)
