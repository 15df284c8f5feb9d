"""Choice of an app's health check, which the server runs in the background."""

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from attestkit.attester import Attester
from attestkit.backends.simulator import Simulator
from attestkit.serve.background_server import BackgroundServer
from attestkit.serve.endpoints import ListenAddresses
from attestkit.serve.health import app_health, monitor
from attestkit.serve.health.monitor import HEALTHY, NOT_DETERMINED, HealthVerdict
from tests.serve.client import get
from tests.serve.docker.engine import run_with_timeout
from tests.serve.guests import NOW, MakeGuest

UNREACHABLE = "container engine at /nowhere/docker.sock: cannot connect"


def required(runner: str, **requirements: object) -> dict[str, Any]:
    """Return members of app-compose.json with requirements."""
    return {"manifest_version": "3", "runner": runner, "requirements": requirements}


@pytest.mark.parametrize(
    "compose",
    [
        {},
        required("docker-compose"),
        required("docker-compose", health_check=False, health_status_file="/no"),
        required("bash", health_check=True),
    ],
)
def test_app_without_check_is_healthy(make_guest: MakeGuest, compose: dict[str, Any]) -> None:
    """Without health_check, and for a script without a status file, nothing is checked."""
    guest = make_guest(compose=compose)
    assert guest.health_monitor is None
    assert guest.health == HEALTHY


@pytest.mark.parametrize("runner", ["docker-compose", "nerdctl-compose", "bash"])
def test_status_file_takes_precedence(make_guest: MakeGuest, tmp_path: Path, runner: str) -> None:
    """With a status file the containers do not matter; its time is compared with the clock."""
    path = tmp_path / "health"
    path.write_text(f"healthy\n{NOW}\n")
    clock = [float(NOW)]
    compose = required(runner, health_check=True, health_status_file=str(path))
    guest = make_guest(compose=compose, docker="/nowhere/docker.sock", now=lambda: clock[0])
    assert guest.health == NOT_DETERMINED
    assert guest.health_monitor is not None
    run_with_timeout(guest.health_monitor.refresh())
    assert guest.health == HEALTHY
    clock[0] += 61
    run_with_timeout(guest.health_monitor.refresh())
    assert "stale" in guest.health.unhealthy[0].status


def test_docker_runner_requests_the_engine(make_guest: MakeGuest) -> None:
    """The containers of the configured engine are checked; three failures are an error."""
    compose = required("docker-compose", health_check=True)
    guest = make_guest(compose=compose, docker="/nowhere/docker.sock")
    assert guest.health_monitor is not None
    for _ in range(3):
        assert guest.health == NOT_DETERMINED
        run_with_timeout(guest.health_monitor.refresh())
    assert (guest.health.healthy, guest.health.unhealthy) == (False, ())
    assert guest.health.error.startswith(UNREACHABLE)


def test_nerdctl_runner_runs_nerdctl(
    make_guest: MakeGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other runner of containers has its own check."""

    async def check() -> HealthVerdict:
        return HEALTHY

    monkeypatch.setattr(app_health, "check_nerdctl", check)
    guest = make_guest(compose=required("nerdctl-compose", health_check=True))
    assert guest.health_monitor is not None
    run_with_timeout(guest.health_monitor.refresh())
    assert guest.health == HEALTHY


def test_server_checks_in_the_background(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server with an external listener runs the check, answers meanwhile, and ends with it."""
    started, cancelled = threading.Event(), threading.Event()

    async def hang(_: object) -> HealthVerdict:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return HEALTHY

    monkeypatch.setattr(monitor, "check_docker", hang)
    compose = {"name": "a", **required("docker-compose", health_check=True)}
    with Attester(Simulator(app_compose=json.dumps(compose).encode())) as attester:
        addresses = ListenAddresses(dstack=folder / "dstack.sock")
        with BackgroundServer(attester, addresses):
            assert get(str(folder / "dstack.sock"), "/Version").status == 200
        assert not started.is_set()  # no listener serves the result
        addresses = ListenAddresses(http=("127.0.0.1", 0))
        with BackgroundServer(attester, addresses) as ready:
            assert started.wait(60)
            assert get(str(ready.addresses["http"]), "/prpc/Version").status == 200
            assert not cancelled.is_set()
        assert cancelled.wait(60)


def test_limits_of_the_specification() -> None:
    """Every five seconds, for at most ten."""
    assert (monitor.INTERVAL, monitor.RUN_SECONDS) == (5, 10)
