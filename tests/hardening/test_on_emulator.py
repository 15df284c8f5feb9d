"""A server on the kernel's files, each way to a quote: the same filters, the same audit events."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hardening.asked import ask
from tests.hardening.drive import drive
from tests.hardening.syscalls import KILL, PROFILE, confined, unit_profile
from tests.hardening.test_forbidden import surprising
from tests.hardening.test_syscalls import needs_seccomp, needs_systemd
from tests.rigs import system as rig
from tests.rigs.emulator import requires_fuse
from tests.rigs.namespace import requires_namespace
from tests.rigs.system import AppFiles, System, system
from tests.serve.server import command

pytestmark = [pytest.mark.rig, pytest.mark.slow, requires_fuse, requires_namespace]

MACHINES: dict[str, dict[str, Any]] = {
    "tdx": {},
    "before registers in sysfs": {"kernel": "6.12"},
    "snp": {"provider": "sev_guest"},
}


@pytest.fixture(params=MACHINES)
def guest(request: pytest.FixtureRequest) -> Iterator[System]:
    """A guest of each kind, just booted."""
    with system(**MACHINES[request.param]) as found:
        yield found


@pytest.fixture
def app(tmp_path: Path) -> AppFiles:
    """The files of an app."""
    return AppFiles.make(tmp_path / "app")


def check(guest: System, app: AppFiles, **extra: str) -> None:
    """Ask a server everything; where registers are, an event is measured and quoted."""
    options = ("--backend", "configfs_tsm", *app.options)
    with guest.serving(*options, "--access-log", extra=extra) as server:
        answers = ask(server.dstack, server.process.pid)
        assert answers["key"] == 200
        assert "error" not in answers["quote"]
        driven = drive(server)
        assert server.stop() == 0
    assert driven.statuses[200] > 50


@needs_seccomp
def test_under_the_profile(guest: System, app: AppFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """deploy/seccomp.json has what the devices need, too."""
    wrap = confined(PROFILE)
    monkeypatch.setattr(rig, "command", lambda *options: wrap(*command(*options)))
    check(guest, app, **KILL)


@needs_seccomp
@needs_systemd
def test_under_the_units_filter(
    guest: System, app: AppFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the unit's SystemCallFilter."""
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(unit_profile()))
    wrap = confined(path)
    monkeypatch.setattr(rig, "command", lambda *options: wrap(*command(*options)))
    check(guest, app, **KILL)


def test_what_python_tells_of_it(
    guest: System, app: AppFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one library that is loaded is the libc that is there, for ioctl, read and write."""
    path = tmp_path / "events"

    def audited(*options: str) -> list[str]:
        program = str(Path(__file__).with_name("audited.py"))
        return [sys.executable, program, str(path), *command(*options)[2:]]

    monkeypatch.setattr(rig, "command", audited)
    check(guest, app)
    libc = {("ctypes.dlopen", "ctypes", "None")}
    libc |= {("ctypes.dlsym", "ctypes", name) for name in ("ioctl", "prctl", "read", "write")}
    assert surprising(path) == libc
