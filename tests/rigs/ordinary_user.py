"""Run Python programs as a user who is not root, with that user's own emulators.

What an emulator of that user shows nobody else sees, root neither: tests run there as a whole.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache

import pytest

from tests.rigs.emulator import PATIENCE, environment, missing

NOBODY = 65534
# Root, in a mount namespace of its own: /dev/fuse for everybody, as udev makes it; then nobody.
# A second shell, for root's rights go with the first program that nobody runs.
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
    """Run a Python as nobody in a folder of nobody's."""
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
def python_of_nobody() -> str | None:
    """Return a Python that nobody may run: this one, or the system's of the same version."""
    version = ".".join(map(str, sys.version_info[:2]))
    for python in (sys.executable, f"/usr/bin/python{version}"):
        program = "import attestkit, mfusepy, pytest; open('/dev/fuse').close()"
        if not _run(python, "-c", program, folder="/", timeout=PATIENCE).returncode:
            return python
    return None


def why_not() -> str:
    """Return why nobody cannot run an emulator here, nothing if that is possible."""
    if why := missing():
        return why
    if os.geteuid():
        return "only root can become another user"
    if shutil.which("setpriv") is None or shutil.which("unshare") is None:
        return "setpriv or unshare is not here (Debian: apt install util-linux)"
    return "" if python_of_nobody() else "nobody may not use Python or /dev/fuse here"


requires_nobody = pytest.mark.skipif(bool(why_not()), reason=why_not() or "it can be had")


def run_python_as_nobody(
    *words: str, timeout: float = PATIENCE
) -> "subprocess.CompletedProcess[str]":
    """Run Python with these arguments as nobody, to its end, in an empty folder of nobody's.

    For tests: `"-m", "pytest", "-p", "no:cacheprovider"` and absolute paths.
    """
    python = python_of_nobody()
    assert python is not None
    with tempfile.TemporaryDirectory(prefix="ak", ignore_cleanup_errors=True) as home:
        os.chown(home, NOBODY, NOBODY)
        return _run(python, *words, folder=home, timeout=timeout)
