"""Every installed C compiler compiles every file of the core without warnings.

A run of the slow tests runs the tests that call the core directly on the core built by clang;
`make compilers` runs all tests of the core, and more examples of each property.
"""

import faulthandler
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

pytest.importorskip("hatchling", reason="hatchling builds the package, and is not here")
pytest.importorskip("cffi")

import build_cffi
from fuzz.core.drivers import CLANGS, NATIVE, asks_python, clang
from tests.processes import run_program
from tests.rigs.checkout import ROOT, copy_checkout, core_tests, run_tests

MOST = os.environ.get("ATTESTKIT_EXAMPLES")  # of each property; set by `make compilers`
OTHERS = ("gcc-12", "gcc-14", "clang-14", "clang-19", "aarch64-linux-gnu-gcc")
# They also warn about code that cffi generates, so they apply to our own files only.
STRICTER = ("-Wcast-qual", "-Wmissing-prototypes", "-Werror")
# For this machine's architecture; the rig of another one compiles with its compilers.
PYTHON = ("-isystem", sysconfig.get_path("include"))


def found(compiler: str) -> str:
    """Return the path of a compiler, or skip."""
    path = shutil.which(compiler)
    if path is None:
        pytest.skip(f"{compiler} is not here")
    return path


def compilers() -> list[str]:
    """Return the names of all compilers; gcc is left out if another name is the same program."""
    paths = {os.path.realpath(path) for path in map(shutil.which, OTHERS) if path}
    default = shutil.which("gcc")
    return [*OTHERS] if default and os.path.realpath(default) in paths else ["gcc", *OTHERS]


@pytest.mark.slow
@pytest.mark.parametrize("compiler", compilers())
def test_no_compiler_warns(compiler: str, tmp_path: Path, subtests: pytest.Subtests) -> None:
    """With the build's flags and stricter ones, a warning is an error."""
    flags = [*build_cffi.FLAGS, build_cffi.FRAMES, *STRICTER, *PYTHON]
    command = [found(compiler), *flags, "-I.", "-c"]
    for source in build_cffi.SOURCES:
        if "aarch64" in compiler and asks_python(source):
            continue
        # Python's slot tables store functions as `void *`, which POSIX allows and ISO C does not.
        pedantic = [] if asks_python(source) else ["-Wpedantic"]
        with subtests.test(source):
            done = run_program(*command, *pedantic, source, "-o", tmp_path / "o", cwd=NATIVE)
            assert not done.returncode, done.stderr


def test_sanitize_fails_without_compiled_core(tmp_path: Path) -> None:
    """`make sanitize` fails if the sanitized core is not in use, since its tests would skip."""
    found("make")
    found("gcc")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\n[ "$1" != -c ] || exec {sys.executable} "$@"\necho "ran $*"\n')
    python.chmod(0o755)
    inherited = {name: text for name, text in os.environ.items() if not name.startswith("MAKE")}
    command = ("make", "-o", ".venv/.dev", "sanitize", f"BIN={tmp_path}")
    done = run_program(*command, cwd=ROOT, env={**inherited, "ATTESTKIT_PURE_PYTHON": "1"})
    assert "ran build_cffi.py" in done.stdout
    assert "ran -m pytest" not in done.stdout
    assert done.returncode != 0


@pytest.mark.slow
def test_core_of_another_compiler(tmp_path: Path) -> None:
    """The core built by clang passes its tests at every level that this CPU supports."""
    faulthandler.cancel_dump_traceback_later()  # the run has its own deadline
    compiler = clang()
    if compiler is None:
        pytest.skip(f"none of {', '.join(CLANGS)} is here")
    checkout = copy_checkout(tmp_path)
    environment = {**os.environ, "CC": compiler, "ATTESTKIT_STRICT_BUILD": "1"}
    environment.pop("ATTESTKIT_SANITIZE", None)
    subprocess.run([sys.executable, "build_cffi.py"], cwd=checkout, env=environment, check=True)
    command = [sys.executable, "-c", "from attestkit import _native as n; print(n.CORE)"]
    said = subprocess.check_output(command, cwd=checkout, env=environment, text=True)
    assert said == "compiled\n"
    tests = core_tests() if MOST else ["-m", "not slow", "tests/native"]
    # The twin in Python is the same with each compiler.
    command = [sys.executable, "-m", "pytest", "-p", "no:benchmark", "-k", "not python]", *tests]
    outcome = run_tests(command, checkout, seconds=600, examples=int(MOST or 20))
    assert outcome.good, outcome.text
    assert outcome.counts["passed"] > 100
