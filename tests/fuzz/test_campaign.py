"""The fuzzing campaign: it adds up libFuzzer's figures, and reports planted mistakes."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("hatchling", reason="hatchling builds the package, and is not here")
pytest.importorskip("cffi")

from fuzz import drivers
from tests.long_runs.records import ROOT
from tests.processes import run_program


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "report"), [("overread", "heap-buffer-overflow"), ("undefined", "integer overflow")]
)
def test_planted_mistake_is_found(target: str, report: str, tmp_path: Path) -> None:
    """The input is stored with the sanitizer's report, and the exit code is 1."""
    if drivers.clang() is None:
        pytest.skip("clang is not installed")
    command = [sys.executable, "-m", "fuzz.campaign", "--seconds", "4", f"core-{target}"]
    done = run_program(*command, "--failures", str(tmp_path), cwd=ROOT)
    if "runtime" in done.stderr:
        pytest.skip(done.stderr.splitlines()[0])
    assert done.returncode == 1, done.stdout + done.stderr
    [log] = tmp_path.glob("*.log")
    assert report in log.read_text()
    assert f"found: {tmp_path}/core-{target}-crash-" in done.stdout
