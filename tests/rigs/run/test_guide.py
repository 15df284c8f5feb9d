"""Paths of docs/run.md; its commands run in tests/docs."""

import re

import pytest

from tests.rigs.emulator import ROOT
from tests.rigs.run.attestkit_run import requires_run, run

GUIDE = ROOT / "docs" / "run.md"

pytestmark = [
    pytest.mark.rig,
    requires_run,
    pytest.mark.skipif(not GUIDE.exists(), reason="docs/run.md is missing"),
]


def read_guide() -> str:
    """Return the guide, or ""."""
    return GUIDE.read_text() if GUIDE.exists() else ""


def test_guide_paths_exist() -> None:
    """Each path of the table exists on its machine."""
    table = re.findall(r"^\| (`/.*?) \|", read_guide(), re.MULTILINE)
    paths = [name for cell in table for name in re.findall(r"`(/.*?)`", cell)]
    assert len(paths) == 12
    tdx = [name for name in paths if name != "/dev/sev-guest"]
    done = run("ls", "-d", *tdx, options=("--qgs-port", "4050"))
    assert (done.returncode, done.stderr) == (0, "")
    assert run("ls", "/dev/sev-guest", options=("--provider", "sev_guest")).returncode == 0
