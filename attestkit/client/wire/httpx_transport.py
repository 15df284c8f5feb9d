"""Transports of httpx and httpx2 that verify a server's attestation before they send a request.

```python
transports = http_transports("httpx2")
with httpx2.Client(transport=transports.blocking(server_verifier, tls_context())) as client:
    client.get("https://app.example.com/")
```

A transport is for one server. A client with a transport ignores the proxies of the environment. Do
not pass `mounts` or `proxy` to the client, which replace the transport.
"""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

from attestkit.client.sealing.protocol import SealingKeyError
from attestkit.client.wire import steps
from attestkit.client.wire.exchange import EXTENSION, MAX_CONNECTIONS, Exchange, ProvenRequests
from attestkit.client.wire.http_libraries import HttpLibrary, LibraryName, PoolOptions, load_library
from attestkit.client.wire.pools import PoolLease, PoolSet
from attestkit.client.wire.tls import require_plain_context
from attestkit.errors import UsageError

if TYPE_CHECKING:
    from attestkit.client.sealing.protocol import Headers, Sealing

HTTPS_PORT: Final = 443


class OutgoingRequest(NamedTuple):
    """A request in the form in which it is sent."""

    method: str
    target: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes | None  # None: that of the request, as it comes
    extensions: dict[str, Any]
    exchange: Exchange | None  # None: bodies pass as they are, and are not hashed


class ProvenTransport(ProvenRequests):
    """Common base of the transports, which send requests to one attested server only.

    Args:
        server_verifier: Verifier of the server.
        context: Context of `tls_context`, for this transport alone.
        proxy: URL of a proxy of CONNECT or SOCKS 5, or Proxy of the library; None: direct
            connections.
        limits: Limits of the library; None: its defaults.
        options: Options of `ProvenRequests`.

    Raises:
        UsageError: If an argument is not valid.
    """

    library: ClassVar[HttpLibrary]  # of the subclass
    body_class: ClassVar[Any]  # of the subclass
    calls: ClassVar[steps.Calls]

    def __init__(
        self,
        server_verifier: steps.ConnectionVerifier,
        context: ssl.SSLContext,
        *,
        proxy: Any = None,
        limits: Any = None,
        **options: Any,
    ) -> None:
        super().__init__(server_verifier, **options)
        require_plain_context(context)
        self._options = pools = PoolOptions(self.library, server_verifier, context, proxy, limits)
        make = partial(pools.make, asynchronous=self.calls is steps.AWAITED)
        self.pools: PoolSet[Any] = PoolSet(server_verifier, make)
        self._added = _encoded(self._headers)
        self._host = server_verifier.host.encode("ascii")
        port = None if server_verifier.port == HTTPS_PORT else server_verifier.port
        self._own_url = b"https", self._host, port
        self._last_url: Any = None  # most clients repeat a target

    async def _handle(self, request: Any) -> Any:
        """Send a request over a connection on which the server was verified; return the response.

        Args:
            request: Request of httpx or httpx2; the response is of the same library.

        Raises:
            UsageError: If the URL is not `https://`.
            ServiceError: If the URL is not at the endpoint's server, or the request cannot be
                encrypted.
            PeerRefusedError: If the server's evidence is not accepted.
        """
        url = request.url
        if (url.raw_scheme, url.raw_host, url.port) != self._own_url:  # as most are written
            self._check_origin(url.scheme, url.raw_host.decode("ascii"), url.port)
        # It may prove the server first.
        sealing = None if self._sealing is None else await self.calls.run(self._sealing)
        try:
            return await self._send(request, sealing)
        except SealingKeyError:
            if self._renew_sealing is None:
                raise
            renewed = await self.calls.run(partial(self._renew_sealing, sealing))
            if renewed is None:
                raise
        return await self._send(request, renewed)

    async def _send(self, request: Any, sealing: "Sealing | None") -> Any:
        calls = self.calls
        body = None if sealing is None else await calls.read(request)
        outgoing = self._outgoing(request, sealing, body)
        for _ in range(MAX_CONNECTIONS):
            lease, idle = self.pools.acquire()
            try:
                if idle:
                    await self.close_all(idle)
                with self.library.mapped_errors:
                    answer = await calls.send(lease.pool, self._core_request(request, outgoing))
            except steps.ReconnectError:  # nothing of the request was sent
                await self._retire(lease)
                continue
            except BaseException:
                await self._retire(lease)
                raise
            stream = self.body_class(self, answer, lease, outgoing.exchange)
            try:
                response = self._response(answer, outgoing.exchange, stream)
                if outgoing.exchange is not None and outgoing.exchange.read_at_once:
                    await calls.read(response)
            except BaseException:
                await calls.close(stream)
                raise
            return response
        raise self._no_connection()

    def _outgoing(
        self, request: Any, sealing: "Sealing | None", body: bytes | None
    ) -> OutgoingRequest:
        extensions, method = request.extensions, str(request.method)
        target: bytes = extensions.get("target", request.url.raw_path)
        raw: list[tuple[bytes, bytes]] = request.headers.raw
        if self._added:
            known = {name.lower() for name, _ in raw}
            raw = [*raw, *(pair for pair in self._added if pair[0].lower() not in known)]
        if self._sealing is None and self._on_answer is None:
            return OutgoingRequest(method, target, raw, None, extensions, None)
        headers, exchange = _decoded(raw), Exchange()
        if sealing is not None:
            assert body is not None
            sealed = self._seal(sealing, method, target.decode("ascii"), headers, body)
            method, target, body = sealed.method, sealed.target.encode("ascii"), sealed.body
            headers, exchange = sealed.headers, Exchange(sealed)
        else:
            headers = self._open_headers(headers)
        extensions = {name: value for name, value in extensions.items() if name != "target"}
        return OutgoingRequest(method, target, _encoded(headers), body, extensions, exchange)

    def _core_request(self, request: Any, outgoing: OutgoingRequest) -> Any:
        method, target, headers, body, extensions, exchange = outgoing
        content = request.stream if body is None else self._content(body)
        if exchange is not None:
            content = self._recorded(content, exchange)
        httpcore, server_verifier = self.library.httpcore, self._server_verifier
        # Host and port of the server verifier, which are those of the request's URL.
        url = self._last_url
        if url is None or (url.target, url.port) != (target, server_verifier.port):
            url = httpcore.URL(
                scheme=b"https", host=self._host, port=server_verifier.port, target=target
            )
            self._last_url = url
        return httpcore.Request(
            method, url, headers=headers, content=content, extensions=extensions
        )

    def _content(self, body: bytes) -> Any:
        return [body]

    def _recorded(self, content: Any, exchange: Exchange) -> Any:
        return exchange.sending(content)

    def _response(self, answer: Any, exchange: Exchange | None, stream: object) -> Any:
        headers, extensions = answer.headers, answer.extensions
        if exchange is not None:
            headers = _encoded(exchange.start(answer.status, _decoded(headers)))
            extensions = {**extensions, EXTENSION: exchange.record}
        response = self.library.httpx.Response
        return response(answer.status, headers=headers, stream=stream, extensions=extensions)

    def finished(self, exchange: Exchange) -> bytes:
        """End the exchange; return the remaining decrypted bytes of the answer."""
        rest = exchange.finish()
        self.note(exchange)
        return rest

    async def _retire(self, lease: PoolLease[Any]) -> None:
        """Release the pool of a failed request; with a proxy it is not used for further ones.

        Args:
            lease: The pool that was acquired for the request.
        """
        # The tunnel of a failed connection is never removed from httpcore's pool.
        await self.close_all(self.pools.release(lease, retire=self._options.proxied))

    async def close_all(self, pools: Iterable[Any]) -> None:
        """Close pools, all of them also if the task is cancelled or one raises an error."""
        async with contextlib.AsyncExitStack() as stack:
            for pool in pools:
                stack.push_async_callback(self.calls.close, pool)


@dataclass(eq=False, repr=False)
class _Body:
    """Common base of the bodies of answers."""

    _transport: ProvenTransport
    _answer: Any  # response of httpcore
    _lease: PoolLease[Any] | None  # its connection in use; None once it was given back
    _exchange: Exchange | None  # None: bytes are passed on without a record

    async def _close(self) -> None:
        """Close the answer, and let the connection be used again if it was read to its end."""
        lease, self._lease = self._lease, None
        if lease is None:
            return
        transport, exchange = self._transport, self._exchange
        try:
            if exchange is not None and not exchange.record.has_ended:
                transport.note(exchange)
            await transport.calls.close(self._answer)
        finally:
            if idle := transport.pools.release(lease):
                await transport.close_all(idle)


class BlockingBody(_Body):
    """The body of an answer of a `BlockingTransport`, an iterator of pieces, decrypted if needed.

    The pieces are recorded if there is an exchange. `close` gives the connection back.
    """

    def __iter__(self) -> Iterator[bytes]:
        transport, exchange = self._transport, self._exchange
        with transport.library.mapped_errors:
            if exchange is None:
                yield from self._answer.stream
                return
            for piece in self._answer.stream:
                if data := exchange.feed(piece):
                    yield data
        if rest := transport.finished(exchange):
            yield rest

    def close(self) -> None:
        """Close the answer."""
        steps.finish(self._close())


class BlockingTransport(ProvenTransport):
    """A transport for `Client`; see `ProvenTransport` for the arguments."""

    calls: ClassVar[steps.Calls] = steps.BLOCKING

    def handle_request(self, request: Any) -> Any:
        """Send a Request of the HTTP library to the attested server, and return its Response.

        Raises:
            UsageError: If the URL is not `https://`.
            ServiceError: If the URL is not at the endpoint's server, or the request cannot be
                encrypted.
            PeerRefusedError: If the server's evidence is not accepted.
        """
        return steps.finish(self._handle(request))

    def close(self) -> None:
        """Close all connections."""
        steps.finish(self.close_all(self.pools.drain()))


class AsyncBody(_Body):
    """The body of an answer of an `AsyncTransport`; otherwise as `BlockingBody`."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        transport, exchange = self._transport, self._exchange
        with transport.library.mapped_errors:
            if exchange is None:
                async for piece in self._answer.stream:
                    yield piece
                return
            async for piece in self._answer.stream:
                if data := exchange.feed(piece):
                    yield data
        if rest := transport.finished(exchange):
            yield rest

    async def aclose(self) -> None:
        """Close the answer."""
        await self._close()


class AsyncTransport(ProvenTransport):
    """A transport for `AsyncClient` on asyncio; see `ProvenTransport` for the arguments."""

    calls: ClassVar[steps.Calls] = steps.AWAITED

    async def handle_async_request(self, request: Any) -> Any:
        """Send a request as `BlockingTransport.handle_request` does.

        Raises:
            UsageError: If the event loop is not of asyncio; other errors are those of that method.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError as error:
            message = "event loop: must be asyncio or uvloop; no other framework is supported"
            raise UsageError(message, reason="not_applicable") from error
        return await self._handle(request)

    async def aclose(self) -> None:
        """Close all connections."""
        await self.close_all(self.pools.drain())

    def _content(self, body: bytes) -> AsyncIterable[bytes]:
        return _one(body)

    def _recorded(self, content: Any, exchange: Exchange) -> Any:
        return exchange.sending_async(content)


async def _one(body: bytes) -> AsyncIterable[bytes]:
    yield body


def _decoded(headers: Iterable[tuple[bytes, bytes]]) -> "Headers":
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]


def _encoded(headers: "Headers") -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]


class TransportClasses(NamedTuple):
    """Classes of transports of one library, derived from its base classes."""

    blocking: type[BlockingTransport]
    asynchronous: type[AsyncTransport]


@cache
def http_transports(name: LibraryName) -> TransportClasses:
    """Return the transport classes for httpx or httpx2, subclasses of its base transports.

    Raises:
        UsageError: If the library is not installed (reason `missing_dependency`).
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
