"""From an HTTP request to a method of the guest, and from its answer to an HTTP response.

This is plain ASGI: routes are a dictionary from raw paths to methods, headers are built once, and
a response is one start and one body with its Content-Length. Errors become statuses in one table.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import unquote

from attestkit.errors import AttestKitError, FormatError, NotFoundError, UsageError
from attestkit.serve import json_codec, query
from attestkit.serve.guest import Guest

__all__ = [
    "MAX_BODY",
    "App",
    "Codec",
    "Method",
    "Page",
    "Receive",
    "Scope",
    "Send",
    "Service",
    "rpc_app",
    "status_of",
]

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
Header: TypeAlias = tuple[bytes, bytes]
Guard: TypeAlias = Callable[[Scope], None]

MAX_BODY = 10 * 1024 * 1024
"""The largest request body in bytes; a longer one is refused without being read whole."""

_STATUSES = ((FormatError, 400), (UsageError, 400), (NotFoundError, 404), (AttestKitError, 500))
_READING = frozenset({"GET", "HEAD"})
_FORMS = frozenset({b"", b"application/x-www-form-urlencoded", b"text/plain"})
_logger = logging.getLogger("attestkit.serve")


class Codec(NamedTuple):
    """One encoding of messages, and of what went wrong."""

    content_type: bytes
    decode: Callable[[type[Any], bytes], Any]  # FormatError when the bytes are no such message
    encode: Callable[[Any], bytes]
    error_type: bytes
    encode_error: Callable[[str], bytes]


_JSON = b"application/json"
JSON = Codec(_JSON, json_codec.decode, json_codec.encode, _JSON, json_codec.encode_error)
QUERY = JSON._replace(decode=query.decode)

PROTOBUF: Codec | None = None
"""The codec of the binary mode; as long as there is none, such requests are told so."""


class Method(NamedTuple):
    """One call of a service: what runs, and which message it takes (None: the payload is ignored).

    A `device` method may wait for the platform; where that blocks it runs in the worker thread.
    """

    run: Callable[[Guest, Any], object]
    request: type[Any] | None = None
    device: bool = False


class Page(NamedTuple):
    """Something to look at with GET; `run` returns its bytes."""

    run: Callable[[Guest, None], bytes]
    content_type: bytes
    device: bool = False
    request: None = None

    @property
    def codec(self) -> Codec:
        """What writes the page; its errors are JSON as everywhere."""
        return JSON._replace(content_type=self.content_type, encode=bytes)


class Service(NamedTuple):
    """Methods under one mount point, with the prefix that is stripped from their names."""

    methods: Mapping[str, Method]
    mount: str = "/"
    prefix: str = ""


class _TooLargeError(UsageError):
    """The body is over the limit; what is left of it is not read, so the connection ends."""

    def __init__(self) -> None:
        super().__init__("failed to read data: payload too large")


class _DisconnectedError(Exception):
    """The client went away before its request was complete."""


def status_of(error: AttestKitError) -> int:
    """Return the HTTP status of an error: 400 the caller's, 404 nothing there, 500 ours."""
    return next(status for kind, status in _STATUSES if isinstance(error, kind))


def rpc_app(
    guest: Guest,
    services: Sequence[Service],
    *,
    pages: Mapping[str, Page] | None = None,
    headers: Sequence[Header] = (),
    guard: Guard | None = None,
) -> App:
    """Return the ASGI application of some services.

    Args:
        guest: What the methods work on.
        services: What is served; no two share a mount point.
        pages: What GET shows besides, by its path.
        headers: Sent with every response.
        guard: Called first with each request; raises the error that refuses it.
    """
    return _RpcApp(guest, services, pages or {}, headers, guard)


class _RpcApp:
    def __init__(
        self,
        guest: Guest,
        services: Sequence[Service],
        pages: Mapping[str, Page],
        headers: Sequence[Header],
        guard: Guard | None,
    ) -> None:
        self._guest = guest
        self._services = sorted(services, key=lambda service: -len(service.mount))
        self._pages = {path.encode("ascii"): page for path, page in pages.items()}
        self._headers = list(headers)
        self._guard = guard
        self._routes = {
            f"{service.mount}{prefix}{name}".encode("ascii"): method
            for service in services
            for name, method in service.methods.items()
            for prefix in {"", service.prefix}
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"cannot serve the scope {scope['type']!r}")
        codec, status, headers = JSON, 200, self._headers
        try:
            content_type = _check(scope, self._guard)
            found = self._routes.get(scope["raw_path"]) or self._find(scope)
            codec, payload = await _payload(found, content_type, scope, receive)
            request = None if found.request is None else codec.decode(found.request, payload)
            if found.device and self._guest.executor is not None:
                answer = await self._run_in_thread(found, request)
            else:
                answer = found.run(self._guest, request)
            body = codec.encode(answer)
            content_type = codec.content_type
        except _DisconnectedError:
            return
        except AttestKitError as error:
            status, content_type = status_of(error), codec.error_type
            body = codec.encode_error(str(error))
            if isinstance(error, _TooLargeError):
                headers = [*headers, (b"connection", b"close")]
        except Exception:
            # The text of a foreign error may hold what is not for the client: it goes to the log.
            request_id = self._guest.random(8).hex()
            _logger.exception("request %s failed", request_id)
            status, content_type = 500, codec.error_type
            body = codec.encode_error(f"internal error, request {request_id}")
        start = [(b"content-type", content_type), (b"content-length", b"%d" % len(body)), *headers]
        await send({"type": "http.response.start", "status": status, "headers": start})
        body = b"" if scope["method"] == "HEAD" else body
        await send({"type": "http.response.body", "body": body})

    def _find(self, scope: Scope) -> Method | Page:
        """Return what a path leads to that is not a route as it stands.

        Raises:
            NotFoundError: no such method, or nothing is mounted there.
        """
        raw_path, verb = scope["raw_path"], scope["method"]
        if verb in _READING and (page := self._pages.get(raw_path)):
            return page
        path = raw_path.decode("ascii", "replace")
        for service in self._services:
            name = path.removeprefix(service.mount)
            if name == path or not name or "/" in name:
                continue
            name = unquote(name)
            while service.prefix and name.startswith(service.prefix):
                name = name.removeprefix(service.prefix)
            if name in service.methods:
                return service.methods[name]
            raise NotFoundError(f"Service not found: {name}")
        raise NotFoundError(f"No such path: {path}")

    async def _run_in_thread(self, found: Method | Page, request: Any) -> object:  # noqa: ANN401 - a message
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._guest.executor, found.run, self._guest, request)


def _check(scope: Scope, guard: Guard | None) -> bytes:
    """Return the media type of the body, or raise what refuses the request before its body."""
    if guard is not None:
        guard(scope)
    content_type = b""
    for name, value in scope["headers"]:
        if name == b"content-type":
            content_type = value
        elif name == b"content-length" and int(value) > MAX_BODY:
            raise _TooLargeError
    return content_type


async def _payload(
    found: Method | Page, content_type: bytes, scope: Scope, receive: Receive
) -> tuple[Codec, bytes]:
    """Return the request's message as bytes, and what decodes it and encodes the answer."""
    if isinstance(found, Page):
        return found.codec, b""
    verb, query_string = scope["method"], scope["query_string"]
    if verb == "POST":
        body = await _read(receive)
        return _choose(content_type, query_string, body), body
    if verb in _READING:
        return QUERY, query_string
    raise NotFoundError(f"No such path for {verb}")


def _choose(content_type: bytes, query_string: bytes, body: bytes) -> Codec:
    """Return the codec of a POST.

    A body that starts with a brace is JSON also without a content type that says so, because that
    is what `curl -d '{...}'` sends; so is no body at all, which `curl -X POST` sends.
    """
    if content_type != _JSON and not (query_string and query.asks_for_json(query_string)):
        media_type = content_type.partition(b";")[0].strip().lower()
        if media_type != _JSON and not (media_type in _FORMS and body[:1] in {b"", b"{"}):
            if PROTOBUF is None:
                raise UsageError(
                    "protobuf is not served yet: send JSON, with Content-Type: application/json"
                )
            return PROTOBUF
    return JSON


async def _read(receive: Receive) -> bytes:
    """Return the body of a request, counting while it comes in."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _DisconnectedError
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > MAX_BODY:
            raise _TooLargeError
        if not message.get("more_body", False):
            return b"".join((*parts, part)) if parts else part
        parts.append(part)
