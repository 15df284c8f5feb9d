"""Environments of NVIDIA's verifiers: from PyPI, in the folder of the rigs' downloads."""

import os
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.packaging.environments import alone, interpreter, own_environment
from tests.rigs.apt import cache_folder

PYTHON: Final = "3.11"
LOCAL_GPU_VERIFIER: Final = (
    "nv-local-gpu-verifier==2.7.3",
    "signxml==3.2.0",
    "lxml==4.9.4",
    "pyOpenSSL==24.2.1",
    "nvidia-ml-py==12.550.52",
)
_SECONDS: Final = 900


def make_environment(name: str, packages: tuple[str, ...]) -> Path:
    """Return the Python of an environment with packages, which is made once; skip if it cannot be.

    Args:
        name: Folder in the cache.
        packages: Requirements of pip.
    """
    folder = cache_folder() / "nvidia" / name
    folder.mkdir(parents=True, exist_ok=True)
    python, made = folder / "env/bin/python", folder / "made"
    wanted = "\n".join(packages)
    with alone(folder / "lock"):
        if not made.exists() or made.read_text() != wanted:
            _install(folder, python, packages)
            made.write_text(wanted)
    return python


def _install(folder: Path, python: Path, packages: tuple[str, ...]) -> None:
    base = interpreter(PYTHON)
    for command in (
        [str(base), "-m", "venv", "--clear", str(folder / "env")],
        [str(python), "-m", "pip", "install", "--quiet", *packages],
    ):
        done = subprocess.run(
            command,
            env=own_environment(HOME=os.environ.get("HOME", "/")),
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"{packages[0]} cannot be installed: {done.stderr[-300:]}")
