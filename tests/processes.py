"""Run a program to its end, and read what it prints."""

import subprocess
from pathlib import Path
from typing import Any


def run_program(
    *words: str | Path, check: bool = False, **more: Any
) -> "subprocess.CompletedProcess[str]":
    """Return exit code and output of a program; `more` are arguments of subprocess.run."""
    return subprocess.run(words, check=check, **{"capture_output": True, "text": True, **more})
