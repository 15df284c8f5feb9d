"""A server that is told to stop answers whoever is in, lets nobody else in, and ends in time."""

import asyncio
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

import pytest
import uvloop

from attestkit import EventLog, Quote
from attestkit.serve.config.limits import Limits
from attestkit.serve.http import graceful_shutdown, signals
from attestkit.serve.http import server as listeners
from attestkit.serve.http.asgi import Receive, Scope, Send
from attestkit.serve.http.graceful_shutdown import Door
from attestkit.serve.http.server import Listener
from tests.serve.client import Connection, call
from tests.serve.hammer import hammering
from tests.serve.server import PATIENCE, ROOT, environment, running_server

Streams: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
SLOW = b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path, for a socket's path has little room."""
    with tempfile.TemporaryDirectory(prefix="ak") as name:
        yield Path(name)


# -- under load ------------------------------------------------------------------------------------


def stop_under_load(repetitions: int) -> Counter[str]:
    """Stop servers in the middle of the work of twelve clients each; return what became of it."""
    counts: Counter[str] = Counter()
    losses = []
    for _ in range(repetitions):
        with running_server() as server:
            with hammering([server.dstack, server.tappd, server.url]) as (clients, stopping):
                while min(client.counts["answered"] for client in clients) < 20:
                    assert all(client.is_alive() for client in clients)
                server.process.send_signal(signal.SIGTERM)
                stopping.set()
                assert server.process.wait(PATIENCE) == 0
            assert "cut off" not in server.log()
        for client in clients:
            counts += client.counts
            losses += client.losses
            assert client.counts["turned away"] == 1  # at its end, and never before
    assert losses == []
    return counts


def test_a_stop_under_load_loses_no_request() -> None:
    """Over sockets and TCP, kept or fresh: whatever was sent on an accepted connection is answered.

    `hammer` says what counts as accepted and as lost.
    """
    counts = stop_under_load(3)
    assert counts["answered"] >= 3 * 12 * 20
    assert counts["lost"] == 0


@pytest.mark.slow
def test_twenty_stops_under_load_lose_no_request() -> None:
    """The same twenty times, for the moments at which one could be lost are short."""
    assert stop_under_load(20)["lost"] == 0


def test_a_kill_under_load_loses_no_acknowledged_event(folder: Path) -> None:
    """After kill -9 the next server replaces the sockets, and knows every event it said yes to."""
    known: list[str] = []

    def emit() -> None:
        with (
            contextlib.closing(Connection(server.dstack)) as connection,
            contextlib.suppress(OSError),
        ):
            while True:
                name = f"event-{len(known)}"
                answer = connection.call("EmitEvent", {"event": name, "payload": "00"})
                assert answer.status == 200
                known.append(name)

    with running_server(folder=folder) as server:
        emitter = threading.Thread(target=emit)
        emitter.start()
        while len(known) < 20:
            assert emitter.is_alive()
        assert server.stop(signal.SIGKILL) == -signal.SIGKILL
        emitter.join()
    assert (folder / "dstack.sock").is_socket()
    with running_server(folder=folder) as server:
        answer = call(server.dstack, "GetQuote").json()
        log = EventLog.from_json(answer["event_log"])
        log.check(Quote.parse(bytes.fromhex(answer["quote"])))
        names = [event.name for event in log.runtime]
        assert [name for name in names if name.startswith("event-")][: len(known)] == known
        assert call(server.tappd, "prpc/Tappd.Version").status == 200


# -- the door --------------------------------------------------------------------------------------


def listening(family: int, folder: Path) -> socket.socket:
    """Return a listening socket."""
    if family == socket.AF_UNIX:
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(folder / "socket"))
        sock.listen(100)
        return sock
    return socket.create_server(
        ("::1" if family == socket.AF_INET6 else "127.0.0.1", 0), family=family
    )


FAMILIES = [socket.AF_UNIX, socket.AF_INET, socket.AF_INET6]


@pytest.mark.parametrize("family", FAMILIES)
def test_who_is_in_the_queue_stays_and_nobody_else_comes(family: int, folder: Path) -> None:
    """The queue is complete before the socket is closed: nobody can be reset by the close."""
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(listening(family, folder))
        door = Door(sock, ours=True)
        early = [stack.enter_context(socket.socket(family)) for _ in range(3)]
        for n, client in enumerate(early):
            client.connect(sock.getsockname())
            client.sendall(b"%d" % n)
        door.turn_away()
        late = stack.enter_context(socket.socket(family))
        late.setblocking(False)
        refused = late.connect_ex(sock.getsockname())
        if family != socket.AF_UNIX:  # nobody answers its SYN, which loopback does at once
            poll = select.poll()
            poll.register(late, select.POLLOUT)
            assert poll.poll(50) == []
        assert refused != 0
        taken = [stack.enter_context(accepted) for accepted in door.take_queue()]
        assert [accepted.recv(1) for accepted in taken] == [b"0", b"1", b"2"]
        for accepted, client in zip(taken, early, strict=True):
            accepted.sendall(b"!")
            assert client.recv(1) == b"!"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_handed_over_door_stays_open(family: int, folder: Path) -> None:
    """It is not ours alone: who connects after we are gone waits for the next server."""
    with listening(family, folder) as sock, socket.socket(family) as client:
        door = Door(sock.dup(), ours=False)
        door.turn_away()
        assert door.take_queue() == []
        door.listening.close()
        client.connect(sock.getsockname())
        accepted, _ = sock.accept()
        accepted.close()


def test_the_queue_has_a_bound(folder: Path) -> None:
    """Where others may still come, taking comes to an end."""
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(listening(socket.AF_UNIX, folder))
        for _ in range(5):
            stack.enter_context(socket.socket(socket.AF_UNIX)).connect(sock.getsockname())
        taken = Door(sock, ours=False).take_queue(most=3)
        assert len([stack.enter_context(accepted) for accepted in taken]) == 3


# -- connections -----------------------------------------------------------------------------------


class App:
    """Answers when all of a request is here, at /slow when it is let go."""

    def __init__(self) -> None:
        self.begun, self.go, self.told_again = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._told = 0

    def stop(self) -> None:
        """Take note."""
        self._told += 1
        if self._told == 3:
            self.told_again.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        while (await receive()).get("more_body"):
            pass
        if scope["raw_path"] == b"/slow":
            self.begun.set()
            await self.go.wait()
        headers = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok"})


class Served(NamedTuple):
    """A server in this event loop."""

    app: App
    address: tuple[str, int]
    task: "asyncio.Task[int]"
    stopping: asyncio.Event
    stops: list[None]

    async def connect(self) -> Streams:
        """Connect to it."""
        return await asyncio.open_connection(*self.address)

    async def stop(self) -> None:
        """Tell it to stop, and wait until it has begun to."""
        os.kill(os.getpid(), signal.SIGTERM)
        await self.stopping.wait()


@contextlib.asynccontextmanager
async def serving(seconds: float = 30.0) -> AsyncIterator[Served]:
    """Serve on a free port until the end of the block."""
    ready = asyncio.Event()
    sock = socket.create_server(("127.0.0.1", 0))
    address = sock.getsockname()
    app, stopping, stops = App(), asyncio.Event(), list[None]()

    def on_stop() -> None:
        stops.append(None)
        stopping.set()

    listener = Listener(app, sock, Limits(drain_seconds=seconds))
    task = asyncio.create_task(listeners.run_in_loop([listener], ready.set, on_stop))
    await asyncio.wait_for(ready.wait(), PATIENCE)
    try:
        yield Served(app, address, task, stopping, stops)
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def run(test: Callable[[Served], Awaitable[None]], seconds: float = 30.0) -> None:
    """Run a test in the event loop that the server has."""

    async def main() -> None:
        async with serving(seconds) as served:
            await asyncio.wait_for(test(served), PATIENCE)

    uvloop.run(main())


LAST = b"connection: close\r\n"


async def answer(reader: asyncio.StreamReader) -> bytes:
    """Read one answer; return its head."""
    head = await reader.readuntil(b"\r\n\r\n")
    assert await reader.readexactly(2) == b"ok"
    return head


def test_an_idle_connection_has_one_more_request() -> None:
    """What crosses the stop is answered, as the last; then the server ends, before its time."""

    async def test(served: Served) -> None:
        reader, writer = await served.connect()
        writer.write(GET)
        assert LAST not in await answer(reader)
        fresh_reader, fresh_writer = await served.connect()
        await served.stop()
        for who in (writer, fresh_writer):
            who.write(GET)
        for where in (reader, fresh_reader):
            assert LAST in await answer(where)
            assert await where.read() == b""
        assert await served.task == 0
        for who in (writer, fresh_writer):
            who.close()

    run(test)


def test_an_idle_connection_is_closed() -> None:
    """Whoever has nothing to ask does not keep the server."""

    async def test(served: Served) -> None:
        reader, writer = await served.connect()
        writer.write(GET)
        await answer(reader)
        await served.stop()
        assert await reader.read() == b""
        assert await served.task == 0
        writer.close()

    run(test)


def test_what_has_begun_to_arrive_is_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a head, or half a body, is a request in flight."""
    monkeypatch.setattr(graceful_shutdown, "LAST_CALL_SECONDS", 0.0)

    async def test(served: Served) -> None:
        post = b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody"
        halves = [(GET, 9), (post, len(post) - 2)]
        clients = [await served.connect() for _ in halves]
        for (request, part), (_, writer) in zip(halves, clients, strict=True):
            writer.write(request[:part])
        other = await served.connect()
        other[1].write(GET)
        await answer(other[0])  # so the halves before it were read
        await served.stop()
        assert await other[0].read() == b""  # the idle one is gone, the others are not
        for (request, part), (_, writer) in zip(halves, clients, strict=True):
            writer.write(request[part:])
        for reader, writer in clients:
            assert LAST in await answer(reader)
            writer.close()
        other[1].close()
        assert await served.task == 0

    run(test)


def test_pipelined_requests_are_all_answered() -> None:
    """The last of those that were accepted together says so, the others do not."""

    async def test(served: Served) -> None:
        reader, writer = await served.connect()
        writer.write(SLOW * 3)
        await served.app.begun.wait()
        await served.stop()
        served.app.go.set()
        heads = [await answer(reader) for _ in range(3)]
        assert [LAST in head for head in heads] == [False, False, True]
        assert await reader.read() == b""
        writer.close()

    run(test)


def test_what_outlasts_the_time_is_cut_off(caplog: pytest.LogCaptureFixture) -> None:
    """The server ends in its time, says how many it cut off, and returns it."""

    async def test(served: Served) -> None:
        clients = [await served.connect() for _ in range(3)]
        for _, writer in clients:
            writer.write(SLOW)
        await served.app.begun.wait()
        await served.stop()
        assert await served.task == 3
        for reader, writer in clients:
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()

    run(test, seconds=0.2)
    assert "cut off 3 connections that were still busy after 0.2 s" in caplog.text


def test_an_application_is_told() -> None:
    """One that has answers without an end ends them; also those that begin late."""

    async def test(served: Served) -> None:
        reader, writer = await served.connect()
        writer.write(SLOW)
        await served.app.begun.wait()
        await served.stop()
        await served.app.told_again.wait()
        served.app.go.set()
        await answer(reader)
        writer.close()

    run(test)


# -- signals ---------------------------------------------------------------------------------------

HANGING = f"""
import os, sys, threading, time
from pathlib import Path
from attestkit.attester import Attester
from attestkit.backends.simulator import Simulator
from attestkit.serve.endpoints import Places
from attestkit.serve.config.limits import Limits
Limits.__new__.__defaults__ = (*Limits.__new__.__defaults__[:-1], float(sys.argv[2]))
from attestkit.serve.systemd.service import Supervisor

class Hanging(Simulator):
    blocking = True
    def get_quote(self, report_data):
        print("asked", flush=True)
        threading.Event().wait()

path = Path(sys.argv[1])
with Attester(Hanging(seed={bytes(32)!r})) as tee:
    Supervisor.from_environ(os.environ, (), watchdog=False).serve(
        tee, Places(dstack=path), lambda ready: print(ready, flush=True)
    )
"""


@contextlib.contextmanager
def hanging_server(folder: Path, seconds: float) -> Iterator["subprocess.Popen[str]"]:
    """Run a server whose device never answers, with a request that waits for it."""
    path = folder / "dstack.sock"
    with (
        subprocess.Popen(
            [sys.executable, "-c", HANGING, str(path), str(seconds)],
            env=environment(),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
        socket.socket(socket.AF_UNIX) as client,
    ):
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == f"ready dstack={path}\n"
            client.connect(str(path))
            client.sendall(b"GET /GetQuote?report_data=00 HTTP/1.1\r\nHost: x\r\n\r\n")
            assert process.stdout.readline() == "asked\n"
            yield process
        finally:
            process.kill()


def test_a_device_that_hangs_does_not_keep_the_server(folder: Path) -> None:
    """When its time is over the process ends with 0, though a thread still waits for the device."""
    with hanging_server(folder, 0.3) as process:
        process.terminate()
        assert process.wait(PATIENCE) == 0
        assert process.stderr is not None
        assert "cut off 1 connections" in process.stderr.read()
    assert not (folder / "dstack.sock").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(folder: Path, number: signal.Signals) -> None:
    """It dies of the signal, as a program without a handler; its sockets are gone by then."""
    with hanging_server(folder, 1000.0) as process:
        process.send_signal(signal.SIGTERM)
        while (folder / "dstack.sock").exists():
            pass
        while process.poll() is None:  # at first they count as the same one
            process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.1)
        assert process.returncode == -number


def test_a_signal_that_comes_twice_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """`timeout` sends its signal to the process and to its group: that must not kill it."""
    monkeypatch.setattr(signals, "SAME_SECONDS", 1000.0)

    async def test(served: Served) -> None:
        reader, writer = await served.connect()
        writer.write(SLOW)
        await served.app.begun.wait()
        await served.stop()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.05)
        served.app.go.set()
        assert LAST in await answer(reader)
        assert len(served.stops) == 1
        writer.close()

    before = signal.getsignal(signal.SIGTERM)
    run(test)
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("ignored", [False, True])
def test_a_terminal_that_is_gone_stops_it(folder: Path, ignored: bool) -> None:
    """SIGHUP stops in good order, unless it was ignored from the start, as nohup does."""
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        with running_server(folder=folder) as server:
            server.process.send_signal(signal.SIGHUP)
            if ignored:
                assert call(server.dstack, "Version").status == 200
                assert server.stop() == 0
            else:
                assert server.process.wait(PATIENCE) == 0
                assert not os.path.lexists(server.dstack)
    finally:
        signal.signal(signal.SIGHUP, old)
