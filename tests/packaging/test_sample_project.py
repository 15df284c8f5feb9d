"""A project that only installs attestkit[all] and pytest can use every fixture offline."""

import re
import shutil
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT
from tests.packaging.conftest import Dist
from tests.packaging.environments import (
    base_python,
    install,
    new_environment,
    run,
    without_network,
)

SAMPLE = ROOT / "tests" / "sample_project"
# Loopback is down in a new namespace; 192.0.2.0/24 (RFC 5737) has no route, so is unreachable.
OFFLINE = """
import errno, fcntl, os, socket, struct, sys

with socket.socket() as any_socket:
    SIOCSIFFLAGS, UP = 0x8914, 0x1
    fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", UP))
    any_socket.settimeout(5)
    assert any_socket.connect_ex(("192.0.2.1", 80)) == errno.ENETUNREACH
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.mark.slow
def test_sample_project_passes_without_network(dist: Dist, tmp_path: Path) -> None:
    """The fixtures work, with warnings as errors, using no other server."""
    offline = without_network(tmp_path)
    python = new_environment(tmp_path, base_python())
    install(python, f"{dist.wheel}[all]", "pytest")
    project = tmp_path / "doorman"
    shutil.copytree(SAMPLE, project, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    pytest_of = (python, "-c", OFFLINE, "-m", "pytest", "-v", "-p", "no:cacheprovider")
    last = run(*offline, *pytest_of, folder=project).strip().splitlines()[-1]
    assert set(re.findall(r"\d+ ([a-z]+)", last)) == {"passed"}, last
    assert not list(project.rglob("*.sock"))
