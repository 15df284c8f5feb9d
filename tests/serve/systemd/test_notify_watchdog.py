"""Notifications to the service manager: readiness, watchdog, status and shutdown."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from attestkit.errors import UsageError
from attestkit.serve.systemd.notify_watchdog import ServiceManager
from tests.raising import raises
from tests.serve.server import environment, refusal, running_server
from tests.serve.systemd.notify import FakeServiceManager

pytestmark = pytest.mark.slow  # its tests start programs

# -- a whole server --------------------------------------------------------------------------------


def test_notify_lifecycle() -> None:
    """READY=1 once, then the ready line as status, WATCHDOG=1 repeatedly, STOPPING=1."""
    manager = FakeServiceManager(f"@attestkit-test-{os.getpid()}")
    environ = environment(NOTIFY_SOCKET=manager.address, WATCHDOG_USEC="2000000")
    with contextlib.closing(manager), running_server("-w", environ=environ) as server:
        assert manager.next() == "READY=1"
        assert manager.next() == f"STATUS={server.line.strip()}"
        assert manager.next() == "WATCHDOG=1"
        assert manager.next() == "WATCHDOG=1"
        assert server.stop() == 0
        assert manager.next_but_status() in {"STOPPING=1", "WATCHDOG=1"}
        assert "watchdog probe failed" not in server.log()


def test_watchdog_stopped_process_sends_nothing(manager: FakeServiceManager) -> None:
    """A stopped process sends no WATCHDOG=1; after SIGCONT it does again."""
    environ = environment(NOTIFY_SOCKET=manager.address, WATCHDOG_USEC="2000000")
    with running_server("--watchdog", environ=environ) as server:
        while manager.next() != "WATCHDOG=1":
            pass
        server.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, server.process.pid, os.WSTOPPED)
        manager.discard_messages()
        with pytest.raises(TimeoutError):
            manager.next(1.5)
        server.process.send_signal(signal.SIGCONT)
        assert manager.next_but_status() == "WATCHDOG=1"


def test_watchdog_of_limited_sockets_only(manager: FakeServiceManager, folder: Path) -> None:
    """A server with limited sockets only, here without Version, is probed there."""
    environ = environment(NOTIFY_SOCKET=manager.address, WATCHDOG_USEC="2000000")
    off = ("--socket", "none", "--tappd-socket", "none", "--http", "none")
    limited = ("--socket", f"{folder}/signer.sock=Sign")
    with running_server("-w", *off, *limited, folder=folder, environ=environ) as server:
        assert manager.next_but_status() == "READY=1"
        assert manager.next_but_status() == "WATCHDOG=1"
        assert "watchdog probe failed" not in server.log()


def test_watchdog_without_option_is_ignored(manager: FakeServiceManager) -> None:
    """Without --watchdog the interval is ignored, and a warning is logged."""
    environ = environment(NOTIFY_SOCKET=manager.address, WATCHDOG_USEC="2000000")
    with running_server(environ=environ) as server:
        assert manager.next() == "READY=1"
        assert server.stop() == 0
        assert manager.next_but_status() == "STOPPING=1"
        assert "is ignored without --watchdog" in server.log()


@pytest.mark.parametrize("interval", ["", "0", "-5", "1s", "2e6", "9" * 30])
def test_watchdog_invalid_interval_is_refused(folder: Path, interval: str) -> None:
    """An invalid $WATCHDOG_USEC fails startup; an empty one disables the watchdog."""
    if interval:
        line = refusal("--backend", "simulator", folder=folder, code=1, WATCHDOG_USEC=interval)
        assert "$WATCHDOG_USEC" in line
    else:
        assert ServiceManager.from_environ({"WATCHDOG_USEC": interval}).watchdog_seconds is None


# -- the environment -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pid", "seconds"), [(None, 30.0), ("ours", 30.0), ("1", None), ("", 30.0)]
)
def test_watchdog_of_other_process_is_ignored(pid: str | None, seconds: float | None) -> None:
    """The watchdog applies only if $WATCHDOG_PID is absent or this process."""
    environ = {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "30000000", "OTHER": "x"}
    if pid is not None:
        environ["WATCHDOG_PID"] = str(os.getpid()) if pid == "ours" else pid
    assert ServiceManager.from_environ(environ).watchdog_seconds == seconds
    assert environ == {"OTHER": "x"}


@pytest.mark.parametrize(
    ("expected", "interval"),
    [("60000000", 30.0), ("3000000", 1.5), ("1000000", 0.5), ("100000", 0.05), ("1", 0.05)],
)
def test_watchdog_interval_is_half_of_timeout(expected: str, interval: float) -> None:
    """The interval is half of the timeout, within bounds."""
    environ = {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": expected}
    assert ServiceManager.from_environ(environ).interval == interval


@pytest.mark.parametrize("pid", ["me", "0"])
def test_watchdog_invalid_pid_is_refused(pid: str) -> None:
    """A malformed $WATCHDOG_PID is refused."""
    with raises(UsageError, "wrong_value", part="$WATCHDOG_PID"):
        ServiceManager.from_environ({"WATCHDOG_USEC": "1", "WATCHDOG_PID": pid})


def test_notify_without_address_does_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """Without $NOTIFY_SOCKET nothing is sent or logged."""
    unsupervised = ServiceManager.from_environ({})
    unsupervised.ready("x")
    unsupervised.stopping()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("address", ["/nowhere/at/all", "vsock:2:1234", "@" + "x" * 200])
def test_notify_unreachable_address_is_logged(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An unreachable service manager is logged and does not stop the server."""
    ServiceManager(address).stopping()
    assert f"$NOTIFY_SOCKET {address}" in caplog.text


# -- probes ---------------------------------------------------------------------------------------

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
FULL = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"
BROKEN = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n"


class FixedResponder:
    """A listener that sends a fixed response; None means no response."""

    def __init__(self, response: bytes | None) -> None:
        self.response = response
        self.requests: list[bytes] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request; a client on a busy machine may close the connection before it."""
        with contextlib.closing(writer), contextlib.suppress(asyncio.IncompleteReadError):
            self.requests.append(await reader.readuntil(b"\r\n\r\n"))
            if self.response is None:
                await reader.read()
            else:
                writer.write(self.response)


@contextlib.asynccontextmanager
async def run_listeners(
    folder: Path, **responders: FixedResponder | None
) -> AsyncIterator[dict[str, Path | str]]:
    """Run dstack and tappd at paths and others over TCP; yield their addresses."""
    addresses: dict[str, Path | str] = {}
    async with contextlib.AsyncExitStack() as stack:
        for name, answers in responders.items():
            if answers is None:
                addresses[name] = folder / "missing"
                continue
            if name in {"dstack", "tappd"}:
                path = folder / name
                server = await asyncio.start_unix_server(answers, path)
                addresses[name] = path
            else:
                server = await asyncio.start_server(answers, "127.0.0.1", 0)
                addresses[name] = f"http://0.0.0.0:{server.sockets[0].getsockname()[1]}"
            stack.callback(server.close)
        yield addresses


def run_watchdog(
    folder: Path,
    manager: FakeServiceManager,
    test: Callable[[], Awaitable[None]],
    interval: float = 0.05,
    **responders: FixedResponder | None,
) -> None:
    """Run the watchdog on listeners during a test."""

    async def main() -> None:
        async with run_listeners(folder, **responders) as addresses:
            watching = asyncio.create_task(
                ServiceManager(manager.address).watch(addresses, interval)
            )
            await test()
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching

    asyncio.run(main())


async def receive(manager: FakeServiceManager) -> str:
    """Return the next message without blocking the event loop."""
    return await asyncio.to_thread(manager.next)


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("http", b"GET /prpc/Worker.Version HTTP/1.1\r\n"),
        ("dstack-quote-only", b"GET /Version HTTP/1.1\r\n"),
        ("dstack", b"GET /Version HTTP/1.1\r\n"),
        ("tappd", b"GET /prpc/Tappd.Version HTTP/1.1\r\n"),
        ("verifier", b"GET /health HTTP/1.1\r\n"),
    ],
)
def test_watch_probes_only_first_listener(
    folder: Path, manager: FakeServiceManager, name: str, target: bytes
) -> None:
    """Only the first active listener is probed, the external one before others."""
    others = {"pccs": FixedResponder(None)}
    requests = FixedResponder(OK)

    async def test() -> None:
        assert await receive(manager) == "WATCHDOG=1"  # at once, whatever the interval

    run_watchdog(folder, manager, test, 1800.0, **{name: requests}, **others)
    assert requests.requests[0].startswith(target)
    assert all(other.requests == [] for other in others.values())


@pytest.mark.parametrize("response", [BROKEN, b"HTTP/1.1 404 Not Found\r\n\r\n", b"what?", None])
def test_watch_failing_probe_is_reported(
    folder: Path,
    manager: FakeServiceManager,
    response: bytes | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A failed probe is logged and sent as status; WATCHDOG=1 follows recovery."""
    healthy = FixedResponder(OK)
    failing = FixedResponder(response)

    async def test() -> None:
        for _ in range(3):
            assert (await receive(manager)).startswith("STATUS=watchdog probe failed: ")
        failing.response = OK
        while (message := await receive(manager)) != "WATCHDOG=1":
            assert message.startswith("STATUS=watchdog probe failed: ")
        assert await receive(manager) == "STATUS="  # the previous status is restored

    run_watchdog(folder, manager, test, http=failing, dstack=healthy)
    assert healthy.requests == []
    assert "watchdog probe failed" in caplog.text


@pytest.mark.parametrize(
    ("name", "response"),
    [("http", b"HTTP/1.1 401 Unauthorized\r\n\r\n"), ("dstack-a", b"HTTP/1.1 403 No\r\n\r\n")],
)
def test_watch_refusal_of_working_listener_suffices(
    folder: Path, manager: FakeServiceManager, name: str, response: bytes
) -> None:
    """A listener that requires a token, or refuses the method, answers: nothing is restarted."""

    async def test() -> None:
        assert await receive(manager) == "WATCHDOG=1"

    run_watchdog(folder, manager, test, 1800.0, **{name: FixedResponder(response)})


@pytest.mark.parametrize("response", [FULL, b""])
def test_watch_full_listener_probes_dstack_socket(
    folder: Path, manager: FakeServiceManager, response: bytes
) -> None:
    """If the external listener is full, dstack.sock is probed instead."""
    inner = FixedResponder(OK)

    async def test() -> None:
        assert await receive(manager) == "WATCHDOG=1"

    run_watchdog(folder, manager, test, 1800.0, http=FixedResponder(response), dstack=inner)
    assert len(inner.requests) >= 1


@pytest.mark.parametrize(
    "responders",
    [
        {"http": FixedResponder(FULL)},
        {"http": FixedResponder(FULL), "dstack": FixedResponder(BROKEN)},
        {"dstack": None},
    ],
)
def test_watch_without_working_listener_fails(
    folder: Path, manager: FakeServiceManager, responders: dict[str, FixedResponder | None]
) -> None:
    """WATCHDOG=1 is not sent if every listener is full, broken or missing."""

    async def test() -> None:
        for _ in range(2):
            assert "STATUS=watchdog probe failed" in await receive(manager)

    run_watchdog(folder, manager, test, 0.01, **responders)


def test_watch_blocked_manager_does_not_block_loop(
    folder: Path, manager: FakeServiceManager, caplog: pytest.LogCaptureFixture
) -> None:
    """A service manager that reads nothing does not block the event loop; later messages arrive."""
    manager.fill()

    async def test() -> None:
        loop = asyncio.get_running_loop()
        begin = loop.time()
        for _ in range(20):  # other tasks of the loop
            await asyncio.sleep(0.02)
        failures = caplog.text.count("$NOTIFY_SOCKET")
        assert failures >= 2
        assert loop.time() - begin < failures  # no attempt blocked for a second
        manager.discard_messages()
        # On a busy machine a probe may take longer than 10 ms, which is reported first.
        late = "STATUS=watchdog probe failed: no response in 0.01 s"
        received = [await receive(manager)]
        while received[-1] == late and len(received) < 100:
            received.append(await receive(manager))
        assert received[-1] == "WATCHDOG=1"

    run_watchdog(folder, manager, test, 0.01, http=FixedResponder(OK))
