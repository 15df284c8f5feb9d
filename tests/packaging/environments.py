"""Helpers of the packaging tests: interpreters, fresh environments, tools."""

import faulthandler
import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT
from tests.rigs.apt import cache_folder

TOOLS = ROOT / ".tools"
VERSIONS = ("3.10", "3.11", "3.12", "3.13")
NO_NETWORK = ("unshare", "--user", "--map-root-user", "--net")
# Not "no matching distribution": that also follows from a requirement that does not exist.
_NOT_REACHED = re.compile(
    r"Temporary failure in name|NewConnection|Network is unreachable|Connection refused"
    r"|ConnectTimeout|error sending request|dns error"
)
_SECONDS = 900  # for one program


def own_environment(**more: str) -> dict[str, str]:
    """Return only the environment variables that pip and uv need on this machine."""
    kept = ("PIP_", "UV_", "HTTP", "http", "SSL_")
    keep = {name: value for name, value in os.environ.items() if name.startswith(kept)}
    return {**keep, "PATH": os.defpath, "LC_ALL": "C.UTF-8", **more}


def run(*words: str | Path, folder: Path, **environment: str) -> str:
    """Return a program's output on both streams."""
    done = _done(*words, folder=folder, **environment)
    assert done.returncode == 0, done.stdout
    return done.stdout


def fetch(*words: str | Path, folder: Path, **environment: str) -> str:
    """Run a command that needs a package index; skip if none is reachable."""
    done = _done(*words, folder=folder, **environment)
    if done.returncode and (found := _NOT_REACHED.search(done.stdout)):
        pytest.skip(f"no packages to be had: {found[0]}")
    assert done.returncode == 0, done.stdout
    return done.stdout


def _done(
    *words: str | Path, folder: Path, **environment: str
) -> "subprocess.CompletedProcess[str]":
    faulthandler.cancel_dump_traceback_later()  # the command has its own deadline
    return subprocess.run(
        words,
        cwd=folder,
        env=own_environment(HOME=str(folder), **environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_SECONDS,
        check=False,
    )


def interpreter(version: str) -> Path:
    """Return a Python of this version with venv, or skip."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    found = [Path(sys.base_prefix, "bin", f"python{version}")]
    found += sorted(pyenv.glob(f"versions/{version}.*/bin/python{version}"))
    found += [Path(folder, f"python{version}") for folder in ("/usr/local/bin", "/usr/bin")]
    for python in found:
        if python.exists():
            return python
    pytest.skip(f"no Python {version} is here")


def new_environment(folder: Path, python: Path) -> Path:
    """Return the interpreter of a new virtual environment without pip, whose set-up takes long."""
    run(python, "-m", "venv", "--without-pip", folder / "env", folder=folder)
    return folder / "env/bin/python"


def pip_of(python: Path) -> tuple[str | Path, ...]:
    """Return the command of the tests' pip for an environment."""
    return sys.executable, "-m", "pip", "--python", python


def install(python: Path, *words: str | Path) -> None:
    """Install wheels into an environment with uv, which takes a tenth of pip's time, or skip."""
    uv = Path(sys.executable).with_name("uv")
    if not uv.exists():
        pytest.skip("uv is not here")
    cache = os.environ.get("UV_CACHE_DIR") or str(cache_folder().with_name("uv"))
    options = ("--quiet", "--only-binary", ":all:", "--python", python)
    folder = python.parents[2]
    fetch(uv, "pip", "install", *options, *words, folder=folder, UV_CACHE_DIR=cache)


@contextmanager
def alone(name: Path) -> Iterator[None]:
    """Hold a file's lock, which one worker has at a time."""
    with name.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def tool(name: str) -> Path:
    """Return an environment of .tools, which uv makes if make has not: pip takes 20 s longer."""
    TOOLS.mkdir(exist_ok=True)
    place = TOOLS / name
    with alone(TOOLS / "tests.lock"):
        lock, made = ROOT / f"requirements/{name}.lock", place / ".made"
        if not made.exists() or made.stat().st_mtime < lock.stat().st_mtime:
            run(base_python(), "-m", "venv", "--clear", "--without-pip", place, folder=TOOLS)
            install(place / "bin/python", "--require-hashes", "-r", lock)
            made.touch()
    return place


def base_python() -> Path:
    """Return the base interpreter of the tests' environment."""
    return Path(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}")


def without_network(folder: Path) -> tuple[str, ...]:
    """Return the command prefix that disables the network, or skip."""
    if shutil.which(NO_NETWORK[0]) is None:
        pytest.skip("unshare is not here")
    if subprocess.run([*NO_NETWORK, "true"], cwd=folder, check=False).returncode:
        pytest.skip("no network namespaces for us here")
    return NO_NETWORK
