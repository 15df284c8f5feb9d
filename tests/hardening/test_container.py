"""Tests of the server in a container, under deploy/seccomp.json."""

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hardening.all_requests import drive
from tests.hardening.syscalls import PROFILE
from tests.rigs.docker.engine import (
    IMAGE,
    PATIENCE,
    DockerEngine,
    missing_for_docker,
    running_engine,
)
from tests.rigs.emulator import environment
from tests.serve.server import ROOT, Server, command, ready_server

pytestmark = [
    pytest.mark.rig,
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(missing_for_docker()), reason=missing_for_docker() or "an engine can run"
    ),
]
# As in deploy/README.md.
CONFINED = (
    *("--user", "0:0", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
    *("--security-opt", f"seccomp={PROFILE}", "--network", "none", "--read-only"),
)


@pytest.fixture(scope="module")
def docker() -> Iterator[DockerEngine]:
    """A container engine."""
    with running_engine() as engine:
        yield engine


def create_command(folder: Path) -> list[str]:
    """Return the command line of a container with this machine's Python, and `folder`."""
    python = {Path(path).resolve() for path in (sys.prefix, sys.base_prefix, "/usr", "/lib", ROOT)}
    places = [
        *sorted(python),
        *(Path(p) for p in ("/lib", "/lib64", sys.prefix) if Path(p).exists()),
    ]
    mounts = [f"--volume={place}:{place}:ro" for place in dict.fromkeys(places)]
    path = f"--env=PYTHONPATH={environment()['PYTHONPATH']}"
    return [
        *("docker", "run", "--rm", "--name", "attestkit", *CONFINED, *mounts, path),
        *("--volume", f"{folder}:{folder}", "--workdir", str(folder), IMAGE),
    ]


@contextlib.contextmanager
def run_in_container(docker: DockerEngine, folder: Path) -> Iterator[Server]:
    """Run a server in a container, with its sockets in `folder`."""
    options = ("--backend", "simulator", "--dir", str(folder), "--http", "none")
    line = [*create_command(folder), *command(*options, "--access-log")]
    with ready_server(line, folder, docker.environment()) as server:
        try:
            yield server
        finally:
            docker.cli("stop", "attestkit")
            server.process.wait(PATIENCE)


def test_server_in_container_answers_everything(docker: DockerEngine) -> None:
    """A server under the profile starts, answers all requests, and stops."""
    with tempfile.TemporaryDirectory(prefix="ak") as name:
        with run_in_container(docker, Path(name)) as server:
            driven = drive(server)
            inspected = docker.cli("inspect", "attestkit").stdout
            assert b"SCMP_ACT_ERRNO" in inspected
        assert server.process.returncode == 0
    assert len(driven.requests) > 100
    assert set(driven.statuses) == {200, 400, 404, 501}  # 501: AttestGpu


def test_container_profile_is_applied(docker: DockerEngine) -> None:
    """The container cannot create a netlink socket, which Docker's default profile allows."""
    program = "import socket; socket.socket(16, socket.SOCK_RAW)"
    done = subprocess.run(
        [*create_command(ROOT / "deploy"), sys.executable, "-c", program],
        env=docker.environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1
    assert "PermissionError: [Errno 1]" in done.stderr
