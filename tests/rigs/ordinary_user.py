"""Run Python programs as an unprivileged user with that user's emulators.

Only that user can see the files of such an emulator, so tests run there as a whole.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest

from tests.rigs.emulator import PATIENCE, environment, missing_for_fuse

NOBODY = 65534
# As root in a new mount namespace: make /dev/fuse accessible, as udev does; then change the user. A
# second shell is needed, since root's capabilities are dropped by the first exec.
SCRIPT = """
scratch=$1; shift
if [ "$(stat -c %a /dev/fuse)" != 666 ]; then
    mount -t tmpfs attestkit "$scratch"
    mknod -m 666 "$scratch/fuse" c 10 229
    mount --bind "$scratch/fuse" /dev/fuse
fi
exec setpriv --reuid=65534 --regid=65534 --clear-groups -- sh -c 'exec "$@"' sh "$@"
"""


def _run(
    python: str, *words: str, folder: str, timeout: float
) -> "subprocess.CompletedProcess[str]":
    """Run Python as nobody in a directory of nobody."""
    with tempfile.TemporaryDirectory(prefix="ak") as scratch:
        return subprocess.run(
            [
                *("unshare", "--mount", "--propagation", "private", "--"),
                *("sh", "-euc", SCRIPT, "sh", scratch, python, *words),
            ],
            env={**environment(), "HOME": folder, "TMPDIR": folder},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )


@cache
def find_python_of_nobody() -> str | None:
    """Return a Python that nobody may execute: this one, or the system's of the same version."""
    version = ".".join(map(str, sys.version_info[:2]))
    for python in (sys.executable, f"/usr/bin/python{version}"):
        program = "import attestkit, mfusepy, pytest; open('/dev/fuse').close()"
        if not _run(python, "-c", program, folder="/", timeout=PATIENCE).returncode:
            return python
    return None


def missing_for_nobody() -> str:
    """Return why nobody cannot run an emulator here, or ""."""
    if why := missing_for_fuse():
        return why
    if os.geteuid():
        return "only root can become another user"
    if shutil.which("setpriv") is None or shutil.which("unshare") is None:
        return "setpriv or unshare is missing (Debian: apt install util-linux)"
    return "" if find_python_of_nobody() else "nobody may not use Python or /dev/fuse here"


requires_nobody = pytest.mark.skipif(
    bool(missing_for_nobody()), reason=missing_for_nobody() or "available"
)


def run_python_as_nobody(
    *words: str, timeout: float = PATIENCE
) -> "subprocess.CompletedProcess[str]":
    """Run Python with these arguments as nobody in an empty directory."""
    python = find_python_of_nobody()
    assert python is not None
    with tempfile.TemporaryDirectory(prefix="ak", ignore_cleanup_errors=True) as home:
        os.chown(home, NOBODY, NOBODY)
        return _run(python, *words, folder=home, timeout=timeout)


def run_tests_as_nobody(*files: Path, without: str) -> None:
    """Run the tests of some files as nobody: all pass, and none is skipped."""
    words = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", f"not ({without})")
    done = run_python_as_nobody(*words, *map(str, files), timeout=10 * PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout, done.stdout
