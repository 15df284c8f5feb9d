"""A server in a background thread shares the program's TEE and is removed completely."""

import asyncio
import contextlib
import gc
import multiprocessing
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from attestkit import EventLog, Quote
from attestkit.attester import Attester
from attestkit.backends.simulator import Simulator
from attestkit.errors import BackendBusyError, UsageError
from attestkit.serve.app_factory import ServerOptions
from attestkit.serve.background_server import BackgroundServer
from attestkit.serve.config.limits import Limits
from attestkit.serve.endpoints import LimitedSocket, ListenAddresses
from attestkit.serve.event_loop_thread import EventLoopThread
from tests.raising import raises
from tests.serve.client import Connection, call
from tests.serve.docker.engine import Engine, send_chunks
from tests.serve.guests import SEED

FREE = ("127.0.0.1", 0)
PATIENCE = 60.0


@pytest.fixture
def tee() -> Iterator[Attester]:
    """Return a simulated TD."""
    with Attester(Simulator(seed=SEED)) as tee:
        yield tee


@pytest.fixture(autouse=True)
def _leaves_no_thread() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def test_program_and_clients_share_td(tee: Attester, tmp_path: Path) -> None:
    """Events of the program are in the quotes of clients, and vice versa."""
    path = tmp_path / "dstack.sock"
    with BackgroundServer(tee, ListenAddresses(dstack=path)) as ready:
        assert ready.addresses == {"dstack": path}
        tee.emit_event("ours", b"1")
        assert call(str(path), "EmitEvent", {"event": "theirs", "payload": "32"}).status == 200
        answer = call(str(path), "GetQuote", {"report_data": "ab"}).json()
        quote = Quote.parse(bytes.fromhex(answer["quote"]))
        EventLog.parse(answer["event_log"].encode()).check(quote)
        assert quote.rtmrs == tee.registers()
        assert [event.name for event in tee.event_log().events[-2:]] == ["ours", "theirs"]
    assert not list(tmp_path.iterdir())
    tee.get_quote(b"still open")


def test_all_listeners_are_served(tee: Attester, tmp_path: Path) -> None:
    """All listeners are served, TCP ones at free ports."""
    places = ListenAddresses(tmp_path / "d", tmp_path / "t", FREE, FREE, pccs=FREE)
    with BackgroundServer(tee, places) as ready:
        assert set(ready.addresses) == {"dstack", "tappd", "http", "dev_http", "pccs"}
        assert call(str(ready.addresses["dev_http"]), "Info").status == 200
        assert call(str(ready.addresses["http"]), "prpc/Worker.Version").status == 200
        with contextlib.closing(Connection(str(ready.addresses["pccs"]))) as pccs:
            root = pccs.send_request("GET", "/sgx/certification/v4/rootcacrl")
        assert root.status == 200


def test_servers_share_thread_independently(tee: Attester, tmp_path: Path) -> None:
    """Starting, failing and stopping servers do not disturb others on the thread."""
    with (
        EventLoopThread() as thread,
        BackgroundServer(tee, ListenAddresses(tmp_path / "a"), thread=thread),
    ):
        with contextlib.closing(Connection(str(tmp_path / "a"))) as kept:
            assert kept.call("Info").status == 200
            with BackgroundServer(tee, ListenAddresses(tmp_path / "b"), thread=thread):
                assert call(str(tmp_path / "b"), "Info").status == 200
            with (
                pytest.raises(BackendBusyError),
                BackgroundServer(tee, ListenAddresses(tmp_path / "a"), thread=thread),
            ):
                pass
            assert kept.call("Info").status == 200
        assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_invalid_address_starts_nothing(tee: Attester, tmp_path: Path) -> None:
    """Without a valid address the error is raised at once and no thread remains."""
    with raises(UsageError, "missing"), BackgroundServer(tee, ListenAddresses()):
        pass
    with (
        raises(UsageError, "too_large"),
        BackgroundServer(tee, ListenAddresses(tmp_path / ("x" * 200))),
    ):
        pass


def test_development_listener_beyond_loopback_is_refused(tee: Attester) -> None:
    """Keys are never served to other machines, also not by the Python interface."""
    places = ListenAddresses(dev_http=("0.0.0.0", 0))
    with raises(UsageError, "wrong_value", part="loopback"), BackgroundServer(tee, places):
        pass


@pytest.mark.parametrize("name", ["dstack", "tappd", "dstack-a", "guest_api"])
def test_handed_over_tcp_socket_for_keys_is_refused(
    tee: Attester, tmp_path: Path, name: str
) -> None:
    """A handed over TCP socket serves neither keys nor the host's methods."""
    places = ListenAddresses(
        tmp_path / "d",
        tmp_path / "t",
        limited=[LimitedSocket(tmp_path / "a.sock", ["Info"])],
        guest_api=tmp_path / "g",
    )
    with socket.create_server(("127.0.0.1", 0)) as tcp:
        options = ServerOptions(handed_over={name: tcp})
        with raises(UsageError, "wrong_value"), BackgroundServer(tee, places, options):
            pass
    assert not list(tmp_path.iterdir())


def test_listener_failing_at_startup_is_raised(
    tee: Attester, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program receives the cause, and the socket is removed."""

    async def broken(*_: Any, **__: Any) -> int:
        raise OSError("broken")

    monkeypatch.setattr("attestkit.serve.http.server.run_in_loop", broken)
    with (
        pytest.raises(OSError, match="broken"),
        BackgroundServer(tee, ListenAddresses(tmp_path / "a")),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_exit_closes_idle_connections(
    tee: Attester, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither an idle connection nor a partial request delays the end of the block."""
    path = str(tmp_path / "dstack.sock")
    with (
        contextlib.closing(Connection(path)) as idle,
        socket.socket(socket.AF_UNIX) as half,
        BackgroundServer(tee, ListenAddresses(Path(path))),
    ):
        assert idle.call("Info").status == 200
        half.connect(path)
        half.sendall(b"POST /Info HTTP/1.1\r\nContent-Length: 9\r\n\r\n{")
    assert not caplog.records
    gc.collect()  # an unclosed connection would emit a ResourceWarning


def test_exit_cancels_pending_request_silently(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A pending request at the end of the block is not logged as an error."""
    begun, gone = threading.Event(), threading.Event()

    def wait(_: float) -> None:
        begun.set()
        gone.wait(PATIENCE)

    def read(client: socket.socket) -> None:
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""
        gone.set()

    path = str(tmp_path / "dstack.sock")
    simulator = Simulator(seed=SEED, faults="slow:30s", wait=wait)
    with socket.socket(socket.AF_UNIX) as client, Attester(simulator) as slow:
        with BackgroundServer(slow, ListenAddresses(Path(path))):
            client.connect(path)
            client.sendall(b"GET /GetQuote?report_data=ab HTTP/1.1\r\nHost: x\r\n\r\n")
            reader = threading.Thread(target=read, args=(client,))
            reader.start()
            assert begun.wait(PATIENCE)
        reader.join()
    assert not caplog.records


def test_exit_closes_followed_log(tee: Attester, tmp_path: Path) -> None:
    """An endless response ends with the block, and the engine's connection is closed."""
    gone = threading.Event()

    async def main(engine: Engine) -> None:
        server = await asyncio.start_unix_server(engine.serve, tmp_path / "docker.sock")
        engine.log = send_chunks(b"\1\0\0\0\0\0\0\4out\n", then="wait")
        await asyncio.to_thread(follow)
        await asyncio.wait_for(engine.gone.wait(), PATIENCE)
        gone.set()
        server.close()

    def follow() -> None:
        options = ServerOptions(limits=Limits(drain_seconds=0), docker=f"{tmp_path}/docker.sock")
        with (
            socket.socket() as client,
            BackgroundServer(tee, ListenAddresses(http=FREE), options) as ready,
        ):
            host, _, port = str(ready.addresses["http"]).removeprefix("http://").rpartition(":")
            client.connect((host, int(port)))
            client.sendall(b"GET /logs/app?follow&text&bare HTTP/1.1\r\nHost: localhost\r\n\r\n")
            got = b""
            while b"out\n" not in got:
                got += (piece := client.recv(65536))
                assert piece

    asyncio.run(main(Engine("")))
    assert gone.is_set()


def test_closed_thread_refuses_work(tee: Attester, tmp_path: Path) -> None:
    """A closed thread raises an error; closing it again does nothing."""
    thread = EventLoopThread()
    with BackgroundServer(tee, ListenAddresses(tmp_path / "a"), thread=thread):
        pass
    thread.close()
    thread.close()
    with (
        raises(UsageError, "closed"),
        BackgroundServer(tee, ListenAddresses(tmp_path / "a"), thread=thread),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_client_that_reads_nothing_does_not_delay_close(
    tee: Attester, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Closing the thread also stops a server whose block never ended."""
    path, limits = str(tmp_path / "dstack.sock"), Limits(drain_seconds=0, write_seconds=3600)
    thread = EventLoopThread()
    served = BackgroundServer(
        tee, ListenAddresses(Path(path)), ServerOptions(limits=limits), thread=thread
    )
    with socket.socket(socket.AF_UNIX) as client:
        served.__enter__()
        client.connect(path)
        client.settimeout(1)
        with contextlib.suppress(TimeoutError):  # all buffers are full
            while client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 100):
                pass
        closing = threading.Thread(target=thread.close, daemon=True)
        closing.start()
        closing.join(PATIENCE)
        assert not closing.is_alive()
    assert not caplog.records
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("most", [2, 100])
def test_task_that_ignores_cancellation_is_abandoned(
    most: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A task is cancelled three times, then the thread ends."""
    monkeypatch.setattr("attestkit.serve.event_loop_thread._CANCEL_SECONDS", 0.01)
    cancelled = 0

    async def begin() -> None:
        async def go_on() -> None:
            nonlocal cancelled
            while cancelled < most:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    cancelled += 1

        tasks.append(asyncio.create_task(go_on()))
        await asyncio.sleep(0)

    tasks: list[asyncio.Task[None]] = []
    with EventLoopThread() as thread:
        thread.run(begin)
        closing = threading.Thread(target=thread.close, daemon=True)
        closing.start()
        closing.join(PATIENCE)
        assert not closing.is_alive()
    assert cancelled == min(most, 3)
    assert tasks[0].done() == (most == 2)
    tasks.clear()
    gc.collect()
    warnings_logged = [
        "destroyed but it is pending" in each.getMessage() for each in caplog.records
    ]
    assert warnings_logged == [True] * (most == 100)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_fork_cannot_use_thread(tee: Attester, tmp_path: Path) -> None:
    """A forked process gets an error instead of a deadlock, and can close the thread."""
    with (
        EventLoopThread() as thread,
        BackgroundServer(tee, ListenAddresses(tmp_path / "a"), thread=thread),
    ):
        here, there = multiprocessing.Pipe()
        if (child := os.fork()) == 0:
            try:
                with contextlib.suppress(UsageError):
                    thread.run(lambda: asyncio.sleep(0))
                    os._exit(1)
                thread.close()
                there.send("told")
            finally:
                os._exit(0)
        assert here.poll(PATIENCE)
        assert here.recv() == "told"
        assert os.waitpid(child, 0)[1] == 0
        here.close()
        there.close()
        assert call(str(tmp_path / "a"), "Info").status == 200
