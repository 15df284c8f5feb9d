"""What the README shows works as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"

pytestmark = pytest.mark.skipif(not README.exists(), reason="the README is not here")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


def _run(example: str) -> str:
    return subprocess.run(  # noqa: S603 - our own README
        [sys.executable, "-W", "error", "-c", example], capture_output=True, text=True, check=True
    ).stdout


def test_the_python_example_runs() -> None:
    """The example prints the registers, the size of the evidence and the key."""
    mrtd, size, key = _run(_blocks("python")[0]).split()
    assert len(mrtd) == 96
    assert int(size) > 5000
    assert len(key) == 66


def test_the_tests_pass(tmp_path: Path) -> None:
    """Those that the README shows, as a file of a project that has nothing else."""
    (tmp_path / "test_it.py").write_text(_blocks("python")[1])
    words = [sys.executable, "-m", "pytest", "-p", "attestkit.testing.plugin", "-W", "error", "-q"]
    environ = {
        **os.environ,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # of a checkout it is installed, or is not
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(  # noqa: S603 - our own README
        words, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
    )
    assert "2 passed" in done.stdout, done.stdout


def test_the_verifying_example_runs() -> None:
    """It prints the verdict, and what was checked."""
    verifying = _blocks("python")[2]
    verdict, *steps = _run(verifying).splitlines()
    status, simulated, app_id = verdict.split()
    assert (status, simulated, len(app_id)) == ("UpToDate", "True", 40)
    assert len(steps) > 5
    assert all(step.startswith("- ") for step in steps)


def test_the_example_of_many_runs() -> None:
    """It prints what a column is, and that many give the same as one."""
    assert _run(_blocks("python")[3]).splitlines() == ["(3, 64) True", "True"]


def test_the_commands_are_the_makefile_s() -> None:
    """Each `make` word of the README is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z]+)\b", README.read_text()))
    assert {"serve", "test"} <= named <= targets
