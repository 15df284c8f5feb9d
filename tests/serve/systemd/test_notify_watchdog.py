"""The service manager learns that we are ready, that we live, that we stop; and nothing false."""

import asyncio
import contextlib
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from attestkit.errors import UsageError
from attestkit.serve.config.command_line import Options
from attestkit.serve.config.verifier_settings import decide_verifier
from attestkit.serve.systemd.notify_watchdog import ServiceManager
from tests.serve.server import environment, refusal, running_server
from tests.serve.systemd.notify import Manager


@pytest.fixture
def manager() -> Iterator[Manager]:
    """A service manager at a path."""
    with (
        tempfile.TemporaryDirectory(prefix="ak") as name,
        contextlib.closing(Manager(Path(name) / "notify")) as manager,
    ):
        yield manager


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path, for a socket's path has little room."""
    with tempfile.TemporaryDirectory(prefix="ak") as name:
        yield Path(name)


# -- a whole server --------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--watchdog", "-w"])
def test_it_is_told_all_of_a_life(manager: Manager, option: str) -> None:
    """READY=1 once, WATCHDOG=1 at once and again, STOPPING=1; the status is the ready line."""
    environ = environment(NOTIFY_SOCKET=manager.address, WATCHDOG_USEC="2000000")
    with running_server(option, environ=environ) as server:
        assert manager.next() == "READY=1"
        assert manager.next() == f"STATUS={server.line.strip()}"
        assert manager.next() == "WATCHDOG=1"
        assert manager.next() == "WATCHDOG=1"
        assert server.stop() == 0
        assert manager.next_but_status() in {"STOPPING=1", "WATCHDOG=1"}
        assert "unwell" not in server.log()


def test_a_server_that_is_stuck_shows_no_life(manager: Manager) -> None:
    """Stopped it says nothing; when it goes on so do the signs of life."""
    environ = environment(NOTIFY_SOCKET=manager.address, WATCHDOG_USEC="2000000")
    with running_server("-w", environ=environ) as server:
        while manager.next() != "WATCHDOG=1":
            pass
        server.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, server.process.pid, os.WSTOPPED)
        manager.forget()
        with pytest.raises(TimeoutError):
            manager.next(1.5)
        server.process.send_signal(signal.SIGCONT)
        assert manager.next_but_status() == "WATCHDOG=1"


def test_without_the_option_there_is_no_watchdog(manager: Manager) -> None:
    """It is ready all the same, and a line says why the watchdog will bite."""
    environ = environment(NOTIFY_SOCKET=manager.address, WATCHDOG_USEC="2000000")
    with running_server(environ=environ) as server:
        assert manager.next() == "READY=1"
        assert server.stop() == 0
        assert manager.next_but_status() == "STOPPING=1"
        assert "only --watchdog makes us answer" in server.log()


@pytest.mark.parametrize("interval", ["", "0", "-5", "1s", "2e6", "9" * 30])
def test_a_watchdog_that_makes_no_sense_is_refused(folder: Path, interval: str) -> None:
    """A wrong number ends the start, where an empty one is none."""
    if interval:
        line = refusal("--backend", "simulator", folder=folder, code=1, WATCHDOG_USEC=interval)
        assert "$WATCHDOG_USEC" in line
    else:
        assert ServiceManager.from_environ({"WATCHDOG_USEC": interval}).watchdog_seconds is None


# -- the environment -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pid", "seconds"), [(None, 30.0), ("ours", 30.0), ("1", None), ("", 30.0)]
)
def test_the_watchdog_must_mean_us(pid: str | None, seconds: float | None) -> None:
    """`$WATCHDOG_PID` is ours or absent; the variables are for nobody else."""
    environ = {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "30000000", "OTHER": "x"}
    if pid is not None:
        environ["WATCHDOG_PID"] = str(os.getpid()) if pid == "ours" else pid
    assert ServiceManager.from_environ(environ).watchdog_seconds == seconds
    assert environ == {"OTHER": "x"}


@pytest.mark.parametrize(
    ("expected", "interval"),
    [("60000000", 30.0), ("3000000", 1.5), ("1000000", 0.5), ("100000", 0.05), ("1", 0.05)],
)
def test_half_of_what_is_expected(expected: str, interval: float) -> None:
    """Signs of life come twice as often as they must, but not all the time."""
    environ = {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": expected}
    assert ServiceManager.from_environ(environ).interval == interval


def test_a_process_id_that_is_none_is_refused() -> None:
    """It is not taken for ours."""
    with pytest.raises(UsageError, match=r"\$WATCHDOG_PID"):
        ServiceManager.from_environ({"WATCHDOG_USEC": "1", "WATCHDOG_PID": "me"})


def test_nobody_is_told_without_an_address(capfd: pytest.CaptureFixture[str]) -> None:
    """A program that nobody supervises says nothing."""
    nobody = ServiceManager.from_environ({})
    nobody.ready("x")
    nobody.stopping()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("address", ["/nowhere/at/all", "vsock:2:1234", "@" + "x" * 200])
def test_who_cannot_be_told_is_logged(address: str, caplog: pytest.LogCaptureFixture) -> None:
    """A server goes on without its manager; the log says that it could not be told."""
    ServiceManager(address).stopping()
    assert f"$NOTIFY_SOCKET {address}" in caplog.text


def test_a_verifier_alone_may_be_watched() -> None:
    """The watchdog is no option of an agent."""
    options = Options(backend="none", verifier="127.0.0.1:0", watchdog=True)
    settings = decide_verifier(options, {})
    assert settings is not None
    assert settings.alone


# -- what counts as a sign of life -----------------------------------------------------------------

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
FULL = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"
BROKEN = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n"


class Answering:
    """A listener that gives everybody the same answer; None keeps them waiting."""

    def __init__(self, answer: bytes | None) -> None:
        self.answer = answer
        self.asked: list[bytes] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request; on a busy machine the client may have given up before it asked."""
        with contextlib.closing(writer), contextlib.suppress(asyncio.IncompleteReadError):
            self.asked.append(await reader.readuntil(b"\r\n\r\n"))
            if self.answer is None:
                await reader.read()
            else:
                writer.write(self.answer)


@contextlib.asynccontextmanager
async def listening(folder: Path, **answering: Answering) -> AsyncIterator[dict[str, Path | str]]:
    """Run listeners, dstack and tappd at paths and others over TCP; give their places."""
    places: dict[str, Path | str] = {}
    async with contextlib.AsyncExitStack() as stack:
        for name, answers in answering.items():
            if name in {"dstack", "tappd"}:
                path = folder / name
                server = await asyncio.start_unix_server(answers, path)
                places[name] = path
            else:
                server = await asyncio.start_server(answers, "127.0.0.1", 0)
                places[name] = f"http://0.0.0.0:{server.sockets[0].getsockname()[1]}"
            stack.callback(server.close)
        yield places


def watch(
    folder: Path,
    manager: Manager,
    test: Callable[[], Awaitable[None]],
    interval: float = 0.05,
    **answering: Answering,
) -> None:
    """Watch listeners while a test runs."""

    async def main() -> None:
        async with listening(folder, **answering) as places:
            watching = asyncio.create_task(ServiceManager(manager.address).watch(places, interval))
            await test()
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching

    asyncio.run(main())


async def hear(manager: Manager) -> str:
    """Return the next message, while the event loop goes on."""
    return await asyncio.to_thread(manager.next)


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("http", b"GET /prpc/Worker.Version HTTP/1.1\r\n"),
        ("dstack", b"GET /Version HTTP/1.1\r\n"),
        ("tappd", b"GET /prpc/Tappd.Version HTTP/1.1\r\n"),
        ("verifier", b"GET /health HTTP/1.1\r\n"),
    ],
)
def test_the_first_listener_that_is_on_is_asked(
    folder: Path, manager: Manager, name: str, target: bytes
) -> None:
    """The external one where there is one, and only that."""
    others = {"pccs": Answering(None)} if name != "verifier" else {}
    asked = Answering(OK)

    async def test() -> None:
        for _ in range(2):
            assert await hear(manager) == "WATCHDOG=1"

    watch(folder, manager, test, 0.05, **{name: asked}, **others)
    assert asked.asked[0].startswith(target)
    assert all(other.asked == [] for other in others.values())


def test_the_first_sign_of_life_comes_at_once(folder: Path, manager: Manager) -> None:
    """Nobody waits half of an hour to hear it."""

    async def test() -> None:
        assert await hear(manager) == "WATCHDOG=1"

    watch(folder, manager, test, 1800.0, http=Answering(OK))


@pytest.mark.parametrize("answer", [BROKEN, b"HTTP/1.1 404 Not Found\r\n\r\n", b"what?", None])
def test_without_a_good_answer_nothing_is_said(
    folder: Path, manager: Manager, answer: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    """The log and the status say why; also when it is only slow, and when the next is well."""
    well = Answering(OK)
    sick = Answering(answer)

    async def test() -> None:
        for _ in range(3):
            assert (await hear(manager)).startswith("STATUS=unwell: ")
        sick.answer = OK
        while (message := await hear(manager)) != "WATCHDOG=1":
            assert message.startswith("STATUS=unwell: ")
        assert await hear(manager) == "STATUS="  # as it was before

    watch(folder, manager, test, http=sick, dstack=well)
    assert well.asked == []
    assert "the watchdog is not told that we live" in caplog.text


@pytest.mark.parametrize("answer", [FULL, b""])
def test_strangers_who_fill_a_listener_end_no_agent(
    folder: Path, manager: Manager, answer: bytes
) -> None:
    """Where the external listener is full, dstack.sock is asked instead."""
    inner = Answering(OK)

    async def test() -> None:
        assert await hear(manager) == "WATCHDOG=1"

    watch(folder, manager, test, http=Answering(answer), dstack=inner)
    assert len(inner.asked) >= 1


def test_nobody_waits_for_a_service_manager(
    folder: Path, manager: Manager, caplog: pytest.LogCaptureFixture
) -> None:
    """One that reads nothing costs its own signs of life and no client's time; later it hears."""
    manager.fill()

    async def test() -> None:
        loop = asyncio.get_running_loop()
        begin = loop.time()
        for _ in range(20):  # turns of the loop that belong to others
            await asyncio.sleep(0.02)
        told = caplog.text.count("$NOTIFY_SOCKET")
        assert told >= 2
        assert loop.time() - begin < told  # where each waited for a second
        manager.forget()
        # On a busy machine answers may have taken longer than the 10 ms, which is told first.
        late = "STATUS=unwell: no answer in 0.01 s"
        heard = [await hear(manager)]
        while heard[-1] == late and len(heard) < 100:
            heard.append(await hear(manager))
        assert heard[-1] == "WATCHDOG=1"

    watch(folder, manager, test, 0.01, http=Answering(OK))


def test_a_full_listener_alone_is_no_sign_of_life(folder: Path, manager: Manager) -> None:
    """Where there is nowhere else to ask, or nobody answers there either, nothing is said."""

    async def test() -> None:
        assert "STATUS=unwell" in await hear(manager)

    watch(folder, manager, test, http=Answering(FULL))
    watch(folder, manager, test, http=Answering(FULL), dstack=Answering(BROKEN))


def test_nobody_there_is_no_sign_of_life(folder: Path, manager: Manager) -> None:
    """A listener that is gone is told, and the watch goes on."""

    async def main() -> None:
        places: dict[str, Path | str] = {"dstack": folder / "nobody"}
        watching = asyncio.create_task(ServiceManager(manager.address).watch(places, 0.01))
        for _ in range(2):
            assert "STATUS=unwell" in await hear(manager)
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching

    asyncio.run(main())
