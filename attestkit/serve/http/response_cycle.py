"""ASGI request/response cycle of a connection, which replaces uvicorn's."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeAlias

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from attestkit.serve.http.asgi import encode_error
from attestkit.serve.http.views import ENDLESS

COPIED: Final = 4096
"""Bytes of a response up to which its pieces are joined into one write."""

GONE: Final = 499
"""Status in the access log of a request whose client disconnected before the response."""

Message: TypeAlias = Mapping[str, Any]
AnyApp: TypeAlias = Callable[..., Awaitable[None]]


class RequestCycle(RequestResponseCycle):
    """A request and its response; a response of known length is sent in one system call.

    That call, and waking the client, cost more than most methods.
    """

    pending: Message | None = None  # start of the response, until its first piece
    is_chunked: bool = False
    is_half_closed = False  # the client has sent EOF
    is_endless: bool = False  # the response continues until the client disconnects
    length: int | None = None  # Content-Length of the response
    pieces: list[bytes]  # not sent yet
    status: int = GONE
    size: int = 0  # bytes of the body
    request_id: bytes = b""
    on_end: Callable[["RequestCycle"], None] | None = None
    _task: "asyncio.Task[None] | None" = None  # of the application

    async def answer(self, app: AnyApp, scope: Message, receive: object, send: object) -> None:
        """Call the application with the ASGI arguments.

        Its cancellation, because the client is gone or the listener shuts down, is not a failure.
        """
        if self.disconnected:
            return
        self._task = asyncio.current_task()
        try:
            await app(scope, receive, send)
        except asyncio.CancelledError:
            if not self.transport.is_closing():
                raise  # by neither of them: the transport is closed first
            self.leave()

    async def send(self, message: Message) -> None:
        """Send an ASGI message; after a disconnect, drop it.

        Raises:
            RuntimeError: If a message has the wrong type or order, the body another size than its
                Content-Length, or a header a line break: a bug of the application.
        """
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.transport.is_closing():  # connection_lost() follows
            self.disconnected = True
        if self.disconnected:
            return
        if not self.response_started and message["type"] == "http.response.start":
            self._start(message)
            return
        if not self.response_started or message["type"] != "http.response.body":
            raise RuntimeError(f"ASGI message: unexpected type {message['type']!r}")
        body, is_whole = message.get("body", b""), not message.get("more_body", False)
        self.size += len(body)
        if self.pending is not None:
            self.pieces = [self._head(self.pending)]
            self.pending = None
        self._take(body, is_whole=is_whole)
        if is_whole or self.length is None:
            self._write()
        if is_whole:
            self._complete()

    def _take(self, body: bytes, *, is_whole: bool) -> None:
        if self.is_chunked:
            self.pieces += (b"%x\r\n" % len(body), body, b"\r\n") if body else ()
            self.pieces += (b"0\r\n\r\n",) if is_whole else ()
        elif self.scope["method"] != "HEAD":
            self.pieces.append(body)

    def _start(self, message: Message) -> None:
        self.response_started = True
        self.waiting_for_100_continue = False
        self.pending = message
        self.is_endless = message.get(ENDLESS, False)
        if self.is_endless and self.is_half_closed:
            self.leave()
            self.transport.close()

    def leave(self, *, cancel: bool = False) -> None:
        """Record that the client has disconnected; if `cancel`, cancel the application, too."""
        if cancel and self._task is not None:
            self._task.cancel()
        self.disconnected: bool = True
        self.message_event.set()
        self.end()

    def _complete(self) -> None:
        self.response_complete = True
        self.message_event.set()
        self.end()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()

    async def send_500_response(self) -> None:
        """Send the response for an application that failed; the log has the reason."""
        body = encode_error("internal error")
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        await self.send({"type": "http.response.start", "status": 500, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})

    def end(self) -> None:
        """Call `on_end` once."""
        if self.on_end is not None:
            self.on_end(self)
            self.on_end = None

    def _write(self) -> None:
        pieces, self.pieces = self.pieces, []
        if self.length is not None and self.size != self.length and self.scope["method"] != "HEAD":
            text = f"response body: {self.size} bytes, but Content-Length is {self.length}"
            raise RuntimeError(text)
        if sum(map(len, pieces)) < COPIED:
            self.transport.write(b"".join(pieces))
        else:
            self.transport.writelines(pieces)

    def _head(self, start: Message) -> bytes:
        """Return the status line and header section that the ASGI message `start` describes."""
        self.status = start["status"]
        parts = [STATUS_LINE[self.status]]
        for name, value in (*self.default_headers, *start.get("headers", ())):
            if name == b"content-length":
                self.length = int(value)
            elif name == b"connection":
                self.keep_alive = False
                continue
            elif name == b"x-request-id":
                self.request_id = value
            parts += (name, b": ", value, b"\r\n")
        if self.length is None and self.scope["method"] != "HEAD":
            if self.scope["http_version"] == "1.1":
                self.is_chunked = True
                parts.append(b"transfer-encoding: chunked\r\n")
            else:
                self.keep_alive: bool = False  # the body ends with the connection
        if not self.keep_alive:
            parts.append(b"connection: close\r\n")
        values = b"".join(parts[3:-1:4])
        if b"\n" in values or b"\r" in values:
            raise RuntimeError("response header: the value contains a line break")
        parts.append(b"\r\n")
        return b"".join(parts)


class ConnectionWriter(Protocol):
    """Methods of a connection that `Response` calls."""

    transport: asyncio.Transport

    def flush(self) -> None:
        """Send all earlier responses."""

    def close_after_response(self) -> None:
        """Close the connection after all responses."""


class Response:
    """Writing side of a connection for one response: earlier responses are sent first."""

    __slots__ = ("_connection", "_transport", "is_closing")

    def __init__(self, connection: ConnectionWriter) -> None:
        self._connection = connection
        self._transport = connection.transport
        self.is_closing: Callable[[], bool] = connection.transport.is_closing

    def write(self, data: bytes) -> None:
        """Send `data` after the earlier responses."""
        self._connection.flush()
        self._transport.write(data)

    def writelines(self, pieces: Sequence[bytes]) -> None:
        """Send `pieces` after the earlier responses."""
        self._connection.flush()
        self._transport.writelines(pieces)

    def close(self) -> None:
        """Close the connection gracefully."""
        self._connection.close_after_response()
