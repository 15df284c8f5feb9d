"""Transports of httpx and httpx2 over connections that are proven before they carry a request.

```python
transports = http_transports("httpx2")
with httpx2.Client(transport=transports.blocking(prover, tls_context())) as client:
    client.get("https://app.example.com/")
```

A transport is for one server. A client with a transport ignores the proxies of the environment. Do
not pass `mounts` or `proxy` to the client, which replace the transport.
"""

import asyncio
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

from attestkit.client.sealing.protocol import SealingKeyError
from attestkit.client.wire.drivers import ReconnectError
from attestkit.client.wire.exchange import (
    EXTENSION,
    Exchange,
    OnAnswer,
    framed_headers,
    identity_encoding,
    plain_headers,
)
from attestkit.client.wire.http_libraries import (
    HttpLibrary,
    LibraryName,
    PoolOptions,
    load_library,
)
from attestkit.client.wire.origin import check_origin
from attestkit.client.wire.pools import PoolLease, PoolSet
from attestkit.client.wire.steps import ConnectionProver
from attestkit.client.wire.tls_context import require_plain_context
from attestkit.errors import ServiceError, UsageError

if TYPE_CHECKING:
    from attestkit.client.sealing.protocol import Headers, Sealing

HTTPS_PORT: Final = 443

MAX_CONNECTIONS: Final = 4
"""Connections that are opened for one request, while servers close them after the evidence."""


class _Outgoing(NamedTuple):
    """A request in the form in which it is sent."""

    method: str
    target: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes | None  # None: that of the request, as it comes
    extensions: dict[str, Any]
    exchange: Exchange | None  # None: bodies pass as they are, and are not hashed


class _ProvenTransport:
    """What the transports have in common.

    Args:
        prover: Prover of the server.
        context: Context of `tls_context`, for this transport alone.
        sealing: Returns what seals a request; None, or if it returns None: sent as it is.
        renew_sealing: Called when a server does not have the key to which a request was sealed;
            proves it anew, and returns whether the request is sealed and sent once more.
        on_answer: Called once an answer was read to its end.
        proxy: URL of a proxy of CONNECT or SOCKS 5, or Proxy of the library.
        limits: Limits of the library; None: its defaults.

    Raises:
        UsageError: If an argument is not valid.
    """

    library: ClassVar[HttpLibrary]  # of the subclass

    def __init__(
        self,
        prover: ConnectionProver,
        context: ssl.SSLContext,
        *,
        sealing: "Callable[[], Sealing | None] | None" = None,
        renew_sealing: Callable[[], bool] | None = None,
        on_answer: OnAnswer | None = None,
        proxy: Any = None,
        limits: Any = None,
    ) -> None:
        require_plain_context(context)
        self._prover, self._on_answer = prover, on_answer
        self._sealing, self._renew_sealing = sealing, renew_sealing
        self._options = PoolOptions(self.library, prover, context, proxy, limits)
        self._host = prover.host.encode("ascii")
        port = None if prover.port == HTTPS_PORT else prover.port
        self._own_url = b"https", self._host, port

    def _check(self, request: Any) -> None:
        """Check that a request is for the proven server."""
        url = request.url
        if (url.raw_scheme, url.raw_host, url.port) != self._own_url:  # as most are written
            check_origin(self._prover, url.scheme, url.raw_host.decode("ascii"), url.port)

    def _outgoing(self, request: Any, sealing: "Sealing | None", body: bytes | None) -> _Outgoing:
        extensions, method = request.extensions, str(request.method)
        target: bytes = extensions.get("target", request.url.raw_path)
        raw: list[tuple[bytes, bytes]] = request.headers.raw
        if sealing is None and self._on_answer is None:
            return _Outgoing(method, target, raw, None, extensions, None)
        headers, exchange = _decoded(raw), Exchange()
        if sealing is None:
            headers = identity_encoding(headers)
        else:
            assert body is not None
            sealed = sealing.seal(method, target.decode("ascii"), plain_headers(headers), body)
            method, target, body = sealed.method, sealed.target.encode("ascii"), sealed.body
            headers, exchange = framed_headers(sealed), Exchange(sealed)
        extensions = {name: value for name, value in extensions.items() if name != "target"}
        return _Outgoing(method, target, _encoded(headers), body, extensions, exchange)

    def _core_request(self, outgoing: _Outgoing, content: object) -> Any:
        method, target, headers, _, extensions, _ = outgoing
        httpcore, prover = self.library.httpcore, self._prover
        # Host and port of the prover, which are those of the request's URL.
        url = httpcore.URL(scheme=b"https", host=self._host, port=prover.port, target=target)
        return httpcore.Request(
            method, url, headers=headers, content=content, extensions=extensions
        )

    def _response(self, answer: Any, exchange: Exchange | None, stream: object) -> Any:
        headers, extensions = answer.headers, answer.extensions
        if exchange is not None:
            headers = _encoded(exchange.start(answer.status, _decoded(headers)))
            extensions = {**extensions, EXTENSION: exchange.record}
        response = self.library.httpx.Response
        return response(answer.status, headers=headers, stream=stream, extensions=extensions)

    def _finished(self, exchange: Exchange) -> bytes:
        """Take the end of an answer, and return the rest for the caller."""
        rest = exchange.finish()
        if self._on_answer is not None:
            self._on_answer(exchange.record)
        return rest

    def _no_connection(self) -> ServiceError:
        message = (
            f"{self._prover.host}:{self._prover.port}: no connection could be kept after its "
            f"evidence, {MAX_CONNECTIONS} in a row"
        )
        return ServiceError(message, reason="connection")


class BlockingTransport(_ProvenTransport):
    """A transport for `Client`; see `_ProvenTransport` for the arguments."""

    body_class: ClassVar[Any]  # of the subclass

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._pools: PoolSet[Any] = PoolSet(self._prover, self._options.make)

    def handle_request(self, request: Any) -> Any:
        """Send a request, after the server is proven.

        Raises:
            UsageError: If the URL is not `https://`.
            ServiceError: If it is of another server, or the request cannot be sealed.
            PeerRefusedError: If the server is refused.
        """
        self._check(request)
        sealing = None if self._sealing is None else self._sealing()
        body = None if sealing is None else request.read()
        outgoing = self._outgoing(request, sealing, body)
        for _ in range(MAX_CONNECTIONS):
            lease = self._acquire()
            try:
                with self.library.mapped_errors:
                    answer = lease.pool.handle_request(self._request(request, outgoing))
            except ReconnectError:  # nothing of the request was sent
                self.release(lease, failed=True)
                continue
            except BaseException:
                self.release(lease, failed=True)
                raise
            stream = self.body_class(self, answer, lease, outgoing.exchange)
            try:
                response = self._response(answer, outgoing.exchange, stream)
                if outgoing.exchange.read_at_once:
                    response.read()
            except BaseException:
                stream.close()
                raise
            return response
        raise self._no_connection()

    def _request(self, request: Any, outgoing: _Outgoing) -> Any:
        body = request.stream if outgoing.body is None else [outgoing.body]
        exchange = outgoing.exchange
        return self._core_request(outgoing, body if exchange is None else exchange.sending(body))

    def pieces(self, answer: Any, exchange: Exchange | None) -> Iterator[bytes]:
        """Yield the body of an answer for the caller."""
        with self.library.mapped_errors:
            if exchange is None:
                yield from answer.stream
                return
            for piece in answer.stream:
                if data := exchange.feed(piece):
                    yield data
        if rest := self._finished(exchange):
            yield rest

    def _acquire(self) -> PoolLease[Any]:
        lease, idle = self._pools.acquire()
        for pool in idle:
            pool.close()
        return lease

    def release(self, lease: PoolLease[Any], *, failed: bool = False) -> None:
        """Note the end of a request."""
        # The tunnel of a failed connection is never removed from httpcore's pool.
        for pool in self._pools.release(lease, retire=failed and self._options.proxied):
            pool.close()

    def close(self) -> None:
        """Close all connections."""
        for pool in self._pools.drain():
            pool.close()


class BlockingBody:
    """The body of an answer of a `BlockingTransport`."""

    def __init__(
        self,
        transport: BlockingTransport,
        answer: Any,
        lease: PoolLease[Any],
        exchange: Exchange | None,
    ) -> None:
        self._transport, self._answer, self._exchange = transport, answer, exchange
        self._lease: PoolLease[Any] | None = lease

    def __iter__(self) -> Iterator[bytes]:
        return self._transport.pieces(self._answer, self._exchange)

    def close(self) -> None:
        """Close the answer, and let the connection be used again if it was read to its end."""
        lease, self._lease = self._lease, None
        if lease is None:
            return
        try:
            self._answer.close()
        finally:
            self._transport.release(lease)


class AsyncTransport(_ProvenTransport):
    """A transport for `AsyncClient` on asyncio; see `_ProvenTransport` for the arguments."""

    body_class: ClassVar[Any]  # of the subclass

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._pools: PoolSet[Any] = PoolSet(self._prover, self._options.make_async)

    async def handle_async_request(self, request: Any) -> Any:
        """Send a request as `BlockingTransport.handle_request` does."""
        self._check(request)
        # It may prove the server first.
        sealing = None if self._sealing is None else await asyncio.to_thread(self._sealing)
        body = None if sealing is None else await request.aread()
        outgoing = self._outgoing(request, sealing, body)
        for _ in range(MAX_CONNECTIONS):
            lease = await self._acquire()
            try:
                with self.library.mapped_errors:
                    answer = await lease.pool.handle_async_request(self._request(request, outgoing))
            except ReconnectError:  # nothing of the request was sent
                await self.release(lease, failed=True)
                continue
            except BaseException:
                await self.release(lease, failed=True)
                raise
            stream = self.body_class(self, answer, lease, outgoing.exchange)
            try:
                response = self._response(answer, outgoing.exchange, stream)
                if outgoing.exchange.read_at_once:
                    await response.aread()
            except BaseException:
                await stream.aclose()
                raise
            return response
        raise self._no_connection()

    def _request(self, request: Any, outgoing: _Outgoing) -> Any:
        body = request.stream if outgoing.body is None else _one(outgoing.body)
        if outgoing.exchange is not None:
            body = outgoing.exchange.sending_async(body)
        return self._core_request(outgoing, body)

    async def pieces(self, answer: Any, exchange: Exchange | None) -> AsyncIterator[bytes]:
        """Yield the body of an answer for the caller."""
        with self.library.mapped_errors:
            if exchange is None:
                async for piece in answer.stream:
                    yield piece
                return
            async for piece in answer.stream:
                if data := exchange.feed(piece):
                    yield data
        if rest := self._finished(exchange):
            yield rest

    async def _acquire(self) -> PoolLease[Any]:
        lease, idle = self._pools.acquire()
        for pool in idle:
            await pool.aclose()
        return lease

    async def release(self, lease: PoolLease[Any], *, failed: bool = False) -> None:
        """Note the end of a request."""
        for pool in self._pools.release(lease, retire=failed and self._options.proxied):
            await pool.aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        for pool in self._pools.drain():
            await pool.aclose()


class AsyncBody:
    """The body of an answer of an `AsyncTransport`."""

    def __init__(
        self,
        transport: AsyncTransport,
        answer: Any,
        lease: PoolLease[Any],
        exchange: Exchange | None,
    ) -> None:
        self._transport, self._answer, self._exchange = transport, answer, exchange
        self._lease: PoolLease[Any] | None = lease

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._transport.pieces(self._answer, self._exchange)

    async def aclose(self) -> None:
        """Close the answer, and let the connection be used again if it was read to its end."""
        lease, self._lease = self._lease, None
        if lease is None:
            return
        try:
            await self._answer.aclose()
        finally:
            await self._transport.release(lease)


def _require_asyncio() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError as error:
        message = "event loop: proven connections work with asyncio (or uvloop) alone"
        raise UsageError(message, reason="not_applicable") from error


def _decoded(headers: Iterable[tuple[bytes, bytes]]) -> "Headers":
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]


def _encoded(headers: "Headers") -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]


async def _one(body: bytes) -> AsyncIterable[bytes]:
    yield body


class TransportClasses(NamedTuple):
    """Classes of transports of one library, derived from its base classes."""

    blocking: type[BlockingTransport]
    asynchronous: type[AsyncTransport]


@cache
def http_transports(name: LibraryName) -> TransportClasses:
    """Return the transports of a library.

    Raises:
        UsageError: If it is not installed (reason `missing_dependency`).
    """
    library = load_library(name)
    httpx = library.httpx

    def derive(own: type, base: type, body: type, stream: type) -> Any:
        members = {"library": library, "body_class": type(body.__name__, (body, stream), {})}
        described = {"__doc__": own.__doc__, "__module__": own.__module__}
        return type(own.__name__, (own, base), {**members, **described})

    return TransportClasses(
        derive(BlockingTransport, httpx.BaseTransport, BlockingBody, httpx.SyncByteStream),
        derive(AsyncTransport, httpx.AsyncBaseTransport, AsyncBody, httpx.AsyncByteStream),
    )
