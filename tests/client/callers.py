"""Each client library on an endpoint, with one interface: one request, over what connection it has.

Libraries whose connections are proven on the wire differ from those that compare pins alone.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Final

import aiohttp
import websockets

from attestkit.client.endpoint import Endpoint
from attestkit.errors import AttestKitError

TIMEOUT: Final = 20.0


class Caller:
    """A client of one endpoint.

    Attributes:
        pins_only: Whether a new key is refused until `Endpoint.prove`.
    """

    pins_only = False

    def __init__(self, endpoint: Endpoint, **options: Any) -> None:
        self.endpoint, self.options = endpoint, options

    def post(self, body: bytes, url: str | None = None, **options: Any) -> bytes:
        """Send a request, by default to the endpoint, and return the body of the answer."""
        raise NotImplementedError

    def close(self) -> None:
        """Close all connections."""


class Httpx(Caller):
    """httpx or httpx2 in a thread."""

    library: Any = "httpx"

    def __init__(self, endpoint: Endpoint, **options: Any) -> None:
        super().__init__(endpoint, **options)
        self._client = endpoint.client(http=self.library, **options)

    def post(self, body: bytes, url: str | None = None, **options: Any) -> bytes:
        """See `Caller.post`."""
        answer = self._client.post(url or self.endpoint.url, content=body, **options)
        content: bytes = answer.content
        return content

    def close(self) -> None:
        """See `Caller.close`."""
        self._client.close()


class Httpx2(Httpx):
    """httpx2 in a thread."""

    library = "httpx2"


class Requests(Caller):
    """requests."""

    def __init__(self, endpoint: Endpoint, **options: Any) -> None:
        super().__init__(endpoint, **options)
        self._session = endpoint.requests_session()
        for name, value in options.items():
            setattr(self._session, name, value)

    def post(self, body: bytes, url: str | None = None, **options: Any) -> bytes:
        """See `Caller.post`."""
        url = url or self.endpoint.url
        return self._session.post(url, data=body, timeout=TIMEOUT, **options).content

    def close(self) -> None:
        """See `Caller.close`."""
        self._session.close()


class OnLoop(Caller):
    """A library on an event loop of its own."""

    def __init__(self, endpoint: Endpoint, **options: Any) -> None:
        super().__init__(endpoint, **options)
        self._loop = asyncio.new_event_loop()
        self._run(self.open())

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run_until_complete(asyncio.wait_for(work, TIMEOUT))

    def post(self, body: bytes, url: str | None = None, **options: Any) -> bytes:
        """See `Caller.post`."""
        answer: bytes = self._run(self.send(body, url or self.endpoint.url, **options))
        return answer

    def close(self) -> None:
        """See `Caller.close`."""
        try:
            self._run(self.aclose())
            self._run(self._close_transports())
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
        finally:
            self._loop.close()

    async def _close_transports(self) -> None:
        """Wait until the loop has closed those of ended and refused connections."""
        selector: Any = getattr(self._loop, "_selector")  # noqa: B009 - of asyncio's own loop
        while len(selector.get_map()) > 1:  # noqa: ASYNC110 - beside its own pipe; no event tells
            await asyncio.sleep(0.001)

    async def open(self) -> None:
        """Make the client."""

    async def send(self, body: bytes, url: str, **options: Any) -> bytes:
        """Send a request."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """Close the client."""


class AsyncHttpx(OnLoop):
    """httpx on asyncio."""

    library: Any = "httpx"

    async def open(self) -> None:
        """See `OnLoop.open`."""
        self._client = self.endpoint.async_client(http=self.library, **self.options)

    async def send(self, body: bytes, url: str, **options: Any) -> bytes:
        """See `OnLoop.send`."""
        content: bytes = (await self._client.post(url, content=body, **options)).content
        return content

    async def aclose(self) -> None:
        """See `OnLoop.aclose`."""
        await self._client.aclose()


class AsyncHttpx2(AsyncHttpx):
    """httpx2 on asyncio."""

    library = "httpx2"


class Aiohttp(OnLoop):
    """aiohttp, with the context of the endpoint, and a connection for each request."""

    pins_only = True

    async def open(self) -> None:
        """See `OnLoop.open`."""
        connector = aiohttp.TCPConnector(ssl=self.endpoint.ssl_context, force_close=True)
        self._session = aiohttp.ClientSession(connector=connector)

    async def send(self, body: bytes, url: str, **options: Any) -> bytes:
        """See `OnLoop.send`."""
        async with self._session.post(url, data=body, **options) as answer:
            return await answer.read()

    async def aclose(self) -> None:
        """See `OnLoop.aclose`."""
        await self._session.close()


class Websockets(OnLoop):
    """websockets, with the context of the endpoint: each request is a connection and a message."""

    pins_only = True

    async def send(self, body: bytes, url: str, **options: Any) -> bytes:
        """See `OnLoop.send`."""
        context = self.endpoint.ssl_context
        url = "wss" + url.removeprefix("https")
        async with websockets.connect(url, ssl=context, **options) as connection:
            await connection.send(body)
            answer = await connection.recv()
            assert isinstance(answer, bytes)
            return answer


CALLERS: Final[dict[str, type[Caller]]] = {
    "httpx": Httpx,
    "httpx2": Httpx2,
    "httpx, asyncio": AsyncHttpx,
    "httpx2, asyncio": AsyncHttpx2,
    "requests": Requests,
    "aiohttp": Aiohttp,
    "websockets": Websockets,
}


@contextmanager
def calling(name: str, endpoint: Endpoint, **options: Any) -> Iterator[Caller]:
    """Open a client, and close it."""
    caller = CALLERS[name](endpoint, **options)
    try:
        yield caller
    finally:
        caller.close()


def refusal_of(call: Callable[[], object]) -> AttestKitError:
    """Return attestkit's error of a call that must fail; libraries may wrap it."""
    try:
        call()
    except Exception as error:  # noqa: BLE001 - of any library
        return find_error(error)
    raise AssertionError("it was not refused")


def find_error(error: BaseException) -> AttestKitError:
    """Return attestkit's error of one that a library has raised, which is raised if it has none."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, AttestKitError):
        inner = getattr(found, "certificate_error", None) or getattr(found, "os_error", None)
        found = inner or found.__cause__ or found.__context__
    if found is None:
        raise error
    return found
