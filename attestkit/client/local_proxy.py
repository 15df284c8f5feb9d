"""A local HTTP server that forwards requests to a proven one: `attestkit connect URL --serve`.

For programs in other languages. It listens on the loopback interface only, where every program of
this machine can use it. Web pages cannot: a request with another Host, or with an Origin, is
refused.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final

from attestkit._sanitize import shown
from attestkit.errors import AttestKitError, UsageError

if TYPE_CHECKING:
    from attestkit.client.endpoint import Endpoint

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

# RFC 9110, 7.6.1: of one connection only; and what the client of the server sets itself.
_OF_CONNECTION: Final = frozenset(
    {
        b"connection",
        b"host",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
_BAD_GATEWAY, _FORBIDDEN = 502, 403


def listen_address(text: str) -> tuple[str, int]:
    """Return host and port of `HOST:PORT`.

    Raises:
        UsageError: If it is not a loopback address with a port.
    """
    host, colon, port = text.rpartition(":")
    host = host.strip("[]")
    try:
        number = int(port) if port.isascii() and port.isdecimal() else -1
        if not colon or not ip_address(host).is_loopback or not 0 <= number < 1 << 16:
            raise ValueError(text)
    except ValueError as error:
        message = f"--serve {shown(text)}: must be a loopback address and a port: 127.0.0.1:8337"
        raise UsageError(message, reason="wrong_value") from error
    return host, number


class LocalProxy:
    """Forwards requests from a loopback address to an endpoint.

    Args:
        endpoint: The endpoint, which the caller closes.
        address: Host and port to listen on; the port 0 is any free one.
    """

    def __init__(self, endpoint: "Endpoint", address: tuple[str, int]) -> None:
        self._endpoint, self._address = endpoint, address
        self._client: Any = None
        self._hosts: frozenset[bytes] = frozenset()

    def run(self) -> None:
        """Serve until the process is interrupted.

        Raises:
            UsageError: If uvicorn is not installed.
        """
        try:
            import uvicorn  # lazy: of the extra `serve`
        except ImportError as error:
            message = "--serve: uvicorn is not installed; pip install 'attestkit[serve]'"
            raise UsageError(message, reason="missing_dependency") from error
        host, port = self._address
        config = uvicorn.Config(self, host, port, log_level="warning", access_log=False)
        uvicorn.Server(config).run()

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Handle the events of uvicorn (ASGI 3)."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._forward(scope, receive, send)
        else:  # a WebSocket, which is not forwarded
            await send({"type": "websocket.close"})

    async def _live(self, receive: _Receive, send: _Send) -> None:
        """Have a client between startup and shutdown."""
        await receive()
        async with self._endpoint.async_client(timeout=None) as client:
            self._client = client
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def _forward(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        if (problem := _refusal(scope)) is not None:
            await _answer(send, _FORBIDDEN, problem)
            return
        target = scope["raw_path"] + (b"?" + query if (query := scope["query_string"]) else b"")
        headers = [(name, value) for name, value in scope["headers"] if name not in _OF_CONNECTION]
        request = self._client.build_request(
            scope["method"],
            self._endpoint.origin,
            headers=headers,
            content=_body(receive) if _has_body(scope) else None,
            extensions={"target": target},
        )
        try:
            answer = await self._client.send(request, stream=True)
        except AttestKitError as error:
            await _answer(send, _BAD_GATEWAY, str(error))
            return
        except Exception as error:  # noqa: BLE001 - of the HTTP client: the connection failed
            await _answer(send, _BAD_GATEWAY, f"no answer of the server ({type(error).__name__})")
            return
        try:
            fields = [
                (name.lower(), value)
                for name, value in answer.headers.raw
                if name.lower() not in _OF_CONNECTION
            ]
            await send(
                {"type": "http.response.start", "status": answer.status_code, "headers": fields}
            )
            async for piece in answer.aiter_raw():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            await answer.aclose()


def _refusal(scope: _Scope) -> str | None:
    """Return why a request is refused: it may be of a web page; None if it is not."""
    headers = dict(scope["headers"])
    host, port = scope["server"]
    names = {f"{host}:{port}", f"[{host}]:{port}", f"localhost:{port}"}
    if headers.get(b"host", b"").decode("latin-1") not in names:
        return "the header Host must be the address of this proxy"
    if b"origin" in headers or b"sec-fetch-site" in headers:
        return "requests of web pages are refused"
    return None


def _has_body(scope: _Scope) -> bool:
    names = {name for name, _ in scope["headers"]}
    return not names.isdisjoint({b"content-length", b"transfer-encoding"})


async def _body(receive: _Receive) -> AsyncIterator[bytes]:
    while True:
        event = await receive()
        if event["type"] != "http.request":
            raise ConnectionError("the client has disconnected")
        yield event.get("body", b"")
        if not event.get("more_body"):
            return


async def _answer(send: _Send, status: int, text: str) -> None:
    body = f"attestkit: {text}\n".encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
