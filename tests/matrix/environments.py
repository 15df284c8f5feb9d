"""Interpreters, and environments with exactly the packages of a cell, made by uv."""

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from tests.records import ROOT
from tests.vectors import HAVE_SHARED, SHARED

PYTHONS = ("3.10", "3.11", "3.12", "3.13")
_UV = ROOT / ".tools" / "bin" / "uv"
COPIED = ("tests", "docs", "pyproject.toml", "README.md", "CHANGELOG.md", "Makefile")
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "node_modules", ".*")


class CannotInstallError(Exception):
    """The packages do not exist for this interpreter, or conflict."""


def environ(**extra: str) -> dict[str, str]:
    """Return the environment without variables that make an interpreter find other packages."""
    ours = ("PYTHON", "ATTESTKIT_", "DSTACK_", "TAPPD_", "VIRTUAL_ENV", "PYTEST_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, "UV_PYTHON_DOWNLOADS": "never", **extra}


def run(
    words: Sequence[str | Path], *, cwd: Path = ROOT, stdin: str = ""
) -> "subprocess.CompletedProcess[str]":
    """Run a command and return its outcome."""
    return subprocess.run(
        words,
        cwd=cwd,
        env=environ(),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@cache
def interpreter(version: str) -> Path | None:
    """Return an interpreter of a version, from PATH or from pyenv; None if it is missing."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = shutil.which(f"python{version}")
    others = [Path(found)] if found else []
    for program in [*sorted(pyenv.glob(f"{version}.*/bin/python")), *others]:
        told = run([program, "-c", "import sys; print(sys.version)"])
        if told.returncode == 0 and told.stdout.startswith(f"{version}."):
            return program
    return None


def build_wheel(folder: Path) -> Path:
    """Build the wheel of this tree, unless `folder` contains it."""
    if found := sorted(folder.glob("*.whl")):
        return found[0]
    done = run([_UV, "build", "--quiet", "--wheel", "--out-dir", folder, ROOT])
    if done.returncode:
        raise CannotInstallError(f"no wheel of this tree: {done.stderr[-500:]}")
    [wheel] = folder.glob("*.whl")
    return wheel


def make(folder: Path, version: str) -> Path:
    """Make an empty environment; return its interpreter."""
    program = interpreter(version)
    if program is None:
        raise CannotInstallError(f"no Python {version} here")
    _uv("venv", "--python", str(program), str(folder))
    return folder / "bin" / "python"


def install(python: Path, *wanted: str, lowest: bool = False) -> None:
    """Install the newest releases of packages; with `lowest`, the oldest allowed ones.

    Their dependencies are the newest allowed in both cases.
    """
    resolution = "lowest-direct" if lowest else "highest"
    where = ("--python", str(python), "--only-binary", ":all:")  # a missing wheel is an error
    _uv("pip", "install", *where, "--resolution", resolution, *wanted)


def installed(python: Path) -> dict[str, str]:
    """Return the version of each package in an environment."""
    listed = json.loads(_uv("pip", "list", "--format", "json", "--python", str(python)))
    return {each["name"]: each["version"] for each in listed}


def has_wheels(platform: str, python: str, wanted: Sequence[str]) -> bool:
    """Return whether `wanted` and all dependencies have wheels for a platform."""
    there = ("--python-platform", platform, "--python-version", python)
    words = ("pip", "compile", "--quiet", *there, "--only-binary", ":all:", "-")
    return run([_UV, *words], stdin="\n".join(wanted)).returncode == 0


def remove(folder: Path) -> None:
    """Remove a cell's folder with its installed packages."""
    shutil.rmtree(folder)


def copy_tests(folder: Path) -> Path:
    """Return a copy of the tests in `folder`, without the package, to test the installed one."""
    place = folder / "tree"
    place.mkdir()
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, place / name, ignore=_LEFT_OUT)
        else:
            shutil.copy(ROOT / name, place)
    if HAVE_SHARED:
        (folder / "shared").symlink_to(SHARED)
    return place


def _uv(*words: str) -> str:
    done = run([_UV, *words])
    if done.returncode:
        raise CannotInstallError(" ".join(done.stderr.split())[-400:])
    return done.stdout
