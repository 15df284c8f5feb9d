"""Graceful shutdown: drain accepted connections, refuse new ones, stop in time."""

import asyncio
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import uvloop

from attestkit.serve.config.limits import Limits
from attestkit.serve.http import server, signals
from attestkit.serve.http.asgi import Receive, Scope, Send
from attestkit.serve.http.sockets import ListeningSocket
from tests.serve.client import call
from tests.serve.http.listening import Connect, serving
from tests.serve.http.load_client import run_clients
from tests.serve.server import PATIENCE, ROOT, environment, running_server
from tests.thorough import slow, unless_limited

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
SLOW = b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n"


# -- under load ------------------------------------------------------------------------------------


def stop_under_load(repetitions: int) -> Counter[str]:
    """Stop servers under the load of twelve clients each; return the clients' counts."""
    counts: Counter[str] = Counter()
    losses = []
    for _ in range(repetitions):
        with running_server() as server:
            with run_clients([server.dstack, server.tappd, server.url]) as (clients, stopping):
                while min(client.counts["answered"] for client in clients) < 20:
                    assert all(client.is_alive() for client in clients)
                    time.sleep(0.005)
                server.process.send_signal(signal.SIGTERM)
                stopping.set()
                assert server.process.wait(PATIENCE) == 0
            assert "cut off" not in server.log()
        for client in clients:
            counts += client.counts
            losses += client.losses
            assert client.counts["turned away"] == 1  # after the shutdown only
    assert losses == []
    return counts


@pytest.mark.parametrize("repetitions", [1, *slow((unless_limited(10, 4),))])
def test_shutdown_under_load_loses_no_request(repetitions: int) -> None:
    """Every request on an accepted connection is answered, on unix sockets and TCP."""
    counts = stop_under_load(repetitions)
    assert counts["answered"] >= repetitions * 12 * 20
    assert counts["lost"] == 0


# -- listening sockets -----------------------------------------------------------------------------


def create_listening_socket(family: int, folder: Path) -> socket.socket:
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
def test_refuse_new_keeps_queue(family: int, folder: Path) -> None:
    """The backlog is complete before the socket is closed, so no connection is reset."""
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(create_listening_socket(family, folder))
        draining = ListeningSocket(sock, ours=True)
        early = [stack.enter_context(socket.socket(family)) for _ in range(3)]
        for n, client in enumerate(early):
            client.connect(sock.getsockname())
            client.sendall(b"%d" % n)
        draining.refuse_new()
        late = stack.enter_context(socket.socket(family))
        late.setblocking(False)
        refused = late.connect_ex(sock.getsockname())
        if family != socket.AF_UNIX:  # the SYN is not answered, which is immediate on loopback
            poll = select.poll()
            poll.register(late, select.POLLOUT)
            assert poll.poll(50) == []
        assert refused != 0
        taken = [stack.enter_context(accepted) for accepted in draining.accept_queued()]
        assert [accepted.recv(1) for accepted in taken] == [b"0", b"1", b"2"]
        for accepted, client in zip(taken, early, strict=True):
            accepted.sendall(b"!")
            assert client.recv(1) == b"!"


def test_accept_queued_is_bounded(folder: Path) -> None:
    """Draining the backlog is bounded, because new connections may still arrive."""
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(create_listening_socket(socket.AF_UNIX, folder))
        for _ in range(5):
            stack.enter_context(socket.socket(socket.AF_UNIX)).connect(sock.getsockname())
        taken = ListeningSocket(sock, ours=False).accept_queued(most=3)
        assert len([stack.enter_context(accepted) for accepted in taken]) == 3


# -- connections -----------------------------------------------------------------------------------


class BlockingApp:
    """An application that answers complete requests; /slow waits for `go`."""

    def __init__(self) -> None:
        self.begun, self.go = asyncio.Event(), asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request."""
        while (await receive()).get("more_body"):
            pass
        if scope["raw_path"] == b"/slow":
            self.begun.set()
            await self.go.wait()
        headers = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok"})


class RunningServer(NamedTuple):
    """A server in this event loop."""

    app: BlockingApp
    connect: Connect
    task: "asyncio.Task[int]"
    stopping: asyncio.Event
    stops: list[None]

    async def stop(self) -> None:
        """Send SIGTERM, and wait until shutdown has begun."""
        os.kill(os.getpid(), signal.SIGTERM)
        await self.stopping.wait()


@contextlib.asynccontextmanager
async def run_server(seconds: float = 30.0) -> AsyncIterator[RunningServer]:
    """Serve on a free port until the end of the block."""
    app, stopping, stops = BlockingApp(), asyncio.Event(), list[None]()

    def on_stop() -> None:
        stops.append(None)
        stopping.set()

    limits = Limits(drain_seconds=seconds)
    async with serving(app, limits=limits, on_stop=on_stop) as ([connect], task):
        yield RunningServer(app, connect, task, stopping, stops)


def run(test: Callable[[RunningServer], Awaitable[None]], seconds: float = 30.0) -> None:
    """Run a test in the server's event loop."""

    async def main() -> None:
        async with run_server(seconds) as served:
            await asyncio.wait_for(test(served), PATIENCE)

    uvloop.run(main())


LAST = b"connection: close\r\n"


async def read_response(reader: asyncio.StreamReader) -> bytes:
    """Read a response; return its head."""
    head = await reader.readuntil(b"\r\n\r\n")
    assert await reader.readexactly(2) == b"ok"
    return head


def test_idle_connection_may_send_last_request() -> None:
    """A request during the shutdown is answered as the last one."""

    async def test(served: RunningServer) -> None:
        reader, writer = await served.connect()
        writer.write(GET)
        assert LAST not in await read_response(reader)
        fresh_reader, fresh_writer = await served.connect()
        await served.stop()
        for who in (writer, fresh_writer):
            who.write(GET)
        for where in (reader, fresh_reader):
            assert LAST in await read_response(where)
            assert await where.read() == b""
        assert await served.task == 0
        for who in (writer, fresh_writer):
            who.close()

    run(test)


def test_partial_request_is_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    """A partial head or body is an active request."""
    monkeypatch.setattr(server, "CLOSE_NOTICE_SECONDS", 0.0)

    async def test(served: RunningServer) -> None:
        post = b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody"
        halves = [(GET, 9), (post, len(post) - 2)]
        clients = [await served.connect() for _ in halves]
        for (request, part), (_, writer) in zip(halves, clients, strict=True):
            writer.write(request[:part])
        other = await served.connect()
        other[1].write(GET)
        await read_response(other[0])  # the partial requests have been read when this returns
        await served.stop()
        assert await other[0].read() == b""  # only the idle connection is closed
        for (request, part), (_, writer) in zip(halves, clients, strict=True):
            writer.write(request[part:])
        for reader, writer in clients:
            assert LAST in await read_response(reader)
            writer.close()
        other[1].close()
        assert await served.task == 0

    run(test)


def test_pipelined_requests_are_finished() -> None:
    """All pipelined requests are answered; only the last response has Connection: close."""

    async def test(served: RunningServer) -> None:
        reader, writer = await served.connect()
        writer.write(SLOW * 3)
        await served.app.begun.wait()
        await served.stop()
        served.app.go.set()
        heads = [await read_response(reader) for _ in range(3)]
        assert [LAST in head for head in heads] == [False, False, True]
        assert await reader.read() == b""
        writer.close()

    run(test)


def test_shutdown_timeout_closes_busy_connections(caplog: pytest.LogCaptureFixture) -> None:
    """After the timeout busy connections are closed, counted and logged."""

    async def test(served: RunningServer) -> None:
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
    assert "closed 3 connections that were still busy after 0.2 s" in caplog.text


# -- signals ---------------------------------------------------------------------------------------

HANGING = f"""
import os, sys, threading, time
from pathlib import Path
from attestkit.attester import Attester
from attestkit.backends.simulator import Simulator
from attestkit.serve.endpoints import ListenAddresses
from attestkit.serve.config.limits import Limits
from attestkit.serve.app_factory import ServerOptions
from attestkit.serve.systemd.notify_watchdog import ServiceEnvironment

class Hanging(Simulator):
    blocking = True
    def get_quote(self, report_data):
        print("asked", flush=True)
        threading.Event().wait()

path, options = Path(sys.argv[1]), ServerOptions(limits=Limits(drain_seconds=float(sys.argv[2])))
with Attester(Hanging(seed={bytes(32)!r})) as tee:
    ServiceEnvironment.from_environ(os.environ, (), watchdog=False).serve(
        tee, ListenAddresses(dstack=path), options, lambda ready: print(ready, flush=True)
    )
"""


@contextlib.contextmanager
def run_hanging_server(folder: Path, seconds: float) -> Iterator["subprocess.Popen[str]"]:
    """Run a server whose device never responds, with a pending request."""
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


def test_hanging_device_does_not_delay_shutdown(folder: Path) -> None:
    """The process exits with 0 after the timeout, although a thread still waits."""
    with run_hanging_server(folder, 0.3) as process:
        process.terminate()
        assert process.wait(PATIENCE) == 0
        assert process.stderr is not None
        assert "closed 1 connections" in process.stderr.read()
    assert not (folder / "dstack.sock").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_terminates_immediately(folder: Path, number: signal.Signals) -> None:
    """The process is terminated by the signal, after its sockets are removed."""
    with run_hanging_server(folder, 1000.0) as process:
        process.send_signal(signal.SIGTERM)
        while (folder / "dstack.sock").exists():
            time.sleep(0.005)
        while process.poll() is None:  # signals shortly after the first one are ignored
            process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.1)
        assert process.returncode == -number


def test_duplicate_signal_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """`timeout` signals the process and its group, which must count once."""
    monkeypatch.setattr(signals, "SAME_SECONDS", 1000.0)

    async def test(served: RunningServer) -> None:
        reader, writer = await served.connect()
        writer.write(SLOW)
        await served.app.begun.wait()
        await served.stop()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.05)
        served.app.go.set()
        assert LAST in await read_response(reader)
        assert len(served.stops) == 1
        writer.close()

    before = signal.getsignal(signal.SIGTERM)
    run(test)
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.slow
@pytest.mark.parametrize("ignored", [False, True])
def test_sighup_stops_gracefully(folder: Path, ignored: bool) -> None:
    """SIGHUP stops the server, unless it was ignored at startup, as by nohup."""
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
