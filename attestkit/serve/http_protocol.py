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
import re
from collections.abc import Sequence
from functools import partial
from http import HTTPStatus
from time import perf_counter
from typing import Any, Final, NamedTuple, cast

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from attestkit.serve.access_log import AccessLog
from attestkit.serve.http_cycle import COPIED, Cycle
from attestkit.serve.json_codec import encode_error
from attestkit.serve.limits import Limits
from attestkit.serve.rpc import App, DirectCall, RpcApp
from attestkit.serve.stats import Traffic

__all__ = ["HttpProtocol", "ListenerConfig", "Shared"]

LINGER_SECONDS: Final = 1.0
LINGER_LIMIT: Final = 4 * 1024 * 1024  # bytes

_DIRECT_BODY: Final = 64 * 1024  # a longer one goes where its sender can be slowed down
_DIRECT_VERBS: Final = frozenset({b"GET", b"POST"})
_MOST_OUT: Final = 64 * 1024  # bytes of answers that wait to leave
_INDIRECT_FIELDS: Final = frozenset({b"expect", b"transfer-encoding"})
_JSON: Final = (b"content-type", b"application/json")
_UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)


class Sweep:
    """Ends what took too long on any connection of a listener."""

    def __init__(self, limits: Limits) -> None:
        shortest = min(
            limits.head_seconds,
            limits.body_seconds,
            limits.idle_seconds,
            limits.write_seconds,
            LINGER_SECONDS,
        )
        self._seconds = min(1.0, max(0.02, shortest / 4))
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, connections: set[Any], loop: asyncio.AbstractEventLoop) -> None:
        """Look at these connections from time to time, as long as there are any."""
        if self._timer is None:
            self._timer = loop.call_later(self._seconds, self._look, connections, loop)

    def _look(self, connections: set[Any], loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        for connection in list(connections):
            connection.check(now)
        if connections:
            self.watch(connections, loop)


class Shared(NamedTuple):
    """What the connections of one listener share."""

    name: str
    limits: Limits
    traffic: Traffic
    access_log: AccessLog | None


class Outbox:
    """Connections with answers that leave when all requests of the loop's turn have theirs.

    To wake a client costs more than most methods. So all are answered first: by the second of them
    the client is awake.
    """

    def __init__(self) -> None:
        self._waiting: list[HttpProtocol] = []

    def add(self, connection: "HttpProtocol") -> None:
        """Have the connection's answers leave soon."""
        if not self._waiting:
            connection.loop.call_soon(self._flush)
        self._waiting.append(connection)

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for connection in waiting:
            connection.flush()


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
            timeout_graceful_shutdown=shared.limits.drain_seconds,  # type: ignore[arg-type]  # it takes any number
        )
        self.shared = shared
        self.sweep = Sweep(shared.limits)
        self.outbox = Outbox()
        self.rpc_app = app if isinstance(app, RpcApp) else None
        self.refusal_fields: Sequence[tuple[bytes, bytes]] = (*getattr(app, "headers", ()), _JSON)


class HttpProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, config: ListenerConfig, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - handed through
        super().__init__(config, *args, **kwargs)
        self._listener, self.limits, self._traffic, self._access_log = config.shared
        self._sweep = config.sweep
        self._outbox = config.outbox
        self._out: list[bytes] = []  # answers that have not left yet
        self._out_size = 0
        self._direct_body = min(_DIRECT_BODY, self.limits.body)
        self._app = config.rpc_app
        self._refusal_fields = config.refusal_fields
        self._peer = ""
        self._in_head = self._in_message = self._refused = self._is_extra = False
        self._spoke = self._last = self._lingers = False
        self._unread = 0  # bytes of a head, or behind a refusal
        self._unsent = 0  # bytes that the client had not taken when last looked at
        self._since = 0.0  # when the present state began, by the loop's clock
        self._call: DirectCall | None = None  # of a request that is answered directly
        self._is_post = False
        self._content_type = b""
        self._body: list[bytes] | None = None
        self._response: _Response | None = None
        self.url = b""

    # -- the connection ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as inherited
        """Take a connection, unless there are far too many."""
        super().connection_made(transport)
        self._response = _Response(self)
        self._peer = self.client[0] if self.client else ""
        self._traffic.connections += 1
        self._since = self.loop.time()
        if len(self.connections) > 2 * self.limits.connections:
            transport.abort()
            return
        self._is_extra = len(self.connections) > self.limits.connections
        self._sweep.watch(self.connections, self.loop)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget what holds on to us."""
        self._traffic.connections -= 1
        if not self._answered():
            cast("Cycle", self.cycle).end()
        super().connection_lost(exc)
        self._response = self._call = self._body = None
        self._out = []
        if self.cycle is not None:
            self.cycle.transport = self.transport

    def eof_received(self) -> bool:  # type: ignore[override]  # as asyncio has it
        """Answer a client that says no more; tell whether the connection is kept for that.

        Of one that follows a log it is taken for having gone: else we would follow it for nobody.
        """
        self.last_call()
        if self._answered() or self._in_message:
            return False
        return not cast("Cycle", self.cycle).is_endless

    def last_call(self) -> None:
        """Let the request in flight, else the next one, be the last."""
        self._last = True
        if not self._answered():
            self.cycle.keep_alive = False

    def is_idle(self) -> bool:
        """Tell whether no request is in flight, not even a part of one."""
        return self._answered() and not self._in_message and not self._out

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
            if waited > idle:
                self.transport.close()

    def _answered(self) -> bool:
        """Tell whether there is no answer under way through ASGI."""
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request
        return cycle is None or cycle.response_complete

    def _check_request(self, waited: float) -> None:
        if self._in_head:
            late = waited > self.limits.head_seconds
        else:  # where reading is paused we are the slow ones
            late = waited > self.limits.body_seconds and not self.flow.read_paused
        if not late:
            return
        if not self._in_head and self._body is None and self.cycle.response_complete:
            self.transport.close()
        else:
            self._refuse(408, "the request did not come in time")

    # -- requests ------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Feed the parser, unless the head grows too long or the request was refused."""
        if self._refused:
            self._drop(data)
            return
        if self._in_head or not self._in_message:
            if not self._in_head:
                self._since = self.loop.time()
            limit = self.limits.head
            end = data.find(b"\r\n\r\n") if len(data) > limit else len(data)
            self._unread += len(data) if end < 0 else end
            if self._unread > limit:
                self._refuse(431, "the request line and headers are too long")
                return
            if b"pgrade" in data:
                data = _without_upgrade(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            if not self._refused:
                self._refuse(400, f"this is not HTTP: {error}")
        except httptools.HttpParserUpgrade:
            pass  # refused when its head was complete
        if self._in_message and not self._in_head:
            self._since = self.loop.time()

    def on_message_begin(self) -> None:
        """Note that a request has begun."""
        self.url = b""
        self.headers = []
        self._in_head = self._in_message = self._spoke = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
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
        if self._refused:
            raise ConnectionRefusedError  # stops the parser
        fields = dict(self.headers)
        if not self._go_directly(fields):
            self._go_through_asgi(fields)

    def _go_directly(self, fields: dict[bytes, bytes]) -> bool:
        """Tell whether the request is to be answered without a task of its own."""
        if (
            self._app is None
            or self.flow.write_paused
            or not self._answered()
            or not _INDIRECT_FIELDS.isdisjoint(fields)
            or int(fields.get(b"content-length", b"0")) > self._direct_body
            or not self.parser.should_keep_alive()
            or self.parser.get_http_version() != "1.1"
            or (verb := self.parser.get_method()) not in _DIRECT_VERBS
            or (call := self._app.direct(self.url)) is None
        ):
            return False
        self._call = call
        self._is_post = verb == b"POST"
        self._content_type = fields.get(b"content-type", b"")
        self._body = []
        return True

    def _go_through_asgi(self, fields: dict[bytes, bytes]) -> None:
        url, headers = self.url, self.headers
        super().on_message_begin()
        self.url, self.headers = url, headers
        self.scope["headers"] = headers
        self.expect_100_continue = fields.get(b"expect", b"").lower() == b"100-continue"
        super().on_headers_complete()
        self.cycle.__class__ = Cycle  # uvicorn has no other way to say which class to make
        self.cycle.transport = self._response  # type: ignore[assignment]  # all that it uses of one
        if self._access_log is not None:
            cast("Cycle", self.cycle).on_end = partial(self._note_cycle, url, perf_counter())
        if self._last:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body."""
        if self._body is None:
            super().on_body(body)
        else:
            self._body.append(body)

    def on_message_complete(self) -> None:
        """Note that the request is all here, and answer it where that takes no task."""
        self._in_message = False
        if self._body is None:
            super().on_message_complete()
            return
        body, self._body = b"".join(self._body) if self._is_post else None, None
        assert self._app is not None
        assert self._call is not None
        begin = perf_counter()
        status, headers, pieces, request_id = self._app.respond(
            self._call, self.url, self._content_type, body
        )
        self._respond(status, headers, pieces)
        if self._access_log is not None:
            verb, size = "POST" if self._is_post else "GET", sum(map(len, pieces))
            self._note(verb, self.url, status, size, begin, request_id)

    def _respond(self, status: int, headers: bytes, body: Sequence[bytes]) -> None:
        """Write a whole response."""
        parts = [STATUS_LINE[status], headers]
        for name, value in self.server_state.default_headers:
            parts += (name, b": ", value, b"\r\n")
        parts.append(b"connection: close\r\n\r\n" if self._last else b"\r\n")
        if not self._out:
            self._outbox.add(self)
        self._out.append(b"".join(parts))
        self._out += body
        self._out_size += sum(map(len, body))
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
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())

    # -- the access log ------------------------------------------------------------------------

    def _note_cycle(self, url: bytes, begin: float, cycle: "Cycle") -> None:
        verb, status = cycle.scope["method"], cycle.status
        self._note(verb, url, status, cycle.size, begin, cycle.request_id.decode("ascii"))

    def _note(  # noqa: PLR0913, PLR0917 - what a request was
        self, verb: str, url: bytes, status: int, size: int, begin: float, request_id: str
    ) -> None:
        assert self._access_log is not None
        seconds = perf_counter() - begin
        self._access_log.note(
            self._listener, self._peer, verb, url, status, size, seconds, request_id
        )

    # -- refusals ------------------------------------------------------------------------------

    def _refuse(self, status: int, text: str) -> None:
        self._refused = True
        self._since = self.loop.time()
        if self.transport.is_closing():
            return
        if not self._answered():
            if self.cycle.response_started or not self.cycle.more_body:
                self.cycle.keep_alive = False  # its answer comes first, and ends the connection
                return
            self.cycle.disconnected = True  # this very request; nobody need wait for its rest
            self.cycle.message_event.set()
        self._traffic.refusals[status] += 1
        body = encode_error(text)
        if self._access_log is not None:
            self._note("", self.url, status, len(body), perf_counter(), "")
        reason = HTTPStatus(status).phrase
        fields = (*self.server_state.default_headers, *self._refusal_fields)
        head = [b"HTTP/1.1 %d %s" % (status, reason.encode()), *(b"%s: %s" % f for f in fields)]
        head += [b"content-length: %d" % len(body), b"connection: close", b"", body]
        self.flush()
        self.transport.write(b"\r\n".join(head))
        self._linger()

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


class _Response:
    """What the answer to a request may do to its connection."""

    __slots__ = ("_protocol", "_transport", "is_closing")

    def __init__(self, protocol: HttpProtocol) -> None:
        self._protocol = protocol
        self._transport = protocol.transport
        self.is_closing = protocol.transport.is_closing

    def write(self, data: bytes) -> None:
        """Send bytes behind the answers that come first."""
        self._protocol.flush()
        self._transport.write(data)

    def writelines(self, pieces: Sequence[bytes]) -> None:
        """The same, in pieces."""
        self._protocol.flush()
        self._transport.writelines(pieces)

    def close(self) -> None:
        """End it, in good order."""
        self._protocol.close_after_response()


def _without_upgrade(data: bytes) -> bytes:
    """Return a request that no longer asks for another protocol, as clients of HTTP/2 do.

    Such a wish may be ignored, but the parser would take it for granted and drop the body.
    """
    head, blank, rest = data.partition(b"\r\n\r\n")
    return _UPGRADE.sub(b"\r\nx-not-upgraded:", head) + blank + rest
