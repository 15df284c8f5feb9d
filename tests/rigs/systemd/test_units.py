"""Units of deploy/ under a real systemd, the first process of separate namespaces.

Features that these namespaces do not allow are not tested: if mounts are refused, systemd starts a
service without that part of its sandbox.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.serve.client import call
from tests.serve.http.load_client import LoadClient
from tests.serve.server import PATIENCE, ROOT

MACHINE = Path(__file__).with_name("start_systemd.sh")
SYSTEMD = Path("/usr/lib/systemd/systemd")

pytestmark = [
    pytest.mark.rig,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it mounts"),
    pytest.mark.skipif(not SYSTEMD.exists(), reason="no systemd"),
    pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="no systemd-sysusers"),
]

SERVICE = """
[Service]
ExecStart=
ExecStart={python} -m attestkit.serve --watchdog --dir /run/attestkit --backend simulator
Environment=PYTHONPATH={root}
WatchdogSec=2s
# Python, or this checkout, may be in a home directory.
ProtectHome=no
"""
HTTP = """
[Socket]
ListenStream=
ListenStream=127.0.0.1:{port}
"""


class Machine:
    """Running systemd."""

    def __init__(self, pid: int, port: int) -> None:
        self._pid = pid
        self.url = f"http://127.0.0.1:{port}"
        run = f"/proc/{pid}/root/run"
        self.dstack, self.tappd = f"{run}/dstack.sock", f"{run}/tappd.sock"

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command in it, and return its output."""
        enter = ["nsenter", "-t", str(self._pid), "-m", "-p", "-i", "-u", "-C", "-r", "-w"]
        done = subprocess.run(
            [*enter, "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", *command],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0 or not check, (command, done.stderr, self.log())
        return done.stdout

    def log(self) -> str:
        """Return the service's log."""
        return self.run("journalctl", "-u", "attestkit", "-o", "cat", "--no-pager", check=False)

    def show(self, name: str, unit: str = "attestkit.service") -> str:
        """Return a property of a unit."""
        return self.run("systemctl", "show", "--property", name, "--value", unit).strip()

    def restart(self) -> None:
        """Restart the service, without a restart limit."""
        self.run("systemctl", "reset-failed", "attestkit.service")
        self.run("systemctl", "restart", "attestkit.service")


def free_port() -> int:
    """Return a free port."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def write_units(folder: Path, port: int) -> None:
    """Write the units of deploy/, with the simulator, short timeouts and another port."""
    for suffix in ("service", "socket"):
        for path in ROOT.glob(f"deploy/systemd/*.{suffix}"):
            shutil.copy(path, folder)
    for unit, text in {
        "attestkit.service": SERVICE.format(python=sys.executable, root=ROOT),
        "attestkit-http.socket": HTTP.format(port=port),
    }.items():
        (folder / f"{unit}.d").mkdir()
        (folder / f"{unit}.d" / "test.conf").write_text(text)


@contextlib.contextmanager
def running_systemd(write: Callable[[Path], None], users: str, port: int) -> Iterator[Machine]:
    """Run systemd with the units that `write` puts in a directory, and a file of deploy/."""
    unshare = ("unshare", "--mount", "--pid", "--fork", "--ipc", "--uts", "--cgroup")
    with (
        tempfile.TemporaryDirectory(prefix="ak") as folder,
        tempfile.TemporaryDirectory(prefix="ak") as units,
    ):
        write(Path(units))
        files = (str(MACHINE), folder, units, str(ROOT / "deploy/systemd" / users))
        with subprocess.Popen(
            [*unshare, "--kill-child", *files],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield Machine(wait_for_systemd(process), port)
            finally:
                process.kill()


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """Run systemd with the units, whose sockets it holds."""
    port = free_port()
    with running_systemd(partial(write_units, port=port), "attestkit.sysusers", port) as machine:
        yield machine


def wait_for_systemd(process: "subprocess.Popen[str]") -> int:
    """Return the PID of the machine's first process, once systemd accepts commands."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while process.poll() is None:
        for pid in children.read_text().split():
            if Path(f"/proc/{pid}/root/run/systemd/private").exists():
                return int(pid)
    assert process.stderr is not None
    pytest.skip(f"no systemd in namespaces here: {process.stderr.read().strip()}")


@pytest.fixture
def served(machine: Machine) -> Iterator[Machine]:
    """Return the machine with all sockets active, and no service."""
    machine.run("systemctl", "reset-failed")
    machine.run("systemctl", "start", "attestkit.socket", "attestkit-http.socket")
    yield machine
    machine.run(
        "systemctl", "stop", "attestkit.socket", "attestkit-http.socket", "attestkit.service"
    )
    assert not os.path.lexists(machine.dstack)  # RemoveOnStop


def test_units_request_starts_the_service(served: Machine) -> None:
    """It is answered on systemd's sockets, which have the configured mode and group."""
    assert served.show("ActiveState") == "inactive"
    assert call(served.dstack, "GetKey", {"path": "a"}).status == 200
    assert call(served.tappd, "prpc/Tappd.DeriveKey", {"path": "a"}).status == 200
    assert call(served.url, "prpc/Worker.Version").status == 200
    assert served.show("ActiveState") == "active"
    assert served.show("StatusText") == (
        f"ready dstack=/run/dstack.sock tappd=/run/tappd.sock http={served.url}"
    )
    found = served.run("stat", "-c", "%a %U %G", "/run/dstack.sock", "/run/tappd.sock")
    assert found == "660 root attestkit\n" * 2


def test_units_service_has_no_capabilities(served: Machine) -> None:
    """It works as root without capabilities."""
    served.run("systemctl", "start", "attestkit.service")
    status = served.run("cat", f"/proc/{served.show('MainPID')}/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == 0
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")


def test_units_restart_under_load_loses_no_request(served: Machine) -> None:
    """Clients of all three sockets are served."""
    stopping = threading.Event()
    clients = [
        LoadClient(place, keep=keep, stopping=stopping)
        for place in (served.dstack, served.tappd, served.url)
        for keep in (True, False)
    ]
    for client in clients:
        client.start()
    for _ in range(5):
        before = [client.counts["answered"] for client in clients]
        while any(
            client.counts["answered"] < n + 50 for client, n in zip(clients, before, strict=True)
        ):
            assert all(client.is_alive() for client in clients)
        served.restart()
    stopping.set()
    for client in clients:
        client.stop()
        client.join(PATIENCE)
    assert [client.losses for client in clients] == [[]] * len(clients)
    assert [client.counts["turned away"] for client in clients] == [0] * len(clients)


def test_units_watchdog_restarts_stuck_service(served: Machine) -> None:
    """The new process uses the same sockets."""
    served.run("systemctl", "start", "attestkit.service")
    stuck = served.show("MainPID")
    served.run("kill", "-STOP", stuck)
    assert call(served.dstack, "Version").status == 200  # waits for the new process
    assert served.show("MainPID") != stuck
    assert int(served.show("NRestarts")) >= 1


def test_units_invalid_configuration_is_not_retried(served: Machine) -> None:
    """Exit code 1 is final; here a TCP socket without a known name would serve keys."""
    folder = "/run/systemd/system/attestkit-http.socket.d"
    served.run("systemctl", "stop", "attestkit-http.socket")
    served.run("mkdir", "-p", folder)
    try:
        wrong = f"printf '[Socket]\\nFileDescriptorName=web\\n' > {folder}/wrong.conf"
        served.run("sh", "-c", wrong)
        served.run("systemctl", "daemon-reload")
        served.run("systemctl", "start", "attestkit-http.socket")
        served.run("systemctl", "start", "attestkit.service", check=False)
        assert served.show("Result") == "exit-code"
        assert served.show("ExecMainStatus") == "1"
        assert served.show("NRestarts") == "0"
        assert "('web'): " in served.log()
    finally:
        served.run("rm", "-r", folder)
        served.run("systemctl", "daemon-reload")


def test_units_stop_is_successful(served: Machine) -> None:
    """The service ends in time, with exit code 0."""
    served.run("systemctl", "start", "attestkit.service")
    served.run("systemctl", "stop", "attestkit.service")
    assert served.show("Result") == "success"
    assert served.show("ExecMainStatus") == "0"
    assert signal.SIGKILL.name not in served.log()
