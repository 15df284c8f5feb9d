"""What the README shows works as it stands."""

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


def test_the_python_example_runs() -> None:
    """The example prints the registers, the size of the evidence and the key."""
    (example,) = _blocks("python")
    told = subprocess.run(  # noqa: S603 - our own README
        [sys.executable, "-W", "error", "-c", example], capture_output=True, text=True, check=True
    ).stdout
    mrtd, size, key = told.split()
    assert len(mrtd) == 96
    assert int(size) > 5000
    assert len(key) == 66


def test_the_commands_are_the_makefile_s() -> None:
    """Each `make` word of the README is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z]+)\b", README.read_text()))
    assert {"serve", "test"} <= named <= targets
