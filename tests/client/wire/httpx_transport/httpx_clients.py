"""The four clients of httpx and httpx2 with one face, so that each test runs with each of them."""

import asyncio
import contextlib
from collections.abc import Iterator
from importlib import import_module
from typing import Any, Final

import pytest

from attestkit.client.wire.httpx_transport import http_transports
from attestkit.client.wire.tls import tls_context
from tests.client.wire.authority import authority
from tests.client.wire.servers import TIMEOUT

KINDS: Final = ("httpx", "httpx async", "httpx2", "httpx2 async")
every_client = pytest.mark.parametrize("kind", KINDS)


class Caller:
    """A client whose methods block, of whichever kind it is."""

    def __init__(
        self, kind: str, server_verifier: Any, *, client: dict[str, Any], **options: Any
    ) -> None:
        name, _, asynchronous = kind.partition(" ")
        self.library = import_module(name)
        transports: Any = http_transports(name)
        context = tls_context(authority().pem)
        client = {"timeout": TIMEOUT, **client}
        self.loop: asyncio.AbstractEventLoop | None = None
        if asynchronous:
            self.loop = asyncio.new_event_loop()
            transport = transports.asynchronous(server_verifier, context, **options)
            self.client = self.library.AsyncClient(transport=transport, **client)
        else:
            transport = transports.blocking(server_verifier, context, **options)
            self.client = self.library.Client(transport=transport, **client)
        self.transport = transport

    @property
    def asynchronous(self) -> bool:
        """Whether the client is of asyncio."""
        return self.loop is not None

    def run(self, work: Any) -> Any:
        """Return the result of a call of the client."""
        return work if self.loop is None else self.loop.run_until_complete(work)

    def get(self, url: str, **options: Any) -> Any:
        """Send a request and read its answer."""
        return self.run(self.client.get(url, **options))

    def post(self, url: str, **options: Any) -> Any:
        """Send a request and read its answer."""
        return self.run(self.client.post(url, **options))

    def open(self, url: str, method: str = "GET", **options: Any) -> Any:
        """Send a request without reading its answer."""
        request = self.client.build_request(method, url, **options)
        return self.run(self.client.send(request, stream=True))

    def pieces(self, response: Any) -> "Pieces":
        """Iterate over the raw body of an answer."""
        return Pieces(self, response)

    def close_response(self, response: Any) -> None:
        """Close an answer."""
        self.run(response.aclose() if self.asynchronous else response.close())

    def close(self) -> None:
        """Close the client."""
        self.run(self.client.aclose() if self.asynchronous else self.client.close())
        if self.loop is not None:
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.loop.close()


class Pieces:
    """Iterator over the pieces of an answer."""

    def __init__(self, caller: Caller, response: Any) -> None:
        self._caller = caller
        self._pieces = response.aiter_raw() if caller.asynchronous else response.iter_raw()

    def __iter__(self) -> "Pieces":
        return self

    def __next__(self) -> bytes:
        if not self._caller.asynchronous:
            piece: bytes = next(self._pieces)
            return piece
        try:
            piece = self._caller.run(anext(self._pieces))
        except StopAsyncIteration:
            raise StopIteration from None
        return piece


@contextlib.contextmanager
def calling(
    kind: str, server_verifier: Any, *, client: dict[str, Any] | None = None, **options: Any
) -> Iterator[Caller]:
    """Run with a client of a kind; `options` are the transport's."""
    caller = Caller(kind, server_verifier, client=client or {}, **options)
    try:
        yield caller
    finally:
        caller.close()


def iter_of(caller: Any, *pieces: bytes) -> Any:
    """Return a body that can be read only once."""

    async def asynchronous() -> Any:
        for piece in pieces:
            yield piece

    return asynchronous() if caller.asynchronous else iter(pieces)
