"""Tests of a server without root, as in deploy/systemd/attestkit-user.conf.

On an emulated TDX guest whose quotes come by ioctl, and under a real systemd with the drop-ins.
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from attestkit import EventLog, Quote
from tests.rigs import emulator as rig
from tests.rigs.ordinary_user import (
    NOBODY,
    find_python_of_nobody,
    requires_nobody,
    run_python_as_nobody,
)
from tests.rigs.systemd.test_units import SYSTEMD, Machine, running_systemd
from tests.serve.client import call
from tests.serve.server import ROOT

pytestmark = [pytest.mark.rig, pytest.mark.slow]

# A server run as the user in the guest, with the kernel's view of it; the last line has the
# responses.
PROGRAM = """
import json, os, tempfile
from pathlib import Path
from tests.hardening.basic_requests import ask
from tests.rigs.guest.system import AppFiles
from tests.serve.server import environment, running_server

with tempfile.TemporaryDirectory(prefix="ak") as name:
    app = AppFiles.make(Path(name) / "app")
    options = ("--backend", "configfs_tsm", "--measure-app", *app.options)
    environ = environment(PYTHONPATH=os.environ["PYTHONPATH"])
    with running_server(*options, seed=None, environ=environ) as server:
        found = ask(server.dstack, server.process.pid)
        found["code"] = server.stop()
print(json.dumps(found))
"""
# Interfaces available to an unprivileged user on real machines. The program has no option for the
# quote generation service, which is behind vsock there.
LIBRARY = """
import json, os, signal, sys, tempfile, threading
from pathlib import Path
import attestkit
from attestkit.dstack.app_compose import AppCompose
from attestkit.serve.endpoints import ListenAddresses
from attestkit.serve import serve
from attestkit.serve.app_factory import ServerOptions
from tests.hardening.basic_requests import ask
from tests.rigs.guest.system import AppFiles

def asking(path):
    try:
        found.update(ask(path, os.getpid()))
    finally:
        os.kill(os.getpid(), signal.SIGTERM)

found = {}
with tempfile.TemporaryDirectory(prefix="ak") as name:
    app = AppFiles.make(Path(name) / "app")
    keys = attestkit.AppKeys.load(app.keys)
    compose = AppCompose.parse(app.compose.read_bytes())
    path = f"{name}/dstack.sock"
    thread = threading.Thread(target=asking, args=(path,))
    with attestkit.open("tdx_ioctl", qgs=sys.argv[1]) as attester:
        serve(
            attester,
            ListenAddresses(dstack=Path(path)),
            ServerOptions(app_compose=compose, app_keys=keys),
            on_ready=lambda _: thread.start(),
        )
    thread.join()
print(json.dumps({**found, "code": 0}))
"""


@requires_nobody
@pytest.mark.parametrize("program", [PROGRAM, LIBRARY], ids=["configfs", "ioctl"])
def test_server_of_unprivileged_user_in_guest(program: str) -> None:
    """A server without root and capabilities gives quotes, keys and measured events."""
    python = find_python_of_nobody() or ""
    with tempfile.TemporaryDirectory(prefix="ak") as folder:
        os.chown(folder, NOBODY, NOBODY)
        socket = f"{folder}/qgs"
        words = ("-m", "attestkit", "run", "--qgs", socket, "--", python, "-c", program, socket)
        done = run_python_as_nobody(*words)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    fields = dict(line.split(":\t", 1) for line in found["status"].splitlines() if ":\t" in line)
    assert fields["Uid"].split() == [str(NOBODY)] * 4
    assert int(fields["CapEff"], 16) == 0
    assert (found["emitted"], found["key"], found["code"]) == (200, 200, 0)
    quote = Quote.parse(bytes.fromhex(found["quote"]["quote"]))
    assert quote.report_data == b"\x12" + bytes(63)
    log = EventLog.from_json(found["quote"]["event_log"])
    log.check(quote)
    assert "e" in [event.name for event in log.runtime]


# -- under systemd ---------------------------------------------------------------------------------

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it mounts")
needs_systemd = pytest.mark.skipif(
    not SYSTEMD.exists() or shutil.which("systemd-sysusers") is None, reason="no systemd"
)
IN_TEST = """
[Service]
Environment=ATTESTKIT_BACKEND=simulator PYTHONPATH={path}
# Python, or this checkout, may be in a home directory.
ProtectHome=no
"""


def write_units(folder: Path, python: str) -> None:
    """Write the units of deploy/ with both drop-ins, and the simulator."""
    for name in ("attestkit.service", "attestkit.socket"):
        shutil.copy(ROOT / "deploy/systemd" / name, folder)
    drop_ins = folder / "attestkit.service.d"
    drop_ins.mkdir()
    for name in ("user", "offline"):
        text = (ROOT / f"deploy/systemd/attestkit-{name}.conf").read_text()
        text = text.replace("/opt/attestkit/bin/python", python)
        (drop_ins / f"{name}.conf").write_text(text)
    path = rig.environment()["PYTHONPATH"]
    (drop_ins / "zz-test.conf").write_text(IN_TEST.format(path=path))


@pytest.fixture
def machine() -> Iterator[Machine]:
    """A systemd with these units and both drop-ins, which has created the user."""
    write = partial(write_units, python=find_python_of_nobody() or sys.executable)
    with running_systemd(write, "attestkit-user.sysusers", 0) as machine:
        yield machine


@requires_nobody
@needs_root
@needs_systemd
def test_service_is_unprivileged_and_without_network(machine: Machine) -> None:
    """The service uses systemd's sockets, runs as the user, and has a loopback interface only."""
    machine.run("systemctl", "start", "attestkit.socket")
    assert call(machine.dstack, "GetKey", {"path": "a"}).status == 200
    assert call(machine.tappd, "Version").status == 200
    pid = machine.show("MainPID")
    assert machine.run("stat", "-c", "%U %G", f"/proc/{pid}").split() == ["attestkit"] * 2
    status = machine.run("cat", f"/proc/{pid}/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert int(fields["CapBnd"], 16) == int(fields["CapEff"], 16) == 0
    assert fields["Seccomp"] == "2"
    interfaces = machine.run("cat", f"/proc/{pid}/net/dev").splitlines()[2:]
    assert [line.split(":")[0].strip() for line in interfaces] == ["lo"]
    limits = machine.run("cat", f"/proc/{pid}/limits")
    assert "Max core file size        0                    0" in limits
    machine.run("systemctl", "stop", "attestkit.socket", "attestkit.service")
    assert machine.show("Result") == "success"
