"""Tests of a server on an emulated kernel: equal filters and audit events for each device."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hardening.all_requests import drive
from tests.hardening.basic_requests import ask
from tests.hardening.syscalls import KILL, confined, docker_profile, unit_profile
from tests.hardening.test_forbidden import find_unexpected_events
from tests.hardening.test_syscalls import needs_seccomp, needs_systemd
from tests.rigs.emulator import requires_fuse
from tests.rigs.guest import system as rig
from tests.rigs.guest.system import AppFiles, System, system
from tests.rigs.kernel_paths import requires_namespace
from tests.serve.server import command

pytestmark = [pytest.mark.rig, pytest.mark.slow, requires_fuse, requires_namespace]

MACHINES: dict[str, dict[str, Any]] = {
    "tdx": {},
    "before registers in sysfs": {"kernel_release": "6.12"},
    "snp": {"provider": "sev_guest"},
}


@pytest.fixture(params=MACHINES)
def guest(request: pytest.FixtureRequest) -> Iterator[System]:
    """A freshly booted guest of each kind."""
    with system(**MACHINES[request.param]) as found:
        yield found


@pytest.fixture
def app(tmp_path: Path) -> AppFiles:
    """The files of an app."""
    return AppFiles.make(tmp_path / "app")


def check(guest: System, app: AppFiles, **extra: str) -> None:
    """Send all requests to a server; with runtime registers, an event is measured and attested."""
    options = ("--backend", "configfs_tsm", *app.options)
    with guest.serving(*options, "--access-log", extra=extra) as server:
        answers = ask(server.dstack, server.process.pid)
        assert (answers["key"], answers["evidence"]) == (200, 200)
        driven = drive(server)
        assert server.stop() == 0
    assert driven.statuses[200] > 50


@needs_seccomp
@pytest.mark.parametrize(
    "profile", [docker_profile, pytest.param(unit_profile, marks=needs_systemd)]
)
def test_server_on_devices_runs_under_filter(
    guest: System,
    app: AppFiles,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    profile: Callable[[], dict[str, Any]],
) -> None:
    """deploy/seccomp.json and the unit's SystemCallFilter allow the calls that devices need."""
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(profile()))
    wrap = confined(path)
    monkeypatch.setattr(rig, "command", lambda *options: wrap(*command(*options)))
    check(guest, app, **KILL)


def test_server_on_devices_loads_only_libc(
    guest: System, app: AppFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loaded libraries are libc, for ioctl, read and write, and NVML, for evidence of GPUs."""
    path = tmp_path / "events"

    def audited(*options: str) -> list[str]:
        program = str(Path(__file__).with_name("audit_events.py"))
        return [sys.executable, program, str(path), *command(*options)[2:]]

    monkeypatch.setattr(rig, "command", audited)
    check(guest, app)
    libc = {("ctypes.dlopen", "ctypes", "None")}
    libc |= {("ctypes.dlsym", "ctypes", name) for name in ("ioctl", "prctl", "read", "write")}
    nvml = ("ctypes.dlopen", "ctypes", "'libnvidia-ml.so.1'")  # not there: AttestGpu says so
    assert find_unexpected_events(path) == {*libc, nvml}
