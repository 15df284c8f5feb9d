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
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from functools import cache
from typing import Any, ClassVar, NamedTuple

from attestkit.client.sealing.protocol import SealingKeyError
from attestkit.client.wire.drivers import ReconnectError, in_thread
from attestkit.client.wire.exchange import Exchange
from attestkit.client.wire.http_libraries import LibraryName, load_library
from attestkit.client.wire.httpx_requests import OutgoingRequest, ProvenTransport
from attestkit.client.wire.pools import PoolLease, PoolSet
from attestkit.client.wire.request_origin import MAX_CONNECTIONS, no_connection
from attestkit.errors import UsageError


class BlockingTransport(ProvenTransport):
    """A transport for `Client`; see `ProvenTransport` for the arguments."""

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
        try:
            return self._send(request)
        except SealingKeyError:
            if self._renew_sealing is None or not self._renew_sealing():
                raise
        return self._send(request)

    def _send(self, request: Any) -> Any:
        sealing = None if self._sealing is None else self._sealing()
        body = None if sealing is None else request.read()
        outgoing = self._outgoing(request, sealing, body)
        for _ in range(MAX_CONNECTIONS):
            lease, idle = self._pools.acquire()
            for pool in idle:
                pool.close()
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
                if outgoing.exchange is not None and outgoing.exchange.read_at_once:
                    response.read()
            except BaseException:
                stream.close()
                raise
            return response
        raise no_connection(self._prover)

    def _request(self, request: Any, outgoing: OutgoingRequest) -> Any:
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
            self._transport.note_closed(self._exchange)
            self._answer.close()
        finally:
            self._transport.release(lease)


class AsyncTransport(ProvenTransport):
    """A transport for `AsyncClient` on asyncio; see `ProvenTransport` for the arguments."""

    body_class: ClassVar[Any]  # of the subclass

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._pools: PoolSet[Any] = PoolSet(self._prover, self._options.make_async)

    async def handle_async_request(self, request: Any) -> Any:
        """Send a request as `BlockingTransport.handle_request` does."""
        _require_asyncio()
        self._check(request)
        try:
            return await self._send(request)
        except SealingKeyError:
            if self._renew_sealing is None or not await in_thread(self._renew_sealing):
                raise
        return await self._send(request)

    async def _send(self, request: Any) -> Any:
        # It may prove the server first.
        sealing = None if self._sealing is None else await in_thread(self._sealing)
        body = None if sealing is None else await request.aread()
        outgoing = self._outgoing(request, sealing, body)
        for _ in range(MAX_CONNECTIONS):
            lease, idle = self._pools.acquire()
            for pool in idle:
                await pool.aclose()
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
                if outgoing.exchange is not None and outgoing.exchange.read_at_once:
                    await response.aread()
            except BaseException:
                await stream.aclose()
                raise
            return response
        raise no_connection(self._prover)

    def _request(self, request: Any, outgoing: OutgoingRequest) -> Any:
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
            self._transport.note_closed(self._exchange)
            await self._answer.aclose()
        finally:
            await self._transport.release(lease)


def _require_asyncio() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError as error:
        message = "event loop: proven connections work with asyncio (or uvloop) alone"
        raise UsageError(message, reason="not_applicable") from error


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
