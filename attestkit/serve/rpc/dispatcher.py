"""From an HTTP request to a method of the guest, and from its answer to an HTTP response.

Routes are a dictionary from raw paths to methods and views, headers are built once, and errors
become statuses in one table. The same application answers in two ways: as plain ASGI, and for
methods that never wait through `direct`, which costs a listener neither task nor messages.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from functools import cache, partial
from itertools import count
from time import perf_counter
from typing import Any, NamedTuple, Protocol, TypeVar
from urllib.parse import unquote

from attestkit.errors import AttestKitError, FormatError, NotFoundError, UsageError
from attestkit.serve.config.limits import LimitError, Limits
from attestkit.serve.counters import OTHER, Traffic
from attestkit.serve.http import errors
from attestkit.serve.http.asgi import Guard, Receive, Scope, Send
from attestkit.serve.http.views import ENDLESS, Asked, Header, Pieces, View
from attestkit.serve.lazy_import import is_loaded, load
from attestkit.serve.rpc import json_codec, query_codec

__all__ = ["Codec", "DirectCall", "Method", "Reply", "RpcApp", "Service", "status_of"]


T = TypeVar("T")
_STATUSES = (
    *((FormatError, 400), (UsageError, 400), (NotFoundError, 404), (LimitError, 503)),
    (AttestKitError, 500),
)
_VERBS = frozenset({"GET", "HEAD", "POST"})
_FORMS = frozenset({b"", b"application/x-www-form-urlencoded", b"text/plain"})
_SMALL = 64 * 1024  # bytes of a body that are always taken
_CLOSE = ((b"connection", b"close"),)
_logger = logging.getLogger("attestkit.serve")


class Codec(NamedTuple):
    """One encoding of messages, and of what went wrong."""

    content_type: bytes
    decode: Callable[[type[Any], bytes], Any]  # FormatError when the bytes are no such message
    encode: Callable[[Any], Sequence[bytes]]  # in pieces, so that long ones are never copied
    error_type: bytes
    encode_error: Callable[[str], bytes]


_JSON = b"application/json"
_BINARY = b"application/octet-stream"
_DIRECT_TYPES = (None, _JSON)
JSON = Codec(_JSON, json_codec.decode, json_codec.encode, _JSON, errors.encode_error)
QUERY = JSON._replace(decode=query_codec.decode)


_PROTOBUF = "attestkit.serve.rpc.protobuf_codec"


@cache
def protobuf() -> Codec:
    """Return the codec of the binary mode, whose library takes 20 ms to load."""
    from attestkit.serve.rpc import (
        protobuf_codec as codec,  # late: many servers are never asked for it
    )

    return Codec(_BINARY, codec.decode, codec.encode, _BINARY, codec.encode_error)


class Method(NamedTuple):
    """One call of a service: what runs, and which message it takes (None: the payload is ignored).

    A `device` method may wait for the platform; where that blocks it runs in the worker thread, and
    one that `writes` to a disk always does.
    Documents take what `run` answers from its annotation, and the words from its docstring.
    """

    run: Callable[[Any, Any], object]  # what the methods work on, and the message
    request: type[Any] | None = None
    device: bool = False
    writes: bool = False


class Service(NamedTuple):
    """Methods under one mount point, with the prefix that is stripped from their names."""

    methods: Mapping[str, Method]
    mount: str = "/"
    prefix: str = ""
    name: str = ""  # in documents


class Worked(Protocol):
    """What the methods of an application work on, as far as whoever calls them must know it."""

    @property
    def executor(self) -> Executor | None:
        """The device's thread; None as long as the device does not block."""
        ...

    async def on_device(self, work: Callable[[], T], *, writes: bool = False) -> T:
        """Return what `work` returns; its thread does it where the device blocks, or it writes."""
        ...


class Reply(NamedTuple):
    """A response that is all there, its body in pieces so that long ones are not copied."""

    status: int
    content_type: bytes
    body: Sequence[bytes]
    headers: Sequence[Header] = ()  # besides those of the listener


class _Stream(NamedTuple):
    content_type: bytes
    pieces: Pieces
    headers: Sequence[Header]
    endless: bool


class DirectCall(NamedTuple):
    """A method that a path leads to."""

    name: str  # for statistics
    method: Method


class _Look(NamedTuple):
    name: str  # for statistics
    view: View
    rest: str  # of a path, behind the mount of a view


class _TooLargeError(UsageError):
    """The body is over the limit; what is left of it is not read, so the connection ends."""

    def __init__(self) -> None:
        super().__init__("failed to read data: payload too large")


class _CrowdedError(LimitError):
    """All bodies together are over their limit; what is left of this one is not read."""

    def __init__(self) -> None:
        super().__init__("too many large requests at a time: try again later")


class _DisconnectedError(Exception):
    """The client went away before its request was complete."""


def status_of(error: AttestKitError) -> int:
    """Return the HTTP status of an error: 400 the caller's, 404 not there, 503 full, else 500."""
    return next(status for kind, status in _STATUSES if isinstance(error, kind))


class RpcApp:
    """The application of one listener.

    Args:
        guest: What the methods work on.
        services: What is served; no two share a mount point.
        views: What GET shows besides, by path.
        headers: Sent with every response, and by a listener with what it refuses itself.
        guard: Called first with each request; raises the error that refuses it.
        limits: Of requests.
        traffic: Counts them.
        run_id: The first half of every request's id; the second counts.
    """

    def __init__(
        self,
        guest: Worked,
        services: Sequence[Service],
        *,
        views: Mapping[str, View] | None = None,
        headers: Sequence[Header] = (),
        guard: Guard | None = None,
        limits: Limits | None = None,
        traffic: Traffic | None = None,
        run_id: str = "0",
    ) -> None:
        self._guest = guest
        self._services = sorted(services, key=lambda service: -len(service.mount))
        self._views = dict(views or {})
        self.headers: list[Header] = list(headers)
        self._guard = guard
        self._limits = limits or Limits()
        self._traffic = traffic or Traffic()
        ids = map(f"{run_id}-%08x".encode("ascii").__mod__, count(1))
        self.new_id: Callable[[], bytes] = ids.__next__
        self._heads: dict[tuple[int, bytes], bytes] = {}
        self._held = 0  # bytes of bodies that are being read
        self._endless: set[asyncio.Future[None]] = set()
        self._routes = {
            f"{service.mount}{prefix}{name}".encode("ascii"): DirectCall(name, method)
            for service in services
            for name, method in service.methods.items()
            for prefix in {"", service.prefix}
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, as ASGI has it."""
        if scope["type"] != "http":
            raise RuntimeError(f"cannot serve the scope {scope['type']!r}")
        begin, request_id = perf_counter(), self.new_id()
        try:
            name, reply = await self._reply(scope, receive, request_id)
        except _DisconnectedError:
            return
        status = reply.status if isinstance(reply, Reply) else 200
        self._traffic.done(name, status, perf_counter() - begin)
        headers = [(b"content-type", reply.content_type), *self.headers, *reply.headers]
        headers.append((b"x-request-id", request_id))
        start = {"type": "http.response.start", "status": status, "headers": headers}
        if isinstance(reply, Reply):
            headers.append((b"content-length", b"%d" % sum(map(len, reply.body))))
            await send(start)
            *pieces, last = (b"",) if scope["method"] == "HEAD" else reply.body or (b"",)
            for piece in pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": last})
        else:
            await send({**start, ENDLESS: reply.endless})
            await self._stream(reply, scope["method"], receive, send)

    def direct(self, target: bytes, content_type: bytes | None) -> DirectCall | None:
        """Return the method that a target leads to, None if its answer might wait.

        Args:
            target: Of the request.
            content_type: Of its body, None where it has none. What may not be JSON waits until the
                library for it is there.
        """
        call = self._routes.get(target.partition(b"?")[0])
        if call is None or self._guard is not None:
            return None
        if content_type not in _DIRECT_TYPES and not is_loaded(_PROTOBUF):
            return None
        return None if self.blocks(call) else call

    def blocks(self, call: DirectCall) -> bool:
        """Tell whether the answer would wait for the platform or a disk, as things are now."""
        method = call.method
        return method.writes or (method.device and self._guest.executor is not None)

    def respond(
        self, found: DirectCall, target: bytes, content_type: bytes, body: bytes | None
    ) -> tuple[int, bytes, Sequence[bytes], int, bytes]:
        """Answer a request to what `direct` returned; `body` is None for GET.

        Returns:
            The status, the headers as they are sent, the body in pieces and its length, and the
            request's id.
        """
        begin, request_id = perf_counter(), self.new_id()
        codec, payload = QUERY, target.partition(b"?")[2]
        try:
            if body is not None:
                codec, query_string, payload = JSON, payload, body
                if not _is_json(content_type, query_string, body):
                    codec = protobuf()
            reply = self._call(found.method, codec, payload)
        except Exception as error:  # noqa: BLE001 - it is logged there
            reply = _failed(error, codec, request_id)
        head = self._heads.get(reply[:2]) or self._make_head(reply)
        length = sum(map(len, reply.body))
        self._traffic.done(found.name, reply.status, perf_counter() - begin)
        head %= (length, request_id)
        return reply.status, head, reply.body, length, request_id

    def _make_head(self, reply: Reply) -> bytes:
        fields = ((b"content-type", reply.content_type), *self.headers)
        fixed = b"".join(b"%b: %b\r\n" % field for field in fields).replace(b"%", b"%%")
        head = fixed + b"content-length: %d\r\nx-request-id: %b\r\n"
        self._heads[reply.status, reply.content_type] = head
        return head

    def stop(self) -> None:
        """End the answers that would go on for ever, in good order: the server stops."""
        for stream in self._endless:
            stream.cancel()

    async def _reply(
        self, scope: Scope, receive: Receive, request_id: bytes
    ) -> tuple[str, Reply | _Stream]:
        """Return the name of what a request leads to, for statistics, and what it gets."""
        name, codec = OTHER, QUERY
        verb, path, payload = scope["method"], scope["raw_path"], scope["query_string"]
        try:
            content_type, size = self._check(scope)
            if verb == "POST":
                codec = await _choose(content_type, payload, b"{")  # until the body can tell
                # Of what leads nowhere enough is read to learn how the error is to be written.
                most = self._limits.body if path in self._routes else _SMALL
                body = await self._read(receive, size, most)
                codec, payload = await _choose(content_type, payload, body), body
            found = self._find(verb, path)
            name = found.name
            return name, await self._answer(found, codec, payload, scope)
        except _DisconnectedError:
            raise
        except Exception as error:  # noqa: BLE001 - it is logged there
            return name, _failed(error, codec, request_id)

    async def _answer(
        self, found: DirectCall | _Look, codec: Codec, payload: bytes, scope: Scope
    ) -> Reply | _Stream:
        if isinstance(found, _Look):
            asked = Asked(found.rest, payload, (scope.get("client") or ("",))[0])
            content_type, shown, headers, endless = await found.view.show(self._guest, asked)
            if isinstance(shown, bytes):
                return Reply(200, content_type, (shown,), headers)
            return _Stream(content_type, shown, headers, endless)
        if found.method.device:
            call = partial(self._call, found.method, codec, payload)
            return await self._guest.on_device(call, writes=found.method.writes)
        return self._call(found.method, codec, payload)

    def _call(self, method: Method, codec: Codec, payload: bytes) -> Reply:
        request = None if method.request is None else codec.decode(method.request, payload)
        return Reply(200, codec.content_type, codec.encode(method.run(self._guest, request)))

    def _find(self, verb: str, raw_path: bytes) -> DirectCall | _Look:
        """Return what a path leads to.

        Raises:
            NotFoundError: no such method, or nothing is mounted there.
        """
        if verb not in _VERBS:
            raise NotFoundError(f"No such path for {verb}")
        if (call := self._routes.get(raw_path)) is not None:
            return call
        path = raw_path.decode("ascii", "replace")
        if verb != "POST":
            for mount, view in self._views.items():
                name = _below(mount, path) if view.named else ""
                if name or (path == mount and not view.named):
                    return _Look(mount, view, name)
        for service in self._services:
            name = _below(service.mount, path)
            if not name:
                continue
            while service.prefix and name.startswith(service.prefix):
                name = name.removeprefix(service.prefix)
            if name in service.methods:
                return DirectCall(name, service.methods[name])
            raise NotFoundError(f"Service not found: {name}")
        raise NotFoundError(f"No such path: {path}")

    def _check(self, scope: Scope) -> tuple[bytes, int]:
        """Return the media type and the declared size of the body, or raise what refuses it."""
        if self._guard is not None:
            self._guard(scope)
        content_type, size = b"", 0
        for name, value in scope["headers"]:
            if name == b"content-type":
                content_type = value
            elif name == b"content-length":
                size = int(value)
        if size > self._limits.body and scope["method"] != "POST":  # else once it is known how
            raise _TooLargeError
        return content_type, size

    async def _read(self, receive: Receive, declared: int, most: int) -> bytes:
        """Return the body of a request, counting while it comes in.

        Args:
            receive: Gives the next piece.
            declared: How many bytes it is said to have.
            most: How many it may have.
        """
        parts: list[bytes] = []
        size = held = 0
        try:
            while max(size, declared) <= most:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _DisconnectedError
                part: bytes = message.get("body", b"")
                size += len(part)
                if not message.get("more_body", False) and size <= most:
                    return b"".join((*parts, part)) if parts else part
                parts.append(part)
                more = max(0, size - _SMALL) - held
                held += more
                self._held += more
                if self._held > self._limits.bodies:
                    raise _CrowdedError
            raise _TooLargeError
        finally:
            self._held -= held

    async def _stream(self, stream: _Stream, verb: str, receive: Receive, send: Send) -> None:
        """Send pieces as fast as the client takes them, until they end or the client is gone."""
        pieces = stream.pieces
        if verb == "HEAD":
            await pieces.aclose()
            await send({"type": "http.response.body", "body": b""})
            return
        pump = asyncio.ensure_future(_pump(pieces, send))
        gone = asyncio.ensure_future(_gone(receive))
        if stream.endless:
            self._endless.add(pump)
        try:
            await asyncio.wait({pump, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._endless.discard(pump)
            pump.cancel()
            gone.cancel()
            await asyncio.wait({pump, gone})
            await pieces.aclose()
        if not pump.cancelled():
            pump.result()  # a foreign error: the connection ends without the end of its answer
        await send({"type": "http.response.body", "body": b""})


async def _pump(pieces: Pieces, send: Send) -> None:
    async for piece in pieces:
        await send({"type": "http.response.body", "body": piece, "more_body": True})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _below(mount: str, path: str) -> str:
    """Return the one segment of `path` behind `mount`, decoded; nothing if it is elsewhere."""
    name = path.removeprefix(mount)
    return "" if name == path or "/" in name else unquote(name)


def _failed(error: Exception, codec: Codec, request_id: bytes) -> Reply:
    if isinstance(error, AttestKitError):
        status, text = status_of(error), str(error)
    else:
        # The text of a foreign error may hold what is not for the client: it goes to the log.
        name = request_id.decode("ascii")
        _logger.error("request %s failed", name, exc_info=error, extra={"request_id": name})
        status, text = 500, f"internal error, request {name}"
    headers = _CLOSE if isinstance(error, (_TooLargeError, _CrowdedError)) else ()
    return Reply(status, codec.error_type, (codec.encode_error(text),), headers)


async def _choose(content_type: bytes, query_string: bytes, body: bytes) -> Codec:
    """Return the codec of a POST; a thread loads what it needs."""
    if _is_json(content_type, query_string, body):
        return JSON
    await load(_PROTOBUF)
    return protobuf()


def _is_json(content_type: bytes, query_string: bytes, body: bytes) -> bool:
    """Tell whether the body of a POST is JSON, so that the answer is.

    A body that starts with a brace is JSON also without a content type that says so, because that
    is what `curl -d '{...}'` sends.
    """
    if content_type != _JSON and not (query_string and query_codec.asks_for_json(query_string)):
        media_type = content_type.partition(b";")[0].strip().lower()
        return media_type == _JSON or (media_type in _FORMS and body[:1] == b"{")
    return True
