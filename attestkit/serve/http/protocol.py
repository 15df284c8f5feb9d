"""HTTP protocol (uvicorn's) with limits and timeouts, and a synchronous fast path.

The fast path answers a request for a method that does not block directly in this protocol, without
an ASGI task. Each connection records when its state last changed; a timer checks all connections at
least once a second. That costs a request nothing; a timer for each state would cost more.

| what | limit | reaction |
|---|---|---|
| request line and headers | `head` bytes, `headers` fields | 431 |
| time from a request's first byte (or the connection) to its body | `head_seconds` | 408 |
| time between two pieces of a body | `body_seconds` | 408 |
| connections | `connections` | 503; above twice as many they are closed at once |
| time between requests | `idle_seconds` | closed |
| time for which a client receives nothing of its response | `write_seconds` | closed |
| data after an error response | 1 s, 4 MiB | dropped, then closed |
"""

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import Any, Final, cast

import httptools
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from attestkit.serve.config.limits import Limits
from attestkit.serve.http.asgi import encode_error
from attestkit.serve.http.listener_state import (
    LINGER_LIMIT,
    LINGER_SECONDS,
    ListenerConfig,
    has_input,
)
from attestkit.serve.http.request_checks import KEPT, head_size, with_named_host, without_upgrade
from attestkit.serve.http.response_cycle import COPIED, AnyApp, RequestCycle, Response
from attestkit.serve.server_log.access_log import client_name

_DIRECT_BODY: Final = 64 * 1024  # larger bodies need flow control
_DIRECT_VERBS: Final = frozenset({b"GET", b"POST"})
_SLICE: Final = 4096  # bytes to parse at once
_TURN: Final = 64  # responses in one iteration of the event loop
_MOST_REST: Final = 1024 * 1024  # unparsed bytes
_MOST_OUT: Final = 64 * 1024  # bytes of queued responses
_VERSIONS: Final = frozenset({"1.0", "1.1"})
_INDIRECT_FIELDS: Final = frozenset({b"expect", b"transfer-encoding"})


class HttpProtocol(HttpToolsProtocol):
    """One connection."""

    limits: Limits
    parser: httptools.HttpRequestParser  # until the connection is lost

    def __init__(self, config: ListenerConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self._listener, self.limits, self._traffic = config.shared[:3]
        self._access_log, self._timeouts, self._write_queue = config.shared[3:]
        self._out: list[bytes] = []  # queued responses
        self._out_size = 0
        self._turn = 0  # responses in this iteration of the event loop
        self._direct_body = min(_DIRECT_BODY, self.limits.body)
        self._app = config.direct_app
        self._headers = config.fixed_headers
        self._peer = ""
        self._in_head = self._in_message = self._refused = self._is_extra = False
        self._has_received = self._last = self._lingers = False
        self._rest = b""  # received and not parsed yet
        self._is_paused = False  # reading is paused until `_rest` is parsed
        self._ended = False  # EOF was received while `_rest` is not empty
        self._tail = b""  # last bytes of an incomplete head
        self._body_left = 0  # bytes of a body with a Content-Length that are not parsed yet
        self._unread = 0  # bytes of a head, or after an error response
        self._unsent = 0  # size of the write buffer at the last check
        self._since = 0.0  # start of the present state, in loop time
        self._call: Any | None = None  # of a request on the fast path
        self._is_post = False
        self._content_type = b""
        self._body: list[bytes] | None = None
        self._response: Response | None = None
        # The request in the application; others wait in `pipeline`.
        self._active_cycle: RequestCycle | None = None
        self.url: bytes = b""
        self.scope_extras: Mapping[str, Any] = {}  # in addition to uvicorn's ASGI scope

    # -- the connection ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accept a connection; close it if there are more than twice the limit."""
        super().connection_made(cast("asyncio.Transport", transport))
        self._response = Response(self)
        self._peer = "" if self._access_log is None else client_name(self.client, transport)
        self._traffic.connections += 1
        self._since = self.loop.time()
        if len(self.connections) > 2 * self.limits.connections:
            self.transport.abort()
            return
        self._is_extra = len(self.connections) > self.limits.connections
        self._timeouts.watch(self.connections, self.loop)

    def connection_lost(self, exc: Exception | None) -> None:
        """Notify pending requests of the disconnect and break reference cycles."""
        self._traffic.connections -= 1
        for cycle in self._pending_cycles():
            cycle.leave(cancel=self._app is not None)  # a DirectApp, see there
        self.pipeline.clear()
        super().connection_lost(exc)
        self._response = self._call = self._body = None
        self._out, self._rest = [], b""
        if self.cycle is not None:
            self.cycle.transport = self.transport

    def eof_received(self) -> bool:  # type: ignore[override]  # uvicorn's returns None
        """Finish pending requests of a half-closed connection; return whether to keep it open.

        An incomplete request is dropped. An endless response ends, because the client has
        probably disconnected.
        """
        if self._rest:
            self._ended = True
            return True
        self.flush()
        self.announce_close()
        if self._is_app_idle() or (self._in_message and self._drop_incomplete()):
            return False
        for cycle in self._pending_cycles():
            cycle.is_half_closed = True
        return self._active_cycle is None or not self._active_cycle.is_endless

    def announce_close(self) -> None:
        """Close the connection after the pending request; if there is none, after the next one."""
        self._last = True
        if cycles := self._pending_cycles():
            cycles[-1].keep_alive = False

    def is_idle(self) -> bool:
        """Return whether no request is pending or partly received."""
        return self._is_app_idle() and not (self._in_message or self._out or self._rest)

    def check(self, now: float) -> None:
        """Close the connection, or fail its request, if over a time limit at `now` (loop time)."""
        unsent = self.transport.get_write_buffer_size()
        if unsent != self._unsent:
            self._unsent, self._since = unsent, now
        waited = now - self._since
        if unsent or self.transport.is_closing():
            if waited > self.limits.write_seconds:
                self.transport.abort()
        elif self._lingers:
            if waited > LINGER_SECONDS:
                self.transport.close()
        elif self._in_message:
            self._check_request(waited)
        elif self._is_app_idle():
            idle = self.limits.idle_seconds if self._has_received else self.limits.head_seconds
            if waited > idle and not has_input(self.transport):
                self.transport.close()

    def _is_app_idle(self) -> bool:
        """Return whether no request is pending in the application."""
        return self._active_cycle is None or self._active_cycle.response_complete

    def _pending_cycles(self) -> list[RequestCycle]:
        """Return the requests that are pending in the application, oldest first."""
        if self._active_cycle is None or self._active_cycle.response_complete:
            return []
        waiting = [cast("RequestCycle", cycle) for cycle, _ in reversed(self.pipeline)]
        return [self._active_cycle, *waiting]

    def _check_request(self, waited: float) -> None:
        if self._in_head:
            late = waited > self.limits.head_seconds
        else:  # paused reading is not the client's delay
            late = waited > self.limits.body_seconds and not self.flow.read_paused
        if not late:
            return
        if not self._in_head and self._body is None and self._is_app_idle():
            self.transport.close()
        else:
            self._send_error(408, "request: not received in time")

    # -- requests ------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Parse received data, or drop it after an error response.

        Data are parsed in slices, because a packet with thousands of requests must not create
        thousands of objects, nor delay other connections. The rest of the data waits while a
        request is pending. After a fixed number of responses it waits for the next iteration of the
        event loop.
        """
        if self._refused:
            self._drop(data)
        elif self._rest or len(data) > _SLICE or self._turn >= _TURN:
            self._rest += data
            self._parse_waiting()
        else:
            self._parse(data)

    def _parse_waiting(self) -> None:
        """Parse received data that has not been parsed yet.

        Parsing pauses while the application handles a request, and when this iteration of the
        event loop has produced `_TURN` responses.
        """
        while self._rest and not self._refused:
            busy = self.pipeline or not (self._is_app_idle() or self._in_message)
            if busy or self._turn >= _TURN:  # on_response_complete() or next_turn() continues
                self._is_paused = True
                self.flow.pause_reading()
                if len(self._rest) > _MOST_REST:  # despite the paused reading
                    self.transport.abort()
                return
            size = max(_SLICE, self._body_left)  # a body begins no request
            data, self._rest = self._rest[:size], self._rest[size:]
            self._parse(data)
        self._rest = b""
        if self._is_paused:
            self._is_paused = False
            self.flow.resume_reading()
        if self._ended and not self.eof_received():
            self.transport.close()

    def next_turn(self) -> None:
        """Send the responses queued during this event loop iteration; then parse waiting data."""
        self.flush()
        self._turn = 0
        if self._rest:
            self.loop.call_soon(self._parse_waiting)

    def _parse(self, data: bytes) -> None:
        """Feed `data` to the parser; answer 431 if the head exceeds its limit, 400 if malformed."""
        tail = self._tail
        if self._in_head or not self._in_message:
            size = len(data)
            if self._unread + size > self.limits.head or b"pgrade" in data:
                size = head_size(tail, data)
                data = without_upgrade(data[:size]) + data[size:]
            self._unread += size
            if self._unread > self.limits.head:
                self._send_error(431, f"request line and headers: over {self.limits.head} bytes")
                return
        else:
            self._unread += len(data)  # reset in on_body()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            if not self._refused:
                self._send_error(400, f"malformed HTTP: {error}")
        except httptools.HttpParserUpgrade:
            pass  # refused in on_headers_complete()
        self._tail = (tail + data)[-KEPT:] if self._in_head else b""
        if self._in_message and not self._in_head:
            self._since = self.loop.time()
            if self._unread > self.limits.head and not self._refused:
                self._send_error(431, f"chunk headers or trailers: over {self.limits.head} bytes")

    def on_message_begin(self) -> None:
        """Record the start of a request."""
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self._since = self.loop.time()
        self._in_head = self._in_message = self._has_received = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """Store the name and value of a header field; trailers are ignored."""
        if self._in_head:
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Start the request, unless it exceeds a limit or is not supported."""
        self._in_head = False
        self._unread = 0
        if self.transport.is_closing():  # the previous response was the last
            raise ConnectionAbortedError
        if self._is_extra:
            self._send_error(503, f"server: {self.limits.connections} connections; retry later")
        elif len(self.headers) > self.limits.headers:
            self._send_error(431, f"headers: over {self.limits.headers} fields")
        elif self.parser.should_upgrade():  # the parser would drop the body
            self._send_error(400, "Upgrade header: not supported; use HTTP/1.1")
        fields = dict(self.headers)
        if len(fields) < len(self.headers) and [n for n, _ in self.headers].count(b"host") > 1:
            self._send_error(400, "Host header: given more than once")
        if self._refused:
            raise ConnectionRefusedError  # stops the parser
        self._body_left = int(fields.get(b"content-length", b"0"))
        if not self._try_fast_path(fields):
            self._start_asgi_request(fields)

    def _try_fast_path(self, fields: dict[bytes, bytes]) -> bool:
        """Return whether the fast path can answer a request with `fields`; prepare for it."""
        verb = self.parser.get_method()
        content_type = fields.get(b"content-type", b"") if verb == b"POST" else None
        if (
            self._app is None
            or self.flow.write_paused
            or not self._is_app_idle()
            or not _INDIRECT_FIELDS.isdisjoint(fields)
            or self._body_left > self._direct_body
            or not self.parser.should_keep_alive()
            or self.parser.get_http_version() != "1.1"
            or verb not in _DIRECT_VERBS
            or (call := self._app.direct(self.url, content_type)) is None
        ):
            return False
        self._call = call
        self._is_post = content_type is not None
        self._content_type = content_type or b""
        self._body = []
        return True

    def _start_asgi_request(self, fields: dict[bytes, bytes]) -> None:
        version = self.parser.get_http_version()
        if version not in _VERSIONS:
            self._send_error(400, f"unsupported HTTP version {version}")
            raise ConnectionRefusedError  # stops the parser
        url, headers = self.url, self.headers
        if not url.startswith(b"/"):
            # The host of `GET http://evil.example/GetKey` takes precedence over `Host`
            # (RFC 9112, 3.2.2); the application gets only the path, so its guards need the host.
            headers = with_named_host(url, headers)
        super().on_message_begin()
        self.url, self.headers = url, headers
        self.scope["headers"] = headers
        self.scope.update(cast("Any", self.scope_extras))
        expected = fields.get(b"expect", b"").lower() == b"100-continue"
        self.expect_100_continue: bool = expected and version == "1.1"
        super().on_headers_complete()
        cycle = cast("RequestCycle", self.cycle)
        cycle.__class__ = RequestCycle  # uvicorn has no setting for this class
        cycle.transport = cast("asyncio.Transport", self._response)  # implements what is used
        if self._access_log is not None:
            cycle.on_end = partial(self._log_cycle, url, perf_counter())
        if self._last:
            self.cycle.keep_alive = False

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: AnyApp) -> None:
        self._active_cycle = cast("RequestCycle", cycle)
        # By class: `cycle` becomes a RequestCycle only after this returns, see above.
        super()._start_asgi_task(
            cycle, cast("Any", partial(RequestCycle.answer, self._active_cycle, app))
        )

    def on_body(self, body: bytes) -> None:
        """Receive a piece of a body."""
        self._unread = 0
        self._body_left = max(0, self._body_left - len(body))
        if self._body is None:
            super().on_body(body)
        else:
            self._body.append(body)

    def on_message_complete(self) -> None:
        """Complete the request; if it is on the fast path (see the module), answer it."""
        self._in_message = False
        self._unread = 0
        if self._body is None:
            super().on_message_complete()
            return
        call, body, self._body = self._call, b"".join(self._body), None
        assert self._app is not None
        assert call is not None
        if self._app.blocks(call):  # since the head was received
            self._start_asgi_request(dict(self.headers))
            super().on_body(body)
            super().on_message_complete()
            return
        begin = perf_counter()
        status, headers, pieces, size, request_id = self._app.respond(
            call, self.url, self._content_type, body if self._is_post else None
        )
        self._respond(status, headers, pieces, size)
        if self._access_log is not None:
            verb = "POST" if self._is_post else "GET"
            self._log_request(begin, self.url, verb, status, size, request_id)

    def _respond(self, status: int, headers: bytes, body: Sequence[bytes], size: int) -> None:
        """Queue a response: encoded `headers`, and a `body` in pieces of `size` bytes in all."""
        parts = [STATUS_LINE[status], headers]
        for name, value in self.server_state.default_headers:
            parts += (name, b": ", value, b"\r\n")
        parts.append(b"connection: close\r\n\r\n" if self._last else b"\r\n")
        if not self._out:
            self._write_queue.add(self)
        self._out.append(b"".join(parts))
        self._out += body
        self._out_size += size
        self._turn += 1
        if self._out_size > _MOST_OUT:
            self.flush()
        self._since = self.loop.time()
        self.server_state.total_requests += 1
        if self._last:
            self.close_after_response()

    def flush(self) -> None:
        """Send the queued responses."""
        if not self._out:
            return
        out, self._out = self._out, []
        if self._out_size < COPIED:
            self.transport.write(b"".join(out))
        else:
            self.transport.writelines(out)
        self._out_size = 0

    def on_response_complete(self) -> None:
        """Start the next pipelined request, or resume reading; sets no keep-alive timer."""
        self.server_state.total_requests += 1
        self._since = self.loop.time()
        if self.transport.is_closing() or self._lingers:  # this response was the last
            return
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif not self._rest:  # else reading stays paused until that is parsed
            self.flow.resume_reading()
        self._parse_waiting()  # `_rest` may contain the body of the next request

    # -- the access log ------------------------------------------------------------------------

    def _log_cycle(self, url: bytes, begin: float, cycle: RequestCycle) -> None:
        verb = cycle.scope["method"]
        self._log_request(begin, url, verb, cycle.status, cycle.size, cycle.request_id)

    def _log_request(  # noqa: PLR0917 - the columns of the access log
        self, begin: float, url: bytes, verb: str, status: int, size: int, request_id: bytes
    ) -> None:
        assert self._access_log is not None
        seconds = perf_counter() - begin
        self._access_log.record(
            self._listener, self._peer, verb, url, status, size, seconds, request_id
        )

    # -- error responses -----------------------------------------------------------------------

    def _send_error(self, status: int, text: str) -> None:
        self._refused = True
        self._since = self.loop.time()
        if self.transport.is_closing():
            return
        if not self._is_app_idle() and not self._drop_incomplete():
            return  # earlier responses come first, and the last of them closes the connection
        self._traffic.refusals[status] += 1
        body = encode_error(text)
        is_head = self._in_message and self.url and self.parser.get_method() == b"HEAD"
        sent = b"" if is_head else body
        request_id = b"" if self._app is None else self._app.new_id()
        if self._access_log is not None:
            self._log_request(perf_counter(), self.url, "", status, len(sent), request_id)
        fields = [*self.server_state.default_headers, *self._headers]
        fields += ((b"content-type", b"application/json"), (b"x-request-id", request_id))
        head = [STATUS_LINE[status].rstrip(), *(b"%s: %s" % f for f in fields if f[1])]
        head += [b"content-length: %d" % len(body), b"connection: close", b"", sent]
        self.flush()
        self.transport.write(b"\r\n".join(head))
        self._linger()

    def _drop_incomplete(self) -> bool:
        """Drop the refused request; return whether no other request is pending."""
        *before, last = self._pending_cycles()
        if last.more_body and not last.response_started:
            if self.pipeline:
                self.pipeline.popleft()
            last.leave()
            if not before:
                return True
            last = before[-1]
        last.keep_alive = False
        return False

    def close_after_response(self) -> None:
        """Close the connection; read for a moment if the client is still sending."""
        self.flush()
        self._since = self.loop.time()
        if self._in_message and not self.transport.is_closing():
            self._refused = True
            self._linger()
        else:
            self.transport.close()

    def _linger(self) -> None:
        """Read and drop data for a moment: closing at once could reset the response."""
        self._lingers = True
        self._unread = 0
        self.flow.resume_reading()
        self.end_output()

    def end_output(self) -> None:
        """Announce that nothing follows the response."""
        self.transport.write_eof()

    def _drop(self, data: bytes) -> None:
        self._unread += len(data)
        if self._unread > LINGER_LIMIT:
            self.transport.close()
