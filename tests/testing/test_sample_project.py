"""A project that only installs attestkit[all] and pytest can use every fixture offline."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "tests" / "sample_project"
BUILT_FROM = ("pyproject.toml", "build_cffi.py", "build_sbom.py", "README.md", "LICENSE")
NO_NETWORK = ["unshare", "--user", "--map-root-user", "--net"]
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
NOT_FOUND = re.compile(
    r"No matching distribution|Could not find a version|Temporary failure in name"
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / "build_cffi.py").exists(), reason="this is not a checkout"),
    pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare is not here"),
]


def _run(
    command: Sequence[str | Path], folder: Path, **environ: str
) -> "subprocess.CompletedProcess[str]":
    """Run a command with the environment variables that pip needs, and no others."""
    keep = {k: v for k, v in os.environ.items() if k.startswith(("PIP_", "HTTP", "http", "SSL_"))}
    return subprocess.run(
        command,
        cwd=folder,
        env={**keep, "PATH": os.defpath, "HOME": str(folder), **environ},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment with attestkit[all] and pytest."""
    folder = tmp_path_factory.mktemp("fresh")
    checkout, environment = folder / "attestkit", folder / "env"
    left_out = shutil.ignore_patterns("__pycache__", "*.so", "*.o", "_lib.c")
    shutil.copytree(ROOT / "attestkit", checkout / "attestkit", ignore=left_out)
    for name in BUILT_FROM:
        shutil.copy(ROOT / name, checkout)
    base = Path(sys.base_prefix) / "bin" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    made = _run([base, "-m", "venv", environment], folder)
    assert made.returncode == 0, made.stderr
    python = environment / "bin" / "python"
    pip: list[str | Path] = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        f"{checkout}[all]",
        "pytest",
    ]
    done = _run(pip, folder)
    if done.returncode and NOT_FOUND.search(done.stderr):
        pytest.skip(f"pip finds no packages: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return python


def _counts(text: str) -> dict[str, int]:
    """Return the counts in the last line of pytest."""
    last = text.strip().splitlines()[-1]
    return {what: int(count) for count, what in re.findall(r"(\d+) ([a-z]+)", last)}


def test_sample_project_passes_without_network(python: Path, tmp_path: Path) -> None:
    """The fixtures work, with warnings as errors, using no other server."""
    project = tmp_path / "doorman"
    shutil.copytree(SAMPLE, project, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    if subprocess.run([*NO_NETWORK, "true"], check=False).returncode:
        pytest.skip("no network namespaces for us here")
    offline = [*NO_NETWORK, str(python), "-c", OFFLINE]
    done = _run([*offline, "-m", "pytest", "-v", "-p", "no:cacheprovider"], project)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    counts = _counts(done.stdout)
    assert set(counts) == {"passed"}, done.stdout[-500:]
    assert not list(project.rglob("*.sock"))
