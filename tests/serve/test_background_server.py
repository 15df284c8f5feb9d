"""A server in a thread of this process shares its TEE, and leaves nothing behind."""

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
from attestkit.serve.app_factory import Options
from attestkit.serve.background_server import LoopThread, Served
from attestkit.serve.config.limits import Limits
from attestkit.serve.endpoints import Places
from attestkit.serve.http.server import Listener, run_in_loop
from tests.serve.client import Connection, call
from tests.serve.docker.engine import Engine, say
from tests.serve.guests import SEED, Blocking

FREE = ("127.0.0.1", 0)
PATIENCE = 60.0


@pytest.fixture
def tee() -> Iterator[Attester]:
    """A simulated TD."""
    with Attester(Simulator(seed=SEED)) as tee:
        yield tee


@pytest.fixture(autouse=True)
def _leaves_no_thread() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def test_program_and_clients_see_one_td(tee: Attester, tmp_path: Path) -> None:
    """What the program emits is in the quotes of clients, and the other way round."""
    path = tmp_path / "dstack.sock"
    with Served(tee, Places(dstack=path)) as ready:
        assert ready.places == {"dstack": path}
        tee.emit_event("ours", b"1")
        assert call(str(path), "EmitEvent", {"event": "theirs", "payload": "32"}).status == 200
        answer = call(str(path), "GetQuote", {"report_data": "ab"}).json()
        quote = Quote.parse(bytes.fromhex(answer["quote"]))
        EventLog.parse(answer["event_log"].encode()).check(quote)
        assert quote.rtmrs == tee.registers()
        assert [event.name for event in tee.event_log().events[-2:]] == ["ours", "theirs"]
    assert not list(tmp_path.iterdir())
    tee.get_quote(b"still open")


def test_every_listener_is_there(tee: Attester, tmp_path: Path) -> None:
    """All places are served, TCP ones at free ports."""
    places = Places(tmp_path / "d", tmp_path / "t", FREE, FREE, pccs=FREE)
    with Served(tee, places) as ready:
        assert set(ready.places) == {"dstack", "tappd", "http", "dev_http", "pccs"}
        assert call(str(ready.places["dev_http"]), "Info").status == 200
        assert call(str(ready.places["http"]), "prpc/Worker.Version").status == 200
        with contextlib.closing(Connection(str(ready.places["pccs"]))) as pccs:
            root = pccs.send_request("GET", "/sgx/certification/v4/rootcacrl")
        assert root.status == 200


def test_servers_come_and_go_on_one_thread(tee: Attester, tmp_path: Path) -> None:
    """Those that stay are not disturbed by those that go, nor by one that cannot start."""
    with LoopThread() as thread, Served(tee, Places(tmp_path / "a"), thread=thread):
        with contextlib.closing(Connection(str(tmp_path / "a"))) as kept:
            assert kept.call("Info").status == 200
            with Served(tee, Places(tmp_path / "b"), thread=thread):
                assert call(str(tmp_path / "b"), "Info").status == 200
            with (
                pytest.raises(BackendBusyError),
                Served(tee, Places(tmp_path / "a"), thread=thread),
            ):
                pass
            assert kept.call("Info").status == 200
        assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_cannot_be_starts_nothing(tee: Attester, tmp_path: Path) -> None:
    """No place, or one that cannot be: the error comes at once, and no thread stays."""
    with pytest.raises(UsageError, match="nothing to serve"), Served(tee, Places()):
        pass
    with pytest.raises(UsageError, match="107 bytes"), Served(tee, Places(tmp_path / ("x" * 200))):
        pass


def test_a_listener_that_breaks_while_it_starts_is_told(
    tee: Attester, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What kept it from starting is what the program gets, and the socket is gone."""

    async def broken(*_: Any, **__: Any) -> int:
        raise OSError("broken")

    monkeypatch.setattr("attestkit.serve.http.server.run_in_loop", broken)
    with pytest.raises(OSError, match="broken"), Served(tee, Places(tmp_path / "a")):
        pass
    assert not list(tmp_path.iterdir())


def test_who_is_connected_at_the_end_is_cut_off(
    tee: Attester, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither an idle connection nor half a request keeps the block from ending."""
    path = str(tmp_path / "dstack.sock")
    with (
        contextlib.closing(Connection(path)) as idle,
        socket.socket(socket.AF_UNIX) as half,
        Served(tee, Places(Path(path))),
    ):
        assert idle.call("Info").status == 200
        half.connect(path)
        half.sendall(b"POST /Info HTTP/1.1\r\nContent-Length: 9\r\n\r\n{")
    assert not caplog.records
    gc.collect()  # a connection that nobody closed would complain


def test_who_waits_for_the_host_at_the_end_is_cut_off_quietly(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A request that is being answered when the block ends is no failure, and is not logged."""
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
        with Served(slow, Places(Path(path))):
            client.connect(path)
            client.sendall(b"GET /GetQuote?report_data=ab HTTP/1.1\r\nHost: x\r\n\r\n")
            reader = threading.Thread(target=read, args=(client,))
            reader.start()
            assert begun.wait(PATIENCE)
        reader.join()
    assert not caplog.records


@pytest.mark.parametrize("error", [asyncio.CancelledError, RuntimeError])
def test_what_fails_while_a_client_waits_is_logged(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """Be it that the application was cancelled: nobody has cut the client off."""

    async def fail(*_: object) -> None:
        raise error

    async def main() -> None:
        ready, sock = asyncio.Event(), socket.create_server(FREE)
        task = asyncio.create_task(run_in_loop([Listener(fail, sock)], ready.set))
        await asyncio.wait_for(ready.wait(), PATIENCE)
        reader, writer = await asyncio.open_connection(*sock.getsockname())
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 500 " in await reader.readline()
        writer.close()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(main())
    # asyncio in debug mode logs, too, what took long.
    told = [(each.name, each.levelname) for each in caplog.records if each.name != "asyncio"]
    assert told == [("uvicorn.error", "ERROR")]


def test_a_log_that_is_followed_is_cut_off(tee: Attester, tmp_path: Path) -> None:
    """An answer that would go on for ever ends with the block, its engine's connection too."""
    gone = threading.Event()

    async def main(engine: Engine) -> None:
        server = await asyncio.start_unix_server(engine.serve, tmp_path / "docker.sock")
        engine.log = say(b"\1\0\0\0\0\0\0\4out\n", then="wait")
        await asyncio.to_thread(follow)
        await asyncio.wait_for(engine.gone.wait(), PATIENCE)
        gone.set()
        server.close()

    def follow() -> None:
        options = Options(limits=Limits(drain_seconds=0), docker=f"{tmp_path}/docker.sock")
        with socket.socket() as client, Served(tee, Places(http=FREE), options) as ready:
            host, _, port = str(ready.places["http"]).removeprefix("http://").rpartition(":")
            client.connect((host, int(port)))
            client.sendall(b"GET /logs/app?follow&text&bare HTTP/1.1\r\nHost: localhost\r\n\r\n")
            got = b""
            while b"out\n" not in got:
                got += (piece := client.recv(65536))
                assert piece

    asyncio.run(main(Engine("")))
    assert gone.is_set()


def test_requests_in_flight_can_be_given_time(tee: Attester, tmp_path: Path) -> None:
    """With seconds to drain, a request that is on its way is answered whole."""
    path, limits = str(tmp_path / "dstack.sock"), Limits(drain_seconds=30)
    body = b'{"report_data": "ab"}'
    with socket.socket(socket.AF_UNIX) as client:
        with Served(tee, Places(Path(path)), Options(limits=limits)):
            client.connect(path)
            client.sendall(
                b"POST /GetQuote HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
            )
        answer = b""
        while piece := client.recv(65536):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 200")
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert b"content-length: %d\r" % len(rest) in head.lower()


def test_a_device_that_blocks_has_its_own_thread(tmp_path: Path) -> None:
    """The event loop is not held up by it; the thread ends with the block."""
    Blocking.threads.clear()
    with Attester(Blocking(seed=SEED)) as tee, Served(tee, Places(tmp_path / "a")):
        assert call(str(tmp_path / "a"), "GetQuote").status == 200
    assert Blocking.threads
    assert threading.get_ident() not in Blocking.threads


def test_an_ended_thread_takes_no_more(tee: Attester, tmp_path: Path) -> None:
    """It says so; ending it twice is ending it once."""
    thread = LoopThread()
    with Served(tee, Places(tmp_path / "a"), thread=thread):
        pass
    thread.close()
    thread.close()
    with (
        pytest.raises(UsageError, match="has ended"),
        Served(tee, Places(tmp_path / "a"), thread=thread),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_work_that_is_left_ends_with_the_thread() -> None:
    """A task that somebody forgot is cancelled, and nothing complains."""
    ended = threading.Event()

    async def begin() -> None:
        async def forever() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        tasks.append(asyncio.create_task(forever()))
        await asyncio.sleep(0)

    tasks: list[asyncio.Task[None]] = []
    with LoopThread() as thread:
        thread.run(begin)
    assert ended.is_set()


def test_a_client_that_takes_nothing_does_not_keep_the_thread(
    tee: Attester, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor does a server whose block never ended: it is stopped as if it had, and says nothing."""
    path, limits = str(tmp_path / "dstack.sock"), Limits(drain_seconds=0, write_seconds=3600)
    thread = LoopThread()
    served = Served(tee, Places(Path(path)), Options(limits=limits), thread=thread)
    with socket.socket(socket.AF_UNIX) as client:
        served.__enter__()
        client.connect(path)
        client.settimeout(1)
        with contextlib.suppress(TimeoutError):  # all buffers are full: the server waits for us
            while client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 100):
                pass
        closing = threading.Thread(target=thread.close, daemon=True)
        closing.start()
        closing.join(PATIENCE)
        assert not closing.is_alive()
    assert not caplog.records
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("most", [2, 100])
def test_a_task_that_goes_on_when_cancelled_is_left_behind(
    most: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is cancelled three times, and the thread ends whether it then does or not."""
    monkeypatch.setattr("attestkit.serve.background_server._CANCEL_SECONDS", 0.01)
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
    with LoopThread() as thread:
        thread.run(begin)
        closing = threading.Thread(target=thread.close, daemon=True)
        closing.start()
        closing.join(PATIENCE)
        assert not closing.is_alive()
    assert cancelled == min(most, 3)
    assert tasks[0].done() == (most == 2)
    tasks.clear()
    gc.collect()
    told = ["destroyed but it is pending" in each.getMessage() for each in caplog.records]
    assert told == [True] * (most == 100)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_is_told_that_the_thread_is_not_its_own(tee: Attester, tmp_path: Path) -> None:
    """It gets an error in place of waiting for ever, and can still be closed there."""
    with LoopThread() as thread, Served(tee, Places(tmp_path / "a"), thread=thread):
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
