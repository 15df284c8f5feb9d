"""Health of an app from the containers of a real Docker engine."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from attestkit.serve.docker.engine import ContainerEngine
from attestkit.serve.health.monitor import (
    HEALTHY,
    LABEL,
    HealthMonitor,
    HealthVerdict,
    check_docker,
    unhealthy,
)
from tests.rigs.docker.engine import PATIENCE, DockerEngine
from tests.serve.server import environment, running_server

pytestmark = [pytest.mark.rig, pytest.mark.slow]

PASSES = ("--health-cmd", "true", "--health-interval", "50ms")
FAILS = ("--health-cmd", "exit 1", "--health-interval", "50ms", "--health-retries", "1")
WAITS = ("--health-cmd", "true", "--health-interval", "1h")
NONE_CREATED = unhealthy("<compose>", "no container has been created yet")
NONE_CHECKED = unhealthy("<compose>", "no container declares a healthcheck")


class App:
    """Containers of a Compose project, removed at the end."""

    def __init__(self, docker: DockerEngine) -> None:
        self._docker = docker
        self._names: list[str] = []

    def run(self, name: str, *options: str, labels: bool = True, wait: str = "") -> None:
        """Start a container that sleeps, and wait until its health is `wait`."""
        project = ["--label", f"{LABEL}=app"] if labels else []
        self._names.append(name)
        self._docker.run(name, "exec sleep 1000", *project, *options)
        wait_until(lambda: not wait or self._inspect(name, "{{.State.Health.Status}}") == wait)

    def stop(self, name: str) -> None:
        """End a container and wait until the engine reports it."""
        self._docker.cli("kill", name)
        self._docker.cli("wait", name)

    def remove(self) -> None:
        """Remove all containers."""
        if self._names:
            self._docker.cli("rm", "--force", *self._names)
            self._names.clear()

    def check(self) -> HealthVerdict:
        """Return the verdict on the app."""
        return asyncio.run(check_docker(ContainerEngine(self._docker.address)))

    def _inspect(self, name: str, template: str) -> str:
        return self._docker.cli("inspect", "--format", template, name).stdout.decode().strip()


def wait_until(is_true: Callable[[], bool]) -> None:
    """Wait for a condition."""
    end = time.monotonic() + PATIENCE
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def app(docker: DockerEngine) -> Iterator[App]:
    """Return an app without containers."""
    app = App(docker)
    yield app
    app.remove()


def test_health_of_real_containers(app: App) -> None:
    """Each state that Docker reports gives the verdict of the specification."""
    app.run("other", *FAILS, labels=False, wait="unhealthy")
    assert app.check() == NONE_CREATED
    app.run("undeclared")
    assert app.check() == NONE_CHECKED
    app.run("declared", *PASSES, wait="healthy")
    assert app.check() == HEALTHY
    app.stop("undeclared")
    assert app.check() == HEALTHY
    app.run("slow", *WAITS, wait="starting")
    assert app.check() == unhealthy("slow", "starting")
    app.run("failing", *FAILS, wait="unhealthy")
    entries = {("failing", "unhealthy"), ("slow", "starting")}
    assert set(app.check().unhealthy) == entries
    app.stop("declared")
    verdict = app.check()
    [(_, status)] = set(verdict.unhealthy) - entries
    assert status.startswith("exited (last health check: ")
    assert (verdict.healthy, verdict.error) == (False, "")


def test_health_without_engine(app: App, docker: DockerEngine) -> None:
    """Two failures keep the verdict, the third is an error; the engine's return ends it."""
    app.run("web", "--restart", "always", *PASSES, wait="healthy")

    async def refresh(times: int) -> list[HealthVerdict]:
        found = []
        for _ in range(times):
            await monitor.refresh()
            found.append(monitor.verdict)
        return found

    monitor = HealthMonitor(partial(check_docker, ContainerEngine(docker.address)))
    assert asyncio.run(refresh(1)) == [HEALTHY]
    docker.stop()
    try:
        *kept, gone = asyncio.run(refresh(3))
    finally:
        docker.start()
    assert kept == [HEALTHY, HEALTHY]
    assert (gone.healthy, gone.unhealthy) == (False, ())
    assert "cannot connect" in gone.error
    wait_until(lambda: asyncio.run(refresh(1)) == [HEALTHY])


def test_server_follows_health(app: App, docker: DockerEngine, tmp_path: Path) -> None:
    """A server notices that a container fails."""
    compose = tmp_path / "app-compose.json"
    requirements = {"health_check": True}
    content = {"manifest_version": "3", "name": "a", "runner": "docker-compose"}
    compose.write_text(json.dumps({**content, "requirements": requirements}))
    app.run("web", *PASSES, wait="healthy")
    host = environment(DOCKER_HOST=docker.address)
    with running_server("--app-compose", str(compose), environ=host) as server:
        wait_until(lambda: "health of the app: healthy" in server.log())
        app.stop("web")
        text = "health of the app: unhealthy: web: exited (last health check: "
        wait_until(lambda: text in server.log())
        server.check_log()
