"""systemd's own systemd-socket-activate starts the server, and hands it sockets as systemd does."""

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

from tests.serve.client import call
from tests.serve.server import PATIENCE, command, environment
from tests.serve.systemd.notify import Manager

ACTIVATE = shutil.which("systemd-socket-activate")

pytestmark = [
    pytest.mark.rig,
    pytest.mark.skipif(
        ACTIVATE is None, reason="no systemd-socket-activate: it comes with systemd"
    ),
]

GET = b"GET /Version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path, for a socket's path has little room."""
    with tempfile.TemporaryDirectory(prefix="ak") as name:
        yield Path(name)


@contextlib.contextmanager
def activated(
    folder: Path, listen: Mapping[str, str], *options: str, **environ: str
) -> Iterator["subprocess.Popen[str]"]:
    """Run a server behind `listen`, addresses by the name of their descriptor."""
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


def free_port() -> str:
    """Return an address that is free; systemd's program takes no port 0."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return f"127.0.0.1:{sock.getsockname()[1]}"


def knock(process: "subprocess.Popen[str]", path: Path) -> socket.socket:
    """Send a request to a socket as soon as it is there: that is what starts the server."""
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(PATIENCE)
    while client.connect_ex(str(path)):
        assert process.poll() is None
    client.sendall(GET)
    return client


def ready(process: "subprocess.Popen[str]") -> dict[str, str]:
    """Return what the ready line says."""
    assert process.stdout is not None
    first, *words = shlex.split(process.stdout.readline())
    assert first == "ready"
    return dict(word.split("=", 1) for word in words)


def test_both_sockets_and_ours_by_name(folder: Path) -> None:
    """The request that started it is answered, on the very socket; the ready line has all three."""
    listen = {"http": free_port(), "agent": f"{folder}/a.sock", "old": f"{folder}/b.sock"}
    with activated(folder, listen) as process:
        with knock(process, folder / "a.sock") as client:
            at = ready(process)
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
    assert (folder / "a.sock").is_socket()  # not ours to remove
    assert not (folder / "own" / "dstack.sock").exists()


def test_one_socket_is_enough(folder: Path) -> None:
    """What was not handed over is bound where it always is."""
    with activated(folder, {"x": f"{folder}/a.sock"}, "--http", "127.0.0.1:0") as process:
        with knock(process, folder / "a.sock"):
            at = ready(process)
        assert at["dstack"] == f"{folder}/a.sock"
        assert at["tappd"] == f"{folder}/own/tappd.sock"
        assert call(at["tappd"], "Version").status == 200


def test_keys_on_tcp_are_refused(folder: Path) -> None:
    """A TCP socket without our name would be dstack.sock: the server does not start."""
    listen = {"agent": f"{folder}/a.sock", "web": free_port()}
    with activated(folder, listen) as process:
        with knock(process, folder / "a.sock"):
            output, errors = process.communicate(timeout=PATIENCE)
        assert (process.returncode, output) == (1, "")
        assert errors.splitlines()[-1] == (
            "attestkit serve: descriptor 4 ('web') was handed over, and it cannot be tappd: "
            "keys are served on unix sockets only"
        )


def test_readiness_and_watchdog(folder: Path) -> None:
    """Started by systemd's program it tells a service manager what systemd expects."""
    with contextlib.closing(Manager(folder / "notify")) as manager:
        told = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "2000000"}
        listen = {"agent": f"{folder}/a.sock", "http": free_port()}
        with activated(folder, listen, "--watchdog", **told) as process:
            with knock(process, folder / "a.sock"):
                assert ready(process)["http"].startswith("http://127.0.0.1:")
            assert manager.next() == "READY=1"
            assert manager.next_but_status() == "WATCHDOG=1"
            assert manager.next_but_status() == "WATCHDOG=1"
            process.send_signal(signal.SIGTERM)
            while manager.next() != "STOPPING=1":
                pass
            assert process.wait(PATIENCE) == 0
