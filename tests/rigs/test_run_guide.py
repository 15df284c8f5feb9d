"""What docs/run.md shows works as it stands, and its paths are those that are there."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rigs.attestkit_run import requires_run, run
from tests.rigs.emulator import PATIENCE, ROOT, environment
from tests.rigs.test_run_third_party import _missing

GUIDE = ROOT / "docs" / "run.md"

pytestmark = [
    pytest.mark.rig,
    requires_run,
    pytest.mark.skipif(not GUIDE.exists(), reason="docs/run.md is not here"),
]


def text() -> str:
    """Return the guide, nothing where it is not."""
    return GUIDE.read_text() if GUIDE.exists() else ""


def blocks() -> list[str]:
    """Return its commands, block by block."""
    return re.findall(r"```bash\n(.*?)```", text(), re.DOTALL)


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Return a $PATH with this attestkit and this Python first."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, words in (
        ("attestkit", f"{sys.executable} -m attestkit"),
        ("python", sys.executable),
    ):
        (folder / name).write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        (folder / name).chmod(0o755)
    return f"{folder}:{environment()['PATH']}"


def output_of(script: str, path: str, folder: Path) -> str:
    """Run commands of the guide in a folder; return what they print."""
    done = subprocess.run(  # noqa: S603 - our own documentation
        ["sh", "-euc", script],
        env={**environment(), "PATH": path, "GOCACHE": str(folder / "cache")},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=5 * PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def test_the_commands(path: str, tmp_path: Path) -> None:
    """They show what they say: the shell's quote is accepted, Python finds its backend."""
    first, shell, python, *_ = blocks()
    assert output_of(first, path, tmp_path).split() == [
        *("CCEL", "/dev/tdx_guest", "/sys/kernel/config/tsm:", "report"),
        *("/dev/sev-guest", "ebusy:1", "/run/attestkit/trust-anchor.der"),
    ]
    assert "quote: accepted" in output_of(shell, path, tmp_path)
    assert output_of(python, path, tmp_path) == "configfs_tsm 4\n"
    assert len(blocks()) == 4


@pytest.mark.slow
@pytest.mark.skipif(bool(_missing()), reason=_missing() or "Go is here")
def test_the_go_commands(path: str, tmp_path: Path) -> None:
    """Google's client is built and gets a quote."""
    assert shutil.which("go")
    output_of(blocks()[3], path, tmp_path)
    assert (tmp_path / "quote-of-go").stat().st_size > 4000


def test_the_paths() -> None:
    """Each path of the table is there, on the machine that has it."""
    table = re.findall(r"^\| (`/.*?) \|", text(), re.MULTILINE)
    paths = [name for cell in table for name in re.findall(r"`(/.*?)`", cell)]
    assert len(paths) == 12
    tdx = [name for name in paths if name != "/dev/sev-guest"]
    done = run("ls", "-d", *tdx, options=("--qgs-port", "4050"))
    assert (done.returncode, done.stderr) == (0, "")
    assert run("ls", "/dev/sev-guest", options=("--provider", "sev_guest")).returncode == 0
