"""Requests that wait for the device are limited, and dropped when their client is gone."""

import asyncio
import contextlib
import json
import select
import socket
import struct
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest
import uvloop

from attestkit.attester import Attester
from attestkit.backends.simulator import Simulator
from attestkit.event_log import Event
from attestkit.quote import Quote
from attestkit.serve import listener_apps
from attestkit.serve.config.limits import LimitError, Limits
from attestkit.serve.http import server
from attestkit.serve.http.server import Listener
from attestkit.serve.services.context import Guest
from attestkit.serve.services.device_queue import DeviceQueue
from tests.raising import raises
from tests.serve.asgi import Response
from tests.serve.guests import GuestClient, MakeGuest
from tests.serve.http.listening import response

PATIENCE = 30.0
RESETS = 40
VERSION = b"GET /Version HTTP/1.1\r\nHost: x\r\n\r\n"


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Run a test in an event loop."""
    uvloop.run(asyncio.wait_for(test(), PATIENCE))


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    while not condition():  # noqa: ASYNC110 - of a thread or a socket
        await asyncio.sleep(0.001)


# -- the queue -----------------------------------------------------------------------------------


@pytest.mark.parametrize("writes", [False, True])
def test_requests_over_the_limit_are_refused(*, writes: bool) -> None:
    """The others get their results; after the end of the server none is accepted."""

    async def test() -> None:
        go, queue = threading.Event(), DeviceQueue(3)
        waiting = [asyncio.ensure_future(queue.run(go.wait, writes=writes)) for _ in range(3)]
        await asyncio.sleep(0)
        assert queue.is_writing is writes
        with raises(LimitError, "waiting"):
            await queue.run(go.wait, writes=writes)
        go.set()
        assert await asyncio.gather(*waiting) == [True] * 3
        assert not queue.is_writing
        queue.close()
        with raises(LimitError, "waiting"):
            await queue.run(go.wait, writes=writes)

    run(test)


def test_requests_run_in_order_of_arrival() -> None:
    """Requests that write to a disk and others are in one order."""

    async def test() -> None:
        order, queue = list[int](), DeviceQueue(10)
        calls = [queue.run(partial(order.append, n), writes=n % 3 == 0) for n in range(10)]
        await asyncio.gather(*calls)
        assert order == [*range(10)]
        queue.close()

    run(test)


def test_cancelled_request_is_dropped_unless_it_runs() -> None:
    """One that waits makes room; one that runs is finished, and counts until then."""

    async def test() -> None:
        go, done, queue = threading.Event(), list[str](), DeviceQueue(2)

        def write(name: str) -> None:
            started.set()
            assert go.wait(PATIENCE)
            done.append(name)

        started = threading.Event()
        first = asyncio.ensure_future(queue.run(lambda: write("first"), writes=True))
        await until(started.is_set)
        for _ in range(3):
            other = asyncio.ensure_future(queue.run(lambda: write("other"), writes=True))
            await asyncio.sleep(0)
            other.cancel()
            await asyncio.wait({other})
        first.cancel()
        await asyncio.wait({first})
        writing = [queue.is_writing]
        last = asyncio.ensure_future(queue.run(lambda: write("last"), writes=True))
        await asyncio.sleep(0)
        with raises(LimitError, "waiting"):
            await queue.run(lambda: write("over"), writes=True)
        go.set()
        await last
        assert [*writing, queue.is_writing] == [True, False]
        assert done == ["first", "last"]
        queue.close()

    run(test)


# -- clients -------------------------------------------------------------------------------------


class Hanging(Simulator):
    """A TD whose quotes wait for `go`."""

    blocking = True
    go: ClassVar[threading.Event]
    started: ClassVar[threading.Event]
    quoted: ClassVar[list[int]]

    def get_quote(self, report_data: bytes) -> bytes:
        """Return a quote, once `go` is set."""
        self.started.set()
        assert self.go.wait(PATIENCE)
        self.quoted.append(report_data[0])
        return super().get_quote(report_data)


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> type[Hanging]:
    """Return the class of a TD that hangs."""
    monkeypatch.setattr(Hanging, "go", threading.Event(), raising=False)
    monkeypatch.setattr(Hanging, "started", threading.Event(), raising=False)
    monkeypatch.setattr(Hanging, "quoted", [], raising=False)
    return Hanging


def encode_call(method: str, **message: str) -> bytes:
    """Return a request to a method."""
    body = json.dumps(message).encode()
    head = f"POST /{method} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n%s" % (len(body), body)


class Served:
    """A guest on a listening socket, in the running event loop."""

    def __init__(self, guest: Guest, listening: socket.socket) -> None:
        self.traffic = guest.stats.of("dstack")
        self._address = listening.getsockname()
        self._family = listening.family

    def connect(self) -> socket.socket:
        """Return a connection."""
        sock = socket.socket(self._family)
        sock.connect(self._address)  # does not wait for the event loop
        sock.setblocking(False)
        return sock

    async def ask(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        """Return the response to a request on a connection of its own."""
        reader, writer = await asyncio.open_connection(sock=self.connect())
        with contextlib.closing(writer):
            writer.write(request)
            return await response(reader)

    async def reset(self, request: bytes, condition: Callable[[], bool] = lambda: True) -> None:
        """Send a request behind one that is answered at once, and reset once a condition holds."""
        before = self.traffic.connections
        with self.connect() as sock:
            sock.sendall(VERSION + request)
            await until(lambda: bool(select.select([sock], [], [], 0)[0]))
            await until(condition)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await until(lambda: self.traffic.connections == before)


@contextlib.asynccontextmanager
async def serve(guest: Guest, listening: socket.socket) -> AsyncIterator[Served]:
    """Serve the methods of dstack.sock on a listening socket."""
    ready = asyncio.Event()
    app, traffic = listener_apps.dstack_app(guest), guest.stats.of("dstack")
    listener = Listener(app, listening, guest.limits, traffic=traffic)
    task = asyncio.create_task(server.run_in_loop([listener], ready.set))
    await ready.wait()
    try:
        yield Served(guest, listening)
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.fixture(params=["tcp", "unix"])
def listening(request: pytest.FixtureRequest, folder: Path) -> socket.socket:
    """Return a listening socket."""
    if request.param == "tcp":
        return socket.create_server(("127.0.0.1", 0))
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(folder / "s"))
    sock.listen()
    return sock


def test_resets_leave_nothing_in_the_queue(
    make_guest: MakeGuest, hanging: type[Hanging], listening: socket.socket
) -> None:
    """However many clients request a quote and reset, the device makes those of the others only."""
    guest = make_guest(hanging, limits=Limits(connections=3))

    async def test() -> None:
        async with serve(guest, listening) as served:
            try:
                first = asyncio.create_task(served.ask(encode_call("GetQuote", report_data="01")))
                await until(hanging.started.is_set)
                for _ in range(RESETS):
                    await served.reset(encode_call("GetQuote", report_data="02"))
                last = asyncio.create_task(served.ask(encode_call("GetQuote", report_data="03")))
                await until(lambda: served.traffic.connections == 2)
            finally:
                hanging.go.set()
            for number, each in ((1, first), (3, last)):
                status, _, body = await each
                assert status == 200
                quote = Quote.parse(bytes.fromhex(json.loads(body)["quote"]))
                assert quote.report_data[0] == number
        assert hanging.quoted == [1, 3]

    run(test)


def test_started_event_is_logged_although_its_client_is_gone(
    make_guest: MakeGuest, monkeypatch: pytest.MonkeyPatch, listening: socket.socket
) -> None:
    """An event that has begun is finished, in the device's thread; one that waits is dropped."""
    go, started, emit = threading.Event(), threading.Event(), Attester.emit_event

    def slow(self: Attester, name: str, payload: bytes) -> Event:
        started.set()
        assert go.wait(PATIENCE)
        return emit(self, name, payload)

    monkeypatch.setattr(Attester, "emit_event", slow)
    guest = make_guest()

    async def test() -> None:
        async with serve(guest, listening) as served:
            try:
                begun = encode_call("EmitEvent", event="begun", payload="01")
                await served.reset(begun, started.is_set)
                await served.reset(encode_call("EmitEvent", event="waits", payload="02"))
                assert guest.device_blocks
            finally:
                go.set()
            await until(lambda: not guest.device_blocks)
            assert (await served.ask(encode_call("GetQuote", report_data="01")))[0] == 200
        names = [event.name for event in guest.attester.event_log().runtime]
        assert "begun" in names
        assert "waits" not in names

    run(test)


def test_request_over_the_limit_is_503(
    make_guest: MakeGuest, guest_client: GuestClient, hanging: type[Hanging]
) -> None:
    """More requests than the connections can have are refused with a status and a text."""
    client = guest_client("dstack", make_guest(hanging, limits=Limits(connections=2)))

    async def quote() -> Response:
        return await client.send("POST", "/GetQuote", b'{"report_data": "01"}')

    async def test() -> None:
        waiting = [asyncio.create_task(quote()) for _ in range(4)]
        try:
            await until(hanging.started.is_set)
            refused = await quote()
            assert refused.status == 503
            assert "device" in refused.error()
        finally:
            hanging.go.set()
        assert [(await each).status for each in waiting] == [200] * 4

    run(test)
