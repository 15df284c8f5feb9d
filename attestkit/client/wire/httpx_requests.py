"""Requests of httpx and httpx2 in the form in which they are sent, and their answers."""

import ssl
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

from attestkit.client.wire.exchange import (
    EXTENSION,
    Exchange,
    OnAnswer,
    framed_headers,
    identity_encoding,
    plain_headers,
)
from attestkit.client.wire.http_libraries import HttpLibrary, PoolOptions
from attestkit.client.wire.request_origin import check_origin
from attestkit.client.wire.steps import ConnectionProver
from attestkit.client.wire.tls_context import require_plain_context

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


class ProvenTransport:
    """Common base of the transports.

    Args:
        prover: Prover of the server.
        context: Context of `tls_context`, for this transport alone.
        sealing: Returns what seals a request; None, or if it returns None: sent as it is.
        renew_sealing: Called when a server does not have the key to which a request was sealed;
            proves it anew, and returns whether the request is sealed and sent once more.
        on_answer: See `OnAnswer`.
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
        self._last_url: Any = None  # most clients repeat a target

    def _check(self, request: Any) -> None:
        """Check that a request is for the proven server."""
        url = request.url
        if (url.raw_scheme, url.raw_host, url.port) != self._own_url:  # as most are written
            check_origin(self._prover, url.scheme, url.raw_host.decode("ascii"), url.port)

    def _outgoing(
        self, request: Any, sealing: "Sealing | None", body: bytes | None
    ) -> OutgoingRequest:
        extensions, method = request.extensions, str(request.method)
        target: bytes = extensions.get("target", request.url.raw_path)
        raw: list[tuple[bytes, bytes]] = request.headers.raw
        if self._sealing is None and self._on_answer is None:
            return OutgoingRequest(method, target, raw, None, extensions, None)
        headers, exchange = _decoded(raw), Exchange()
        if sealing is not None:
            assert body is not None
            sealed = sealing.seal(method, target.decode("ascii"), plain_headers(headers), body)
            method, target, body = sealed.method, sealed.target.encode("ascii"), sealed.body
            headers, exchange = framed_headers(sealed), Exchange(sealed)
        elif self._on_answer is not None:
            headers = identity_encoding(headers)
        extensions = {name: value for name, value in extensions.items() if name != "target"}
        return OutgoingRequest(method, target, _encoded(headers), body, extensions, exchange)

    def _core_request(self, outgoing: OutgoingRequest, content: object) -> Any:
        method, target, headers, _, extensions, _ = outgoing
        httpcore, prover = self.library.httpcore, self._prover
        # Host and port of the prover, which are those of the request's URL.
        url = self._last_url
        if url is None or (url.target, url.port) != (target, prover.port):
            url = httpcore.URL(scheme=b"https", host=self._host, port=prover.port, target=target)
            self._last_url = url
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

    def note_closed(self, exchange: Exchange | None) -> None:
        """Note the end of an answer that was not read to its own."""
        if exchange is None or self._on_answer is None or exchange.record.has_ended:
            return
        self._on_answer(exchange.record)


def _decoded(headers: Iterable[tuple[bytes, bytes]]) -> "Headers":
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]


def _encoded(headers: "Headers") -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
