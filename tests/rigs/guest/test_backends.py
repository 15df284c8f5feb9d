"""The suite with the kernel's files at their own paths, and as an ordinary user.

In the normal test process `tests/rigs/suite` uses guests below a directory. Here it runs in other
processes, by name: no test may be missing or skipped.
"""

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.rigs.emulator import PATIENCE, ROOT, emulator, environment, requires_fuse
from tests.rigs.kernel_paths import requires_namespace
from tests.rigs.ordinary_user import NOBODY, requires_nobody, run_python_as_nobody
from tests.rigs.suite.guests import OUTER_NAMESPACE, mount_namespace

pytestmark = [pytest.mark.slow, pytest.mark.rig, requires_fuse]

SUITE = "tests/rigs/suite"
# Without unused plugins; pyproject.toml has an option of asyncio's.
PYTEST = (
    *("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:benchmark"),
    *("-p", "no:hypothesispytest", f"--rootdir={ROOT}", f"--config-file={ROOT}/pyproject.toml"),
)


@cache
def collect_names() -> tuple[str, ...]:
    """Return the names of all tests in the suite."""
    done = subprocess.run(
        [sys.executable, *PYTEST, "--collect-only", SUITE],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    found = tuple(line for line in done.stdout.splitlines() if line.startswith(f"{SUITE}/"))
    assert found, done.stdout + done.stderr
    return found


def check_passed(done: "subprocess.CompletedProcess[str]") -> None:
    """Check that all tests of the suite passed, and no others ran."""
    expected, text = collect_names(), f"{done.stdout}\n{done.stderr}"
    assert done.returncode == 0, text
    passed = re.findall(rf"^PASSED (?:\S*/)?({SUITE}/.+)$", done.stdout, re.MULTILINE)
    assert sorted(passed) == sorted(expected), text
    assert re.search(rf"^{len(expected)} passed in ", done.stdout, re.MULTILINE), text


@requires_namespace
@pytest.mark.slow
def test_suite_passes_at_kernel_paths(tmp_path: Path) -> None:
    """In a mount namespace, without configured paths."""
    # pytest processes clean up the common directory, which would cause a warning in another.
    own = [f"--basetemp={tmp_path / 'of-its-own'}"]
    unshare = ("unshare", "--mount", "--propagation", "private", "--")
    done = subprocess.run(
        [*unshare, sys.executable, *PYTEST, *own, "-rA", "--show-capture=no", SUITE],
        env={**environment(), OUTER_NAMESPACE: mount_namespace()},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE,
        check=False,
    )
    check_passed(done)


@requires_nobody
@pytest.mark.slow
def test_suite_passes_as_ordinary_user() -> None:
    """The user has mounted the guests' files."""
    identity = run_python_as_nobody("-c", "import os; print(os.getresuid(), os.getgroups())")
    assert identity.stdout == f"{(NOBODY,) * 3} []\n"
    done = run_python_as_nobody(
        *PYTEST, "-rA", "--show-capture=no", str(ROOT / SUITE), timeout=3 * PATIENCE
    )
    check_passed(done)


# -- files of another user -------------------------------------------------------------------------

# Prints the error of each operation below the directory $1.
TRY = """
import sys
from attestkit.backends.configfs_tsm import ConfigfsTsm
from attestkit.backends.linux.kernel_paths import KernelPaths
from attestkit.backends.tdx.rtmr import TdGuest
from attestkit.backends.tdx_ioctl import TdxIoctl
from attestkit.errors import BackendUnavailableError

root = sys.argv[1]
guest = TdGuest(KernelPaths.below(root))
for attempt in (
    lambda: ConfigfsTsm(root=root),
    lambda: TdxIoctl(root=root, generation="D"),
    lambda: TdxIoctl(root=root),
    lambda: guest.read_rtmr(3),
    lambda: guest.extend_rtmr(3, bytes(48)),
    guest.read_event_log,
):
    try:
        attempt()
    except BackendUnavailableError as error:
        print(error)
"""


@pytest.mark.slow
@requires_nobody
def test_ordinary_user_inaccessible_paths_are_reported() -> None:
    """Even owner and mode of files in root's mount cannot be read, as the errors state."""
    with emulator() as machine:
        machine.root.parent.chmod(0o755)
        done = run_python_as_nobody("-c", TRY, str(machine.root))
    assert done.stderr == ""
    errors = done.stdout.splitlines()
    assert len(errors) == 6
    for error in errors:
        assert str(machine.root) in error
        expected = f"this process has uid {NOBODY}, groups {NOBODY}"
        assert f"failed (EACCES, permission denied); {expected}" in error
