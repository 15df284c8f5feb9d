"""Dispatcher: HTTP requests to service methods and views, and their results to HTTP responses.

Routes are a dictionary of raw paths, and header sections are built once. The application has two
interfaces: plain ASGI, and `direct`, a synchronous one for methods that do not block, which needs
neither a task nor ASGI messages.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from itertools import count
from time import perf_counter
from typing import Any, NamedTuple, Protocol, TypeVar, cast
from urllib.parse import unquote

from attestkit.errors import NotFoundError, UsageError
from attestkit.serve.config.limits import Limits
from attestkit.serve.counters import OTHER, Traffic
from attestkit.serve.http.asgi import Access, Guard, Receive, Scope, Send
from attestkit.serve.http.request_body import (
    UNCOUNTED,
    BodyReader,
    DisconnectedError,
    TooLargeError,
)
from attestkit.serve.http.views import ENDLESS, Header, Pieces, View, ViewRequest, ViewResponse
from attestkit.serve.lazy_import import is_loaded, load
from attestkit.serve.rpc import query_codec
from attestkit.serve.rpc.codecs import (
    JSON,
    JSON_TYPE,
    PROTOBUF_MODULE,
    QUERY,
    Codec,
    RpcResponse,
    protobuf,
)
from attestkit.serve.rpc.error_responses import CLOSE, error_response
from attestkit.serve.rpc.service import Method, MethodRoute, Service

T = TypeVar("T")
_VERBS = frozenset({"GET", "HEAD", "POST"})
_FORMS = frozenset({b"", b"application/x-www-form-urlencoded", b"text/plain"})
_LONGEST_NAME = 128  # characters of a name or path in an error message
_DIRECT_TYPES = (None, JSON_TYPE)


class MethodContext(Protocol):
    """Interface of the context that methods get, such as `Guest`, for the dispatcher."""

    @property
    def device_blocks(self) -> bool:
        """Whether calls of the device wait in its queue."""
        ...

    @property
    def signs_remotely(self) -> bool:
        """Whether methods that sign wait for the network."""
        ...

    async def on_device(
        self, work: Callable[[], T], *, writes: bool = False, signs: bool = False
    ) -> T:
        """Return the result of `work`, run in the device's thread if it may block or `writes`.

        If it `signs`, and methods that sign wait for the network, it runs in another thread.
        """
        ...


class _ViewRoute(NamedTuple):
    name: str  # for metrics
    view: View
    rest: str  # path segment after the view's mount point


@dataclass(eq=False)
class RpcApp:
    """ASGI application of one listener: its services, and its views."""

    guest: MethodContext
    services: Sequence[Service]  # with different mount points
    _: KW_ONLY
    views: Mapping[str, View] = field(default_factory=dict)  # for GET and HEAD, by path
    headers: Sequence[Header] = ()  # of every response, including the listener's own errors
    guard: Guard | None = None  # called with each request; raises an error to refuse it
    access: Access | None = None  # checks each request after the guard
    limits: Limits = field(default_factory=Limits)
    traffic: Traffic = field(default_factory=Traffic)  # counters of the requests
    run_id: str = "0"  # prefix of request ids; a counter follows

    def __post_init__(self) -> None:
        mounts = [(mount, service) for service in self.services for mount in service.mounts]
        self._mounts = sorted(mounts, key=lambda mounted: -len(mounted[0]))
        ids = map(f"{self.run_id}-%08x".encode("ascii").__mod__, count(1))
        self.new_id: Callable[[], bytes] = ids.__next__
        self._heads: dict[tuple[int, bytes], bytes] = {}
        self._endless: set[asyncio.Future[None]] = set()
        self._bodies = BodyReader(self.limits.bodies)
        self._routes: dict[bytes, MethodRoute] = {
            f"{mount}{prefix}{name}".encode("ascii"): service.route(name)
            for mount, service in reversed(self._mounts)  # the longest mount point takes precedence
            for name in service.methods
            for prefix in {"", service.prefix}
        }

    @property
    def route_names(self) -> frozenset[str]:
        """Names of the methods, and mount points of the views."""
        return frozenset({*(route.name for route in self._routes.values()), *self.views})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request (ASGI)."""
        if scope["type"] != "http":
            raise RuntimeError(f"ASGI scope: unsupported type {scope['type']!r}; send http only")
        begin, request_id = perf_counter(), self.new_id()
        try:
            name, reply = await self._reply(scope, receive, request_id)
        except DisconnectedError:
            return
        status = reply.status if isinstance(reply, RpcResponse) else 200
        self.traffic.done(name, status, perf_counter() - begin)
        headers = [(b"content-type", reply.content_type), *self.headers, *reply.headers]
        headers.append((b"x-request-id", request_id))
        start = {"type": "http.response.start", "status": status, "headers": headers}
        if isinstance(reply, RpcResponse):
            headers.append((b"content-length", b"%d" % sum(map(len, reply.body))))
            await send(start)
            *pieces, last = (b"",) if scope["method"] == "HEAD" else reply.body or (b"",)
            for piece in pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": last})
        else:
            await send({**start, ENDLESS: reply.endless})
            await self._stream(reply, scope["method"], receive, send)

    def direct(self, target: bytes, content_type: bytes | None) -> MethodRoute | None:
        """Return the method of a target if `respond` can answer the request in the event loop.

        None: pass the request to the ASGI application, because the target is unknown, the method
        may block or accepts only POST, or the service has checks of its own before the call.

        Args:
            target: Path and query of the request.
            content_type: Content type of the body; None without a body. A protobuf body blocks
                until the library is loaded.
        """
        call = self._routes.get(target.partition(b"?")[0])
        if call is None or call.method.json_only or call.method.post_only:
            return None
        if self.guard is not None or self.access is not None:
            return None
        if content_type not in _DIRECT_TYPES and not is_loaded(PROTOBUF_MODULE):
            return None
        return None if self.blocks(call) else call

    def blocks(self, call: MethodRoute) -> bool:
        """Return whether the method would currently wait for the platform or a disk."""
        method = call.method
        if method.writes or method.waits or (method.signs and self.guest.signs_remotely):
            return True
        return method.device and self.guest.device_blocks

    def respond(
        self, route: MethodRoute, target: bytes, content_type: bytes, body: bytes | None
    ) -> tuple[int, bytes, Sequence[bytes], int, bytes]:
        """Answer a request to a method that `direct` returned.

        Args:
            route: The method, from `direct`.
            target: Path and query of the request.
            content_type: Value of Content-Type; empty without a body, or without that header.
            body: Body of a POST; None for a GET.

        Returns:
            The HTTP status, the encoded header section, the body in pieces, its length in bytes,
            and the request id.
        """
        begin, request_id = perf_counter(), self.new_id()
        codec, payload = QUERY, target.partition(b"?")[2]
        try:
            if body is not None:
                codec, query_string, payload = JSON, payload, body
                if not _is_json(content_type, query_string, body):
                    codec = protobuf()
            reply = self._call(route.method, codec, payload)
        except Exception as error:  # noqa: BLE001 - in error_response()
            reply = error_response(error, codec, request_id)
        head = self._heads.get(reply[:2]) or self._make_head(reply)
        length = sum(map(len, reply.body))
        self.traffic.done(route.name, reply.status, perf_counter() - begin)
        head %= (length, request_id)
        return reply.status, head, reply.body, length, request_id

    def _make_head(self, reply: RpcResponse) -> bytes:
        fields = ((b"content-type", reply.content_type), *self.headers)
        fixed = b"".join(b"%b: %b\r\n" % field for field in fields).replace(b"%", b"%%")
        head = fixed + b"content-length: %d\r\nx-request-id: %b\r\n"
        self._heads[reply.status, reply.content_type] = head
        return head

    def stop(self) -> None:
        """End endless responses, because the server shuts down."""
        for stream in self._endless:
            stream.cancel()

    async def _reply(
        self, scope: Scope, receive: Receive, request_id: bytes
    ) -> tuple[str, RpcResponse | ViewResponse]:
        """Return the name of the route, for metrics, and the response; errors are responses too.

        `request_id` is for the text of an unexpected error.
        """
        codec = QUERY
        verb, path, payload = scope["method"], scope["raw_path"], scope["query_string"]
        route = self._find(verb, path)
        known = None if isinstance(route, NotFoundError) else route.name
        name = known or OTHER
        try:
            content_type, size = self._check(scope)
            if verb == "POST":
                codec = await _choose(content_type, payload, b"{")  # until the body is known
            if self.access is not None:  # before the body is read
                await self.access.check(scope, known)
            if isinstance(route, NotFoundError):
                if verb == "POST":
                    try:  # to read enough of the body to select the encoding of the error
                        start = await self._bodies.read(receive, size, UNCOUNTED)
                    except TooLargeError:
                        response = error_response(route, codec, request_id)
                        return name, response._replace(headers=CLOSE)
                    codec = await _choose(content_type, payload, start)
                return name, error_response(route, codec, request_id)
            if verb == "POST":
                body = await self._bodies.read(receive, size, self.limits.body)
                codec, payload = await _choose(content_type, payload, body), body
            if isinstance(route, MethodRoute):
                _check_form(route.method, scope, name)
            return name, await self._answer(route, codec, payload, scope)
        except DisconnectedError:
            raise
        except Exception as error:  # noqa: BLE001 - in error_response()
            return name, error_response(error, codec, request_id)

    async def _answer(
        self, route: MethodRoute | _ViewRoute, codec: Codec, payload: bytes, scope: Scope
    ) -> RpcResponse | ViewResponse:
        if isinstance(route, _ViewRoute):
            view_request = ViewRequest(route.rest, payload, (scope.get("client") or ("",))[0])
            reply = await route.view.show(self.guest, view_request)
            if isinstance(reply.body, bytes):
                return RpcResponse(200, reply.content_type, (reply.body,), reply.headers)
            return reply
        if route.method.device:
            call = partial(self._call, route.method, codec, payload)
            method = route.method
            return await self.guest.on_device(call, writes=method.writes, signs=method.signs)
        if route.method.waits:
            return await self._await(route.method, codec, payload)
        return self._call(route.method, codec, payload)

    def _call(self, method: Method, codec: Codec, payload: bytes) -> RpcResponse:
        found = self._run(method, codec, payload)
        return RpcResponse(200, codec.content_type, codec.encode(found))

    async def _await(self, method: Method, codec: Codec, payload: bytes) -> RpcResponse:
        """Await a method that is a coroutine function; return its encoded response (200).

        `codec` decodes the request in `payload`, and encodes the response.
        """
        found: Any = await cast("Awaitable[Any]", self._run(method, codec, payload))
        return RpcResponse(200, codec.content_type, codec.encode(found))

    def _run(self, method: Method, codec: Codec, payload: bytes) -> Any:  # noqa: ANN401
        request = None if method.request is None else codec.decode(method.request, payload)
        return method.run(self.guest, request)

    def _find(self, verb: str, raw_path: bytes) -> MethodRoute | _ViewRoute | NotFoundError:
        """Return the route of a request by its HTTP method and its path, not decoded.

        For an unknown path, return the error to respond with.
        """
        if verb not in _VERBS:
            return NotFoundError(f"No such path for {_short(verb)}; use GET or POST", reason="path")
        if (call := self._routes.get(raw_path)) is not None:
            return call
        path = raw_path.decode("ascii", "replace")
        if verb != "POST":
            for mount, view in self.views.items():
                name = _below(mount, path) if view.named else ""
                if name or (path == mount and not view.named):
                    return _ViewRoute(mount, view, name)
        for mount, service in self._mounts:
            name = _below(mount, path)
            if not name:
                continue
            while service.prefix and name.startswith(service.prefix):
                name = name.removeprefix(service.prefix)
            if name in service.methods:
                return service.route(name)
            return NotFoundError(f"Service not found: {_short(name)}", reason="method")
        return NotFoundError(f"No such path: {_short(path)}", reason="path")

    def _check(self, scope: Scope) -> tuple[bytes, int]:
        """Run the guard; return Content-Type and Content-Length, or b"" and 0 without them."""
        if self.guard is not None:
            self.guard(scope)
        content_type, size = b"", 0
        for name, value in scope["headers"]:
            if name == b"content-type":
                content_type = value
            elif name == b"content-length":
                size = int(value)
        if size > self.limits.body and scope["method"] != "POST":  # POST: once the codec is known
            raise TooLargeError
        return content_type, size

    async def _stream(self, stream: ViewResponse, verb: str, receive: Receive, send: Send) -> None:
        """Send the body of a view's response until it ends or the client disconnects.

        It is read at the client's speed, and left out for the HTTP method (`verb`) HEAD.
        """
        pieces = cast("Pieces", stream.body)
        if verb == "HEAD":
            await pieces.aclose()
            await send({"type": "http.response.body", "body": b""})
            return
        pump = asyncio.ensure_future(_pump(pieces, send))
        disconnected = asyncio.ensure_future(_wait_for_disconnect(receive))
        if stream.endless:
            self._endless.add(pump)
        try:
            await asyncio.wait({pump, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._endless.discard(pump)
            pump.cancel()
            disconnected.cancel()
            await asyncio.wait({pump, disconnected})
            await pieces.aclose()
        if not pump.cancelled():
            pump.result()  # an unexpected error truncates the response
        await send({"type": "http.response.body", "body": b""})


async def _pump(pieces: Pieces, send: Send) -> None:
    async for piece in pieces:
        await send({"type": "http.response.body", "body": piece, "more_body": True})


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _short(text: str) -> str:
    """Return a text from the client for an error message, cut to a limited length."""
    return text if len(text) <= _LONGEST_NAME else f"{text[:_LONGEST_NAME]}..."


def _below(mount: str, path: str) -> str:
    """Return the percent-decoded path segment after `mount`, which ends with a slash.

    Empty unless exactly one segment follows.
    """
    name = path.removeprefix(mount)
    return "" if name == path or "/" in name else unquote(name)


def _check_form(method: Method, scope: Scope, name: str) -> None:
    """Check a request to a method that is `post_only` or `json_only`.

    `name` is the name of the method, for errors.

    Raises:
        UsageError: If the request is not POST, or the method is `json_only` and a Content-Type is
            not JSON.
    """
    if method.post_only and scope["method"] != "POST":
        raise UsageError(f"{name}: the request must be POST", reason="wrong_value")
    if not method.json_only:
        return
    types = [value for header, value in scope["headers"] if header == b"content-type"]
    if scope["method"] != "POST" or set(map(_media_type, types)) != {JSON_TYPE}:
        message = f"{name}: must be POST with Content-Type: application/json on this listener"
        raise UsageError(message, reason="refused_origin")


async def _choose(content_type: bytes, query_string: bytes, body: bytes) -> Codec:
    """Return the codec of a POST, as `_is_json` decides, loading that for protobuf in a thread."""
    if _is_json(content_type, query_string, body):
        return JSON
    await load(PROTOBUF_MODULE)
    return protobuf()


def _is_json(content_type: bytes, query_string: bytes, body: bytes) -> bool:
    """Return whether the body of a POST, and so its response, is JSON.

    That follows from Content-Type, from the query (`?json`), or from the start of the body: one
    that starts with a brace is JSON even with the content type of a form, because that is what
    `curl -d '{...}'` sends.
    """
    if content_type != JSON_TYPE and not (query_string and query_codec.asks_for_json(query_string)):
        media_type = _media_type(content_type)
        return media_type == JSON_TYPE or (media_type in _FORMS and body[:1] == b"{")
    return True


def _media_type(content_type: bytes) -> bytes:
    """Return the media type of a Content-Type, in lower case and without parameters."""
    return content_type.partition(b";")[0].strip().lower()
