"""One request and its response on a connection, as ASGI has it; in place of uvicorn's own."""

from collections.abc import Callable, MutableMapping
from typing import Any, Final, TypeAlias

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from attestkit.serve.views import ENDLESS

__all__ = ["COPIED", "GONE", "Cycle"]

COPIED: Final = 4096
"""Bytes of a body from which on it is not copied behind its head."""

GONE: Final = 499
"""The status, in the access log alone, of a request whose client did not wait for the answer."""

Message: TypeAlias = MutableMapping[str, Any]


class Cycle(RequestResponseCycle):
    """A request and its response; a whole response leaves in one system call.

    That call, and the client that it wakes, cost more than most methods.
    """

    pending: Message | None = None  # the start of a response, until its first piece comes
    is_chunked = False
    is_endless = False  # the answer has begun, and goes on until the client leaves
    status = GONE
    size = 0  # bytes of the body
    request_id = b""
    on_end: Callable[["Cycle"], None] | None = None

    async def send(self, message: Message) -> None:  # type: ignore[override]  # any mapping will do
        """Take a piece of the response."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if not self.response_started and message["type"] == "http.response.start":
            self.response_started = True
            self.waiting_for_100_continue = False
            self.pending = message
            self.is_endless = message.get(ENDLESS, False)
            return
        if not self.response_started or message["type"] != "http.response.body":
            raise RuntimeError(f"cannot send {message['type']!r} here")
        body, is_whole = message.get("body", b""), not message.get("more_body", False)
        self.size += len(body)
        pieces = [] if self.pending is None else [self._head(self.pending, len(body), is_whole)]
        self.pending = None
        if self.is_chunked and body:
            pieces += (b"%x\r\n" % len(body), body, b"\r\n")
        elif self.scope["method"] != "HEAD":
            pieces.append(body)
        if is_whole and self.is_chunked:
            pieces.append(b"0\r\n\r\n")
        self._write(pieces)
        if is_whole:
            self.response_complete = True
            self.message_event.set()
            self.end()
            if not self.keep_alive:
                self.transport.close()
            self.on_response()

    def end(self) -> None:
        """Tell who wants to know that it is over."""
        if self.on_end is not None:
            self.on_end(self)
            self.on_end = None

    def _write(self, pieces: list[bytes]) -> None:
        if sum(map(len, pieces)) < COPIED:
            self.transport.write(b"".join(pieces))
        else:
            self.transport.writelines(pieces)

    def _head(self, start: Message, length: int, is_whole: bool) -> bytes:  # noqa: FBT001 - private
        """Return the bytes before a body whose first piece has `length` bytes."""
        self.status = start["status"]
        parts = [STATUS_LINE[self.status]]
        has_length = False
        for name, value in (*self.default_headers, *start.get("headers", ())):
            if name == b"content-length":
                has_length = True
                if is_whole and self.scope["method"] != "HEAD" and value != b"%d" % length:
                    raise RuntimeError(f"a body of {length} bytes, Content-Length {value!r}")
            elif name == b"connection":
                self.keep_alive = False
                continue
            elif name == b"x-request-id":
                self.request_id = value
            parts += (name, b": ", value, b"\r\n")
        if not has_length and self.scope["method"] != "HEAD":
            if self.scope["http_version"] == "1.1":
                self.is_chunked = True
                parts.append(b"transfer-encoding: chunked\r\n")
            else:
                self.keep_alive = False  # its end is the end of the connection
        if not self.keep_alive:
            parts.append(b"connection: close\r\n")
        if any(b"\n" in value or b"\r" in value for value in parts[3:-1:4]):
            raise RuntimeError("a line break in the value of a header")
        parts.append(b"\r\n")
        return b"".join(parts)
