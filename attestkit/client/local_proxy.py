"""A local HTTP server that forwards to an attested one: `attestkit connect URL --serve`.

For programs in other languages. It listens on the loopback interface only, where every program of
this machine can use it. Web pages cannot: a request with another Host, or with an Origin, is
refused.
"""

import asyncio
import errno
import logging
import os
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, MutableMapping
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final

from attestkit._argument_checks import needs_extra
from attestkit._sanitize import shown
from attestkit._system.bounded_http import host_header
from attestkit.client.wire.http_libraries import choose_library, load_library
from attestkit.errors import AttestKitError, ConfigError, UsageError

if TYPE_CHECKING:
    from attestkit.client.endpoint import Endpoint
    from attestkit.client.wire.http_libraries import LibraryName

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

# RFC 9110, 7.6.1: of one connection only; and what the client of the server sets itself.
_OF_CONNECTION: Final = frozenset(
    {
        b"connection",
        b"expect",  # uvicorn has answered it
        b"host",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
_logger = logging.getLogger("attestkit.client")
_PORT: Final = re.compile("[0-9]{1,5}")
_BAD_GATEWAY, _FORBIDDEN = 502, 403
_IDLE_SECONDS: Final = 60  # clients close idle connections first: httpx after five seconds


def listen_address(text: str) -> tuple[str, int]:
    """Return host and port to listen on, from `HOST:PORT` with a loopback address.

    Raises:
        UsageError: If `text` is not a loopback address with a port.
    """
    host, _, port = text.rpartition(":")
    host = host.strip("[]")
    if not (_is_loopback(host) and _PORT.fullmatch(port) and int(port) < 1 << 16):
        message = (
            f"--serve {shown(text)}: must be a loopback address and a port, such as 127.0.0.1:8337"
        )
        raise UsageError(message, reason="wrong_value")
    return host, int(port)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


class LocalProxy:
    """HTTP server on a loopback address that forwards requests to the server of an endpoint.

    Args:
        endpoint: The endpoint, which the caller closes.
        address: Host and port to listen on; the port 0 is any free one.

    Raises:
        UsageError: If neither httpx2 nor httpx is installed.
    """

    def __init__(self, endpoint: "Endpoint", address: tuple[str, int]) -> None:
        self._endpoint, self._address = endpoint, address
        self._library: LibraryName = choose_library(None)
        self._transport: Any = None

    def run(self, on_ready: Callable[[str], object]) -> None:
        """Serve until the process is interrupted.

        Args:
            on_ready: Called with the URL of this proxy once it listens.

        Raises:
            UsageError: If uvicorn is not installed.
            ConfigError: If the address cannot be bound.
        """
        with needs_extra("--serve", "serve"):
            import uvicorn
        config = uvicorn.Config(
            self,
            log_level="warning",
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=_IDLE_SECONDS,
            timeout_graceful_shutdown=1,
        )
        with self._listen() as listener:
            on_ready(f"http://{host_header(*listener.getsockname()[:2])}")
            uvicorn.Server(config).run(sockets=[listener])

    def _listen(self) -> socket.socket:
        host, port = self._address
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            return socket.create_server((host, port), family=family)
        except OSError as error:
            number = error.errno or 0
            problem = os.strerror(number) if number > 0 else str(error)  # negative: the resolver's
            message = f"--serve {host}:{port}: cannot listen: {problem}"
            in_use = error.errno == errno.EADDRINUSE
            raise ConfigError(message, reason="in_use" if in_use else "wrong_value") from error

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Forward HTTP requests, refuse WebSockets, and handle startup and shutdown (ASGI 3)."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._forward(scope, receive, send)
        else:  # a WebSocket, which is not forwarded
            await receive()
            await send({"type": "websocket.close"})

    async def _live(self, receive: _Receive, send: _Send) -> None:
        """Open the transport at startup (ASGI lifespan), and close it at shutdown."""
        await receive()
        # A client would keep cookies, and send those of one program with requests of another.
        async with self._endpoint.async_transport(http=self._library) as transport:
            self._transport = transport
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def _forward(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        if (problem := _refusal(scope)) is not None:
            await _answer(send, _FORBIDDEN, problem)
            return
        try:
            answer = await self._transport.handle_async_request(self._request(scope, receive))
        except AttestKitError as error:
            await _answer(send, _BAD_GATEWAY, str(error))
            return
        except Exception as error:  # noqa: BLE001 - of the HTTP library: the connection failed
            await _answer(send, _BAD_GATEWAY, f"no answer of the server ({type(error).__name__})")
            return
        try:
            await _until_disconnect(_pass_on(answer, send), receive)
        finally:
            await answer.aclose()

    def _request(self, scope: _Scope, receive: _Receive) -> Any:  # noqa: ANN401 - of either library
        target = scope["raw_path"] + (b"?" + query if (query := scope["query_string"]) else b"")
        seconds = self._endpoint.timeout
        return load_library(self._library).httpx.Request(
            scope["method"],
            self._endpoint.origin,
            headers=_end_to_end(scope["headers"]),
            content=_body(receive) if _has_body(scope) else None,
            extensions={"target": target, "timeout": {"connect": seconds, "pool": seconds}},
        )


def _end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return names and values of headers without the hop-by-hop ones (RFC 9110, 7.6.1)."""
    fields = [(name.lower(), value) for name, value in headers]
    named = {
        one.strip().lower()
        for name, value in fields
        if name == b"connection"
        for one in value.split(b",")
    }
    return [field for field in fields if field[0] not in _OF_CONNECTION | named]


async def _pass_on(answer: Any, send: _Send) -> None:  # noqa: ANN401 - as above
    """Forward an answer piece by piece; omit its end if the connection to the server is lost.

    Args:
        answer: Response of httpx or httpx2, whose body is not yet read.
        send: Function of ASGI that takes the events of the response.
    """
    headers = _end_to_end(answer.headers.raw)
    await send({"type": "http.response.start", "status": answer.status_code, "headers": headers})
    try:
        async for piece in answer.aiter_raw():
            await send({"type": "http.response.body", "body": piece, "more_body": True})
    except Exception as error:  # noqa: BLE001 - uvicorn closes the connection of the client
        _logger.warning("an answer was broken off: %s", type(error).__name__)
        return
    await send({"type": "http.response.body", "body": b""})


async def _until_disconnect(work: Coroutine[Any, Any, None], receive: _Receive) -> None:
    """Run `work`, and cancel it if the client disconnects.

    Args:
        work: Coroutine that sends the answer.
        receive: Function of ASGI that returns the client's next event.
    """
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_disconnect(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnect(receive: _Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _refusal(scope: _Scope) -> str | None:
    """Return why a request is refused; None if it is accepted.

    Refused are a different Host, a target that is not a path, and requests of web pages.

    Args:
        scope: ASGI scope of the request.
    """
    headers = dict(scope["headers"])
    host, port = scope["server"]
    names = {f"{name}:{port}" for name in (host, f"[{host}]", "localhost")}
    hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
    if len(hosts) != 1 or hosts[0] not in names:
        return "the header Host must be the address of this proxy"
    if not scope["raw_path"].startswith(b"/") and scope["raw_path"] != b"*":
        return "the target must be a path, because requests go to the proven server only"
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
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"%d" % len(body)),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
