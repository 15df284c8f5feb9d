"""uvicorn's HTTP protocol with the bounds of `Limits`, and a short way for what never waits.

Each connection knows since when it has been in its present state; a sweep over all of them, at
least once a second, ends what took too long. That costs a request nothing, where a timer for each
state costs more than many methods.

| what | bound | answer |
|---|---|---|
| request line and headers | `head` bytes, `headers` fields | 431 |
| from a request's first byte (or the connection) to its body | `head_seconds` | 408 |
| between two pieces of a body | `body_seconds` | 408 |
| connections | `connections` | 503; from twice as many on they are closed at once |
| idle between requests | `idle_seconds` | closed |
| an answer of which the client takes nothing | `write_seconds` | closed |
| what is sent behind a refusal | 1 s, 4 MiB | dropped, then closed |
"""

import asyncio
from collections.abc import Sequence
from functools import partial
from time import perf_counter
from typing import Any, Final, cast

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from attestkit.serve.config.limits import Limits
from attestkit.serve.http.asgi import App, DirectApp
from attestkit.serve.http.errors import encode_error
from attestkit.serve.http.listener_state import LINGER_LIMIT, LINGER_SECONDS, Shared, has_input
from attestkit.serve.http.request_checks import KEPT, head_size, without_upgrade
from attestkit.serve.http.response_cycle import COPIED, AnyApp, Cycle, Response
from attestkit.serve.server_log.access_log import client_name

__all__ = ["HttpProtocol", "ListenerConfig"]

_DIRECT_BODY: Final = 64 * 1024  # a longer one goes where its sender can be slowed down
_DIRECT_VERBS: Final = frozenset({b"GET", b"POST"})
_SLICE: Final = 4096  # bytes that are parsed at a time
_TURN: Final = 64  # answers in a turn of the loop
_MOST_REST: Final = 1024 * 1024  # bytes that may wait for it
_MOST_OUT: Final = 64 * 1024  # bytes of answers that wait to leave
_VERSIONS: Final = frozenset({"1.0", "1.1"})
_INDIRECT_FIELDS: Final = frozenset({b"expect", b"transfer-encoding"})


class ListenerConfig(uvicorn.Config):
    """uvicorn's settings, with what the connections of one listener share."""

    def __init__(self, app: App, shared: Shared) -> None:
        super().__init__(
            lambda: app,
            factory=True,  # else uvicorn calls the application once to find out whether it is one
            http=HttpProtocol,
            ws="none",
            interface="asgi3",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
        )
        self.shared = shared
        self.direct_app: DirectApp[Any] | None = app if isinstance(app, DirectApp) else None
        self.fixed_headers: Sequence[tuple[bytes, bytes]] = getattr(app, "headers", ())


class HttpProtocol(HttpToolsProtocol):
    """One connection."""

    limits: Limits
    parser: httptools.HttpRequestParser  # until the connection is lost

    def __init__(self, config: ListenerConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self._listener, self.limits, self._traffic = config.shared[:3]
        self._access_log, self._sweep, self._outbox = config.shared[3:]
        self._out: list[bytes] = []  # answers that have not left yet
        self._out_size = 0
        self._turn = 0  # answers in this turn of the loop
        self._direct_body = min(_DIRECT_BODY, self.limits.body)
        self._app = config.direct_app
        self._headers = config.fixed_headers
        self._peer = ""
        self._in_head = self._in_message = self._refused = self._is_extra = False
        self._spoke = self._last = self._lingers = False
        self._rest = b""  # what was read and is not parsed yet
        self._held_back = False  # reading waits for that
        self._ended = False  # the client says no more, and all it said is in `_rest`
        self._tail = b""  # the last bytes of a head that is not whole
        self._unread = 0  # bytes of a head, or behind a refusal
        self._unsent = 0  # bytes that the client had not taken when last looked at
        self._since = 0.0  # when the present state began, by the loop's clock
        self._call: Any | None = None  # of a request that is answered directly
        self._is_post = False
        self._content_type = b""
        self._body: list[bytes] | None = None
        self._response: Response | None = None
        self._working: Cycle | None = None  # whose answer is under way; others wait in `pipeline`
        self.url: bytes = b""

    # -- the connection ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a connection, unless there are far too many."""
        super().connection_made(cast("asyncio.Transport", transport))
        self._response = Response(self)
        self._peer = "" if self._access_log is None else client_name(self.client, transport)
        self._traffic.connections += 1
        self._since = self.loop.time()
        if len(self.connections) > 2 * self.limits.connections:
            self.transport.abort()
            return
        self._is_extra = len(self.connections) > self.limits.connections
        self._sweep.watch(self.connections, self.loop)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell all whose answers nobody waits for any more, and forget what holds on to us."""
        self._traffic.connections -= 1
        for cycle in self._unanswered():
            cycle.leave()
        self.pipeline.clear()
        super().connection_lost(exc)
        self._response = self._call = self._body = None
        self._out, self._rest = [], b""
        if self.cycle is not None:
            self.cycle.transport = self.transport

    def eof_received(self) -> bool:  # type: ignore[override]  # as asyncio has it
        """Answer a client that says no more; tell whether the connection is kept for that.

        Of a request that is not whole there will be no more; those before it get their answers. One
        that follows a log is taken to have gone: else we would follow it for nobody.
        """
        if self._rest:
            self._ended = True
            return True
        self.flush()
        self.last_call()
        if self._answered() or (self._in_message and self._drop_unfinished()):
            return False
        for cycle in self._unanswered():
            cycle.is_half_closed = True
        return self._working is None or not self._working.is_endless

    def last_call(self) -> None:
        """Let the request in flight, else the next one, be the last."""
        self._last = True
        if not self._answered():
            self._last_cycle().keep_alive = False

    def is_idle(self) -> bool:
        """Tell whether no request is in flight, not even a part of one."""
        return self._answered() and not (self._in_message or self._out or self._rest)

    def check(self, now: float) -> None:
        """End the connection, or its request, if its state has lasted for too long."""
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
        elif self._answered():
            idle = self.limits.idle_seconds if self._spoke else self.limits.head_seconds
            if waited > idle and not has_input(self.transport):
                self.transport.close()

    def _answered(self) -> bool:
        """Tell whether there is no answer under way through ASGI."""
        return self._working is None or self._working.response_complete

    def _unanswered(self) -> list[Cycle]:
        """Return what is under way through ASGI, in its order."""
        if self._working is None or self._working.response_complete:
            return []
        return [self._working, *(cast("Cycle", cycle) for cycle, _ in reversed(self.pipeline))]

    def _last_cycle(self) -> Cycle:
        return self._unanswered()[-1]

    def _check_request(self, waited: float) -> None:
        if self._in_head:
            late = waited > self.limits.head_seconds
        else:  # where reading is paused we are the slow ones
            late = waited > self.limits.body_seconds and not self.flow.read_paused
        if not late:
            return
        if not self._in_head and self._body is None and self._answered():
            self.transport.close()
        else:
            self._refuse(408, "the request did not come in time")

    # -- requests ------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Parse what came, unless the request was refused.

        In slices, so that one packet with thousands of requests neither becomes as many objects nor
        keeps all others waiting: while an answer is under way, and when this turn of the loop has
        brought enough of them, the rest waits as it came.
        """
        if self._refused:
            self._drop(data)
        elif self._rest or len(data) > _SLICE or self._turn >= _TURN:
            self._rest += data
            self._go_on()
        else:
            self._parse(data)

    def _go_on(self) -> None:
        """Parse what waits, until there is an answer to wait for, or others to be served."""
        while self._rest and not self._refused:
            busy = self.pipeline or not (self._answered() or self._in_message)
            if busy or self._turn >= _TURN:  # then on_response_complete(), next_turn() go on
                self._held_back = True
                self.flow.pause_reading()
                if len(self._rest) > _MOST_REST:  # it sends on and on all the same
                    self.transport.abort()
                return
            data, self._rest = self._rest[:_SLICE], self._rest[_SLICE:]
            self._parse(data)
        self._rest = b""
        if self._held_back:
            self._held_back = False
            self.flow.resume_reading()
        if self._ended and not self.eof_received():
            self.transport.close()

    def next_turn(self) -> None:
        """Let the answers of this turn go, and go on in the next one."""
        self.flush()
        self._turn = 0
        if self._rest:
            self.loop.call_soon(self._go_on)

    def _parse(self, data: bytes) -> None:
        """Feed the parser, unless the head grows too long."""
        tail = self._tail
        if self._in_head or not self._in_message:
            size = len(data)
            if self._unread + size > self.limits.head or b"pgrade" in data:
                size = head_size(tail, data)
                data = without_upgrade(data[:size]) + data[size:]
            self._unread += size
            if self._unread > self.limits.head:
                self._refuse(431, "the request line and headers are too long")
                return
        else:
            self._unread += len(data)  # until on_body() tells that it was read
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            if not self._refused:
                self._refuse(400, f"this is not HTTP: {error}")
        except httptools.HttpParserUpgrade:
            pass  # refused when its head was complete
        self._tail = (tail + data)[-KEPT:] if self._in_head else b""
        if self._in_message and not self._in_head:
            self._since = self.loop.time()
            if self._unread > self.limits.head and not self._refused:
                self._refuse(431, "what is between or behind the chunks of the body is too long")

    def on_message_begin(self) -> None:
        """Note that a request has begun."""
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self._since = self.loop.time()
        self._in_head = self._in_message = self._spoke = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; what follows a body in chunks is none, for the request has begun."""
        if self._in_head:
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Start the request, unless this connection is one too many."""
        self._in_head = False
        self._unread = 0
        if self.transport.is_closing():  # the answer before this one was the last
            raise ConnectionAbortedError
        if self._is_extra:
            self._refuse(503, "too many connections")
        elif len(self.headers) > self.limits.headers:
            self._refuse(431, f"more than {self.limits.headers} headers")
        elif self.parser.should_upgrade():  # the parser would drop its body
            self._refuse(400, "this server speaks HTTP/1.1 only")
        fields = dict(self.headers)
        if len(fields) < len(self.headers) and [n for n, _ in self.headers].count(b"host") > 1:
            self._refuse(400, "more than one Host")
        if self._refused:
            raise ConnectionRefusedError  # stops the parser
        if not self._go_directly(fields):
            self._go_through_asgi(fields)

    def _go_directly(self, fields: dict[bytes, bytes]) -> bool:
        """Tell whether the request is to be answered without a task of its own."""
        verb = self.parser.get_method()
        content_type = fields.get(b"content-type", b"") if verb == b"POST" else None
        if (
            self._app is None
            or self.flow.write_paused
            or not self._answered()
            or not _INDIRECT_FIELDS.isdisjoint(fields)
            or int(fields.get(b"content-length", b"0")) > self._direct_body
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

    def _go_through_asgi(self, fields: dict[bytes, bytes]) -> None:
        version = self.parser.get_http_version()
        if version not in _VERSIONS:
            self._refuse(400, f"HTTP/{version} is not spoken here")
            raise ConnectionRefusedError  # stops the parser
        url, headers = self.url, self.headers
        super().on_message_begin()
        self.url, self.headers = url, headers
        self.scope["headers"] = headers
        expected = fields.get(b"expect", b"").lower() == b"100-continue"
        self.expect_100_continue: bool = expected and version == "1.1"
        super().on_headers_complete()
        cycle = cast("Cycle", self.cycle)
        cycle.__class__ = Cycle  # uvicorn has no other way to say which class to make
        cycle.transport = cast("asyncio.Transport", self._response)  # all that it uses of one
        if self._access_log is not None:
            cycle.on_end = partial(self._note_cycle, url, perf_counter())
        if self._last:
            self.cycle.keep_alive = False

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: AnyApp) -> None:
        self._working = cast("Cycle", cycle)
        # By its class: it is made one only when this returns, see above.
        super()._start_asgi_task(cycle, cast("Any", partial(Cycle.answer, self._working, app)))

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body."""
        self._unread = 0
        if self._body is None:
            super().on_body(body)
        else:
            self._body.append(body)

    def on_message_complete(self) -> None:
        """Note that the request is all here, and answer it where that takes no task."""
        self._in_message = False
        self._unread = 0
        if self._body is None:
            super().on_message_complete()
            return
        call, body, self._body = self._call, b"".join(self._body), None
        assert self._app is not None
        assert call is not None
        if self._app.blocks(call):  # only since its head was here: its body came later
            self._go_through_asgi(dict(self.headers))
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
            self._note(self.url, begin, (verb, status, size, request_id))

    def _respond(self, status: int, headers: bytes, body: Sequence[bytes], size: int) -> None:
        """Write a whole response, whose body has `size` bytes."""
        parts = [STATUS_LINE[status], headers]
        for name, value in self.server_state.default_headers:
            parts += (name, b": ", value, b"\r\n")
        parts.append(b"connection: close\r\n\r\n" if self._last else b"\r\n")
        if not self._out:
            self._outbox.add(self)
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
        """Let the answers go."""
        if not self._out:
            return
        out, self._out = self._out, []
        if self._out_size < COPIED:
            self.transport.write(b"".join(out))
        else:
            self.transport.writelines(out)
        self._out_size = 0

    def on_response_complete(self) -> None:
        """Go on with the next request; inherited, but for its timer."""
        self.server_state.total_requests += 1
        self._since = self.loop.time()
        if self.transport.is_closing() or self._lingers:  # this answer was the last
            return
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif not self._rest:  # else it stays as it is until that is parsed
            self.flow.resume_reading()
        self._go_on()  # also where the body of the next one is in what waits

    # -- the access log ------------------------------------------------------------------------

    def _note_cycle(self, url: bytes, begin: float, cycle: "Cycle") -> None:
        self._note(url, begin, (cycle.scope["method"], cycle.status, cycle.size, cycle.request_id))

    def _note(self, url: bytes, begin: float, answered: tuple[str, int, int, bytes]) -> None:
        assert self._access_log is not None
        seconds = perf_counter() - begin
        verb, status, size, request_id = answered
        self._access_log.note(
            self._listener, self._peer, verb, url, status, size, seconds, request_id
        )

    # -- refusals ------------------------------------------------------------------------------

    def _refuse(self, status: int, text: str) -> None:
        self._refused = True
        self._since = self.loop.time()
        if self.transport.is_closing():
            return
        if not self._answered() and not self._drop_unfinished():
            return  # the answers before come first, and the last of them ends the connection
        self._traffic.refusals[status] += 1
        body = encode_error(text)
        is_head = self._in_message and self.url and self.parser.get_method() == b"HEAD"
        sent = b"" if is_head else body
        request_id = b"" if self._app is None else self._app.new_id()
        if self._access_log is not None:
            self._note(self.url, perf_counter(), ("", status, len(sent), request_id))
        fields = [*self.server_state.default_headers, *self._headers]
        fields += ((b"content-type", b"application/json"), (b"x-request-id", request_id))
        head = [STATUS_LINE[status].rstrip(), *(b"%s: %s" % f for f in fields if f[1])]
        head += [b"content-length: %d" % len(body), b"connection: close", b"", sent]
        self.flush()
        self.transport.write(b"\r\n".join(head))
        self._linger()

    def _drop_unfinished(self) -> bool:
        """Forget the request that is refused; tell whether no other is being answered."""
        *before, last = self._unanswered()
        if last.more_body and not last.response_started:
            if self.pipeline:
                self.pipeline.popleft()
            last.leave()  # nobody need wait for the rest of it
            if not before:
                return True
            last = before[-1]
        last.keep_alive = False
        return False

    def close_after_response(self) -> None:
        """End the connection, after a moment if the client is still sending."""
        self.flush()
        self._since = self.loop.time()
        if self._in_message and not self.transport.is_closing():
            self._refused = True
            self._linger()
        else:
            self.transport.close()

    def _linger(self) -> None:
        """Say no more and read on for a moment: closing at once could take the answer back."""
        self._lingers = True
        self._unread = 0
        self.flow.resume_reading()
        self.transport.write_eof()

    def _drop(self, data: bytes) -> None:
        self._unread += len(data)
        if self._unread > LINGER_LIMIT:
            self.transport.close()
