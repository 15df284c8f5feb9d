"""Serve ASGI applications on sockets that are already bound; uvicorn lives here and nowhere else.

Bounds of every listener, so that a stranger can neither hold nor fill it:

| what | bound | answer |
|---|---|---|
| request line and headers | 32 KiB | 431 |
| from the first byte of a request (or the connection) to the end of its headers | 10 s | 408 |
| between two pieces of a body | 30 s | 408 |
| connections | 256 | 503; from twice as many on they are closed at once |
| idle between requests | 10 s | closed |
| what is sent behind a refusal | 1 s, 4 MiB | dropped, then closed |
| requests in flight when the server stops | 10 s | cut off; see drain |
"""

import asyncio
import contextlib
import logging
import re
import socket
from collections.abc import Callable, Coroutine, Iterator, MutableMapping, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple, TypeAlias, cast

import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from attestkit.serve.drain import Door, drain
from attestkit.serve.json_codec import encode_error
from attestkit.serve.limits import Limits
from attestkit.serve.rpc import App
from attestkit.serve.signals import until_signalled

__all__ = ["Listener", "run"]

HEAD_LIMIT = 32 * 1024  # bytes
HEAD_SECONDS = 10.0
BODY_SECONDS = 30.0
IDLE_SECONDS = 10
LINGER_SECONDS = 1.0
LINGER_LIMIT = 4 * 1024 * 1024  # bytes
CONNECTION_LIMIT = 256

_COPIED = 4096  # a shorter body is copied behind its head, a longer one is not
_UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)
_logger = logging.getLogger("attestkit.serve")

Message: TypeAlias = MutableMapping[str, Any]
Work: TypeAlias = Callable[[], Coroutine[Any, Any, None]]


class Listener(NamedTuple):
    """An application, and the listening socket that leads to it.

    An application may have a method `stop` that ends answers which would go on for ever. A socket
    that was handed over is not ours to turn people away from.
    """

    app: App
    socket: socket.socket
    limits: Limits = Limits()
    handed_over: bool = False


def run(
    listeners: Sequence[Listener],
    on_ready: Callable[[], None],
    on_stop: Callable[[], None] = lambda: None,
    background: Sequence[Work] = (),
) -> int:
    """Serve until a signal says to stop (see signals), then finish what is in flight (see drain).

    Args:
        listeners: What is served; their sockets are closed at the end.
        on_ready: Called once, when every listener accepts.
        on_stop: Called once, before the first listener stops to accept.
        background: Coroutines that run from then on in the same event loop, and end with it.

    Returns:
        How many connections had to be cut off, because the time to finish was over.
    """
    return uvloop.run(_run(listeners, on_ready, on_stop, background))


async def _run(
    listeners: Sequence[Listener],
    on_ready: Callable[[], None],
    on_stop: Callable[[], None] = lambda: None,
    background: Sequence[Work] = (),
) -> int:
    servers = [_Server(listener) for listener in listeners]
    helpers: list[asyncio.Task[None]] = []

    def stop() -> None:
        if not any(server.should_exit for server in servers):
            on_stop()
        for helper in helpers:
            helper.cancel()
        for server in servers:
            server.stop()

    with until_signalled(stop):
        tasks = [
            asyncio.create_task(server.serve(sockets=[listener.socket]))
            for server, listener in zip(servers, listeners, strict=True)
        ]
        try:
            while not all(server.started for server in servers):
                for task in tasks:
                    if task.done():
                        task.result()  # raises what kept it from starting
                await asyncio.sleep(0)
            on_ready()
            helpers += [asyncio.create_task(_tell(work)) for work in background]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:  # stopped, cancelled, or one failed: all end in good order
            stop()
            await asyncio.wait((*tasks, *helpers))
    for task in tasks:
        task.result()
    return sum(server.cut_off for server in servers)


async def _tell(work: Work) -> None:
    """Do work in the background; if it fails the log has it, and the server goes on."""
    try:
        await work()
    except Exception:
        _logger.exception("work in the background ended")


def _config(app: App) -> uvicorn.Config:
    return uvicorn.Config(
        lambda: app,
        factory=True,  # else uvicorn calls the application once to find out whether it is one
        http=_Protocol,
        ws="none",
        interface="asgi3",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=IDLE_SECONDS,
    )


class _Server(uvicorn.Server):
    """One of several servers in a process: signals are not its business, idle it sleeps."""

    def __init__(self, listener: Listener) -> None:
        super().__init__(_config(listener.app))
        self.cut_off = 0
        self._listener = listener
        self._stopped = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to run(), which tells all servers."""
        yield

    def stop(self) -> None:
        """Accept no more, finish what is in flight."""
        self.should_exit = True
        for connection in self.server_state.connections:
            cast("_Protocol", connection).last_call()
        self._stopped.set()

    async def main_loop(self) -> None:
        """Keep the Date header fresh until stop(); the inherited loop wakes ten times a second."""
        while not await self.on_tick(0):
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), 1.0)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the listening socket; answer those who are in."""
        sock = self._listener.socket
        door = Door(sock.dup(), ours=not self._listener.handed_over)
        for server in self.servers:
            server.close()
        for each in sockets or ():
            each.close()
        self.cut_off = await drain(
            door,
            self.server_state.connections,  # type: ignore[arg-type]  # of _Protocol
            self.server_state.tasks,
            connect=self._connect,
            end_streams=getattr(self._listener.app, "stop", lambda: None),
            seconds=self._listener.limits.drain_seconds,
        )

    async def _connect(self, accepted: socket.socket) -> None:
        """Serve a connection that was accepted outside of the event loop."""

        def protocol() -> _Protocol:
            return _Protocol(self.config, self.server_state, self.lifespan.state)

        await asyncio.get_running_loop().connect_accepted_socket(protocol, accepted)


class _Protocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol with the bounds of this module."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - handed through
        super().__init__(*args, **kwargs)
        self._in_head = self._in_message = self._refused = self._is_extra = self._last = False
        self._unread = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timed_head = False
        self._response: _Response | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as inherited
        """Take a connection, unless there are far too many."""
        super().connection_made(transport)
        self._response = _Response(self)
        if len(self.connections) > 2 * CONNECTION_LIMIT:
            transport.abort()
            return
        self._is_extra = len(self.connections) > CONNECTION_LIMIT
        self._timed_head = True
        self._timer = self.loop.call_later(HEAD_SECONDS, self._expired)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget what holds on to us."""
        self._cancel_timer()
        super().connection_lost(exc)
        self._response = None
        if self.cycle is not None:
            self.cycle.transport = self.transport

    def last_call(self) -> None:
        """Let the request in flight, else the next one, be the last."""
        self._last = True
        if not self._answered():
            self.cycle.keep_alive = False

    def is_idle(self) -> bool:
        """Tell whether no request is in flight, not even a part of one."""
        return self._answered() and not self._in_message

    def _answered(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request
        return cycle is None or cycle.response_complete

    def data_received(self, data: bytes) -> None:
        """Feed the parser, unless the head grows too long or the request was refused."""
        if self._refused:
            self._drop(data)
            return
        if self._in_head or not self._in_message:
            end = data.find(b"\r\n\r\n") if len(data) > HEAD_LIMIT else len(data)
            self._unread += len(data) if end < 0 else end
            if self._unread > HEAD_LIMIT:
                self._refuse(431, "the request line and headers are too long")
                return
            if b"pgrade" in data:
                data = _without_upgrade(data)
        super().data_received(data)
        if self._in_message and not self._refused:
            self._watch()
        elif self._timer is not None and not self._refused:
            self._cancel_timer()

    def on_message_begin(self) -> None:
        """Note that a request has begun."""
        super().on_message_begin()
        self._in_head = self._in_message = True

    def on_headers_complete(self) -> None:
        """Start the request, unless this connection is one too many."""
        self._in_head = False
        self._unread = 0
        if self._is_extra:
            self._refuse(503, "too many connections")
        elif self.parser.should_upgrade():  # it came in pieces; the parser will drop its body
            self._refuse(400, "this server speaks HTTP/1.1 only")
        if self._refused:
            raise ConnectionRefusedError  # stops the parser; send_400_response() then does nothing
        super().on_headers_complete()
        if self._last:
            self.cycle.keep_alive = False
        self.cycle.__class__ = _Cycle  # uvicorn has no other way to say which class to make
        self.cycle.transport = self._response  # type: ignore[assignment]  # all that it uses of one

    def on_message_complete(self) -> None:
        """Note that the request is all here."""
        self._in_message = False
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP."""
        if not self._refused:
            self._refuse(400, msg)

    def _watch(self) -> None:
        """Set the timer: a head has one for all of it, a body a new one for each piece."""
        if self._in_head and self._timed_head and self._timer is not None:
            return
        self._cancel_timer()
        self._timed_head = self._in_head
        seconds = HEAD_SECONDS if self._in_head else BODY_SECONDS
        self._timer = self.loop.call_later(seconds, self._expired)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expired(self) -> None:
        self._timer = None
        if self._refused or not self._in_message:
            self.transport.close()  # lingered long enough, or never said a word
        elif not self._in_head and self.flow.read_paused:
            self._watch()  # we are the slow ones
        elif not self._in_head and self.cycle.response_complete:
            self.transport.close()
        else:
            self._refuse(408, "the request did not come in time")

    def _refuse(self, status: int, text: str) -> None:
        self._refused = True
        self._cancel_timer()
        if self.transport.is_closing():
            return
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request
        if cycle is not None and not cycle.response_complete:
            if cycle.response_started or not cycle.more_body:
                cycle.keep_alive = False  # its answer comes first, and ends the connection
                return
            cycle.disconnected = True  # this very request; nobody need wait for the rest of it
            cycle.message_event.set()
        body = encode_error(text)
        reason = HTTPStatus(status).phrase
        fields = [*self.server_state.default_headers, (b"content-type", b"application/json")]
        head = [b"HTTP/1.1 %d %s" % (status, reason.encode()), *(b"%s: %s" % f for f in fields)]
        head += [b"content-length: %d" % len(body), b"connection: close", b"", body]
        self.transport.write(b"\r\n".join(head))
        self._linger()

    def close_after_response(self) -> None:
        """End the connection, after a moment if the client is still sending."""
        if self._in_message and not self.transport.is_closing():
            self._refused = True
            self._cancel_timer()
            self._linger()
        else:
            self.transport.close()

    def _linger(self) -> None:
        """Say no more and read on for a moment: closing at once could take the answer back."""
        self._unread = 0
        self.flow.resume_reading()
        self.transport.write_eof()
        self._timer = self.loop.call_later(LINGER_SECONDS, self._expired)

    def _drop(self, data: bytes) -> None:
        self._unread += len(data)
        if self._timer is not None and self._unread > LINGER_LIMIT:
            self.transport.close()


class _Cycle(RequestResponseCycle):
    """A request and its response; a whole response leaves in one system call.

    That call, and the client that it wakes, cost more than most methods, and so does checking each
    header by itself. A response in pieces, to HEAD, or without a length goes the usual way.
    """

    pending: Message | None = None  # the start of a response, until its first piece comes

    async def send(self, message: Message) -> None:  # type: ignore[override]  # any mapping will do
        """Take a piece of the response."""
        start = self.pending
        if start is None:
            if self.response_started or message["type"] != "http.response.start":
                await super().send(message)  # type: ignore[arg-type]  # any mapping will do
                return
            self.response_started = True
            self.waiting_for_100_continue = False
            self.pending = message
            return
        self.pending = None
        if self.flow.write_paused:
            await self.flow.drain()
        body = message.get("body", b"")
        head = None if message.get("more_body") else self._head(start, len(body))
        if head is None or self.disconnected or message["type"] != "http.response.body":
            self.response_started = False
            await super().send(start)  # type: ignore[arg-type]  # any mapping will do
            await super().send(message)  # type: ignore[arg-type]  # any mapping will do
            return
        if len(body) < _COPIED:
            self.transport.write(head + body)
        else:
            self.transport.writelines((head, body))
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()

    def _head(self, start: Message, length: int) -> bytes | None:
        """Return the bytes before a whole body of `length`; None if this is another response."""
        if self.scope["method"] == "HEAD":
            return None
        parts = [STATUS_LINE[start["status"]]]
        known = False
        for name, value in (*self.default_headers, *start.get("headers", ())):
            if name == b"content-length":
                known = value == b"%d" % length
            elif name == b"connection":
                return None
            parts += (name, b": ", value, b"\r\n")
        if not self.keep_alive:
            parts += (b"connection", b": ", b"close", b"\r\n")
        parts.append(b"\r\n")
        head = b"".join(parts)
        whole = known and head.count(b"\n") == len(parts) // 4 + 2  # no line break inside a value
        return head if whole else None


class _Response:
    """What the answer to a request may do to its connection."""

    __slots__ = ("_protocol", "is_closing", "write", "writelines")

    def __init__(self, protocol: _Protocol) -> None:
        self._protocol = protocol
        self.is_closing = protocol.transport.is_closing
        self.write = protocol.transport.write
        self.writelines = protocol.transport.writelines

    def close(self) -> None:
        """End it, in good order."""
        self._protocol.close_after_response()


def _without_upgrade(data: bytes) -> bytes:
    """Return a request that no longer asks for another protocol, as clients of HTTP/2 do.

    Such a wish may be ignored, but the parser would take it for granted and drop the body.
    """
    head, blank, rest = data.partition(b"\r\n\r\n")
    return _UPGRADE.sub(b"\r\nx-not-upgraded:", head) + blank + rest
