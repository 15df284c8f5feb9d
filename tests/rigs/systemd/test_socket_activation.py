"""Socket activation with systemd-socket-activate."""

import contextlib
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.rigs.systemd.test_units import free_port
from tests.serve.client import call
from tests.serve.server import PATIENCE, command, environment
from tests.serve.systemd.notify import FakeServiceManager

ACTIVATE = shutil.which("systemd-socket-activate")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.rig,
    pytest.mark.skipif(
        ACTIVATE is None, reason="no systemd-socket-activate: it comes with systemd"
    ),
]

GET = b"GET /Version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a directory with a short path, since sun_path is limited."""
    with tempfile.TemporaryDirectory(prefix="ak") as name:
        yield Path(name)


@contextlib.contextmanager
def run_activated(
    folder: Path, listen: Mapping[str, str], *options: str, **environ: str
) -> Iterator["subprocess.Popen[str]"]:
    """Run a server behind `listen`, addresses by descriptor name."""
    assert ACTIVATE is not None
    line = [ACTIVATE]
    for address in listen.values():
        line += ["-l", address]
    line.append(f"--fdname={':'.join(listen)}")
    for name in ("PATH", "PYTHONPATH", *environ):
        line += ["-E", f"{name}={environment(**environ)[name]}"]
    usual = ("--backend", "simulator", "--dir", str(folder / "own"))
    with subprocess.Popen(
        [*line, *command(*usual, *options)],
        cwd=folder,
        env=environment(**environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def send_request(process: "subprocess.Popen[str]", path: Path) -> socket.socket:
    """Send a request to a socket once it exists, which starts the server."""
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(PATIENCE)
    while client.connect_ex(str(path)):
        assert process.poll() is None
    client.sendall(GET)
    return client


def read_ready_line(process: "subprocess.Popen[str]") -> dict[str, str]:
    """Return the fields of the ready line."""
    assert process.stdout is not None
    first, *words = shlex.split(process.stdout.readline())
    assert first == "ready"
    return dict(word.split("=", 1) for word in words)


@pytest.mark.slow
def test_activation_with_all_sockets(folder: Path) -> None:
    """The first request is answered on the inherited socket; the ready line has all three."""
    listen = {
        "http": f"127.0.0.1:{free_port()}",
        "agent": f"{folder}/a.sock",
        "old": f"{folder}/b.sock",
    }
    with run_activated(folder, listen) as process:
        with send_request(process, folder / "a.sock") as client:
            at = read_ready_line(process)
            assert client.makefile("rb").read().startswith(b"HTTP/1.1 200 ")
        assert list(at) == ["dstack", "tappd", "http"]
        assert at["dstack"] == f"{folder}/a.sock"
        assert at["tappd"] == f"{folder}/b.sock"
        assert call(at["dstack"], "GetKey", {"path": "a"}).status == 200
        assert call(at["tappd"], "prpc/Tappd.DeriveKey", {"path": "a"}).status == 200
        assert call(at["http"], "prpc/Worker.Version").status == 200
        assert call(at["http"], "GetKey", {"path": "a"}).status == 404
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    assert (folder / "a.sock").is_socket()  # inherited, so not removed
    assert not (folder / "own" / "dstack.sock").exists()


def test_activation_with_one_socket(folder: Path) -> None:
    """The other sockets are bound as usual."""
    with run_activated(folder, {"x": f"{folder}/a.sock"}, "--http", "127.0.0.1:0") as process:
        with send_request(process, folder / "a.sock"):
            at = read_ready_line(process)
        assert at["dstack"] == f"{folder}/a.sock"
        assert at["tappd"] == f"{folder}/own/tappd.sock"
        assert call(at["tappd"], "Version").status == 200


def test_activation_rejects_keys_on_tcp(folder: Path) -> None:
    """A TCP socket without a known name would be dstack.sock: the server does not start."""
    listen = {"agent": f"{folder}/a.sock", "web": f"127.0.0.1:{free_port()}"}
    with run_activated(folder, listen) as process:
        with send_request(process, folder / "a.sock"):
            output, errors = process.communicate(timeout=PATIENCE)
        assert (process.returncode, output) == (1, "")
        assert errors.splitlines()[-1] == (
            "attestkit serve: inherited descriptor 4 ('web'): unsuitable for tappd: "
            "keys are served on unix sockets only"
        )


@pytest.mark.slow
def test_activation_reports_readiness_and_watchdog(folder: Path) -> None:
    """The service manager gets READY=1 and WATCHDOG=1."""
    with contextlib.closing(FakeServiceManager(folder / "notify")) as manager:
        manager_variables = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "2000000"}
        listen = {"agent": f"{folder}/a.sock", "http": f"127.0.0.1:{free_port()}"}
        with run_activated(folder, listen, "--watchdog", **manager_variables) as process:
            with send_request(process, folder / "a.sock"):
                assert read_ready_line(process)["http"].startswith("http://127.0.0.1:")
            assert manager.next() == "READY=1"
            assert manager.next_but_status() == "WATCHDOG=1"
            assert manager.next_but_status() == "WATCHDOG=1"
            process.send_signal(signal.SIGTERM)
            while manager.next() != "STOPPING=1":
                pass
            assert process.wait(PATIENCE) == 0
