"""The suite with the kernel's files at their own paths, and as an ordinary user.

In the normal test process `tests/rigs/suite` uses guests below a directory. Here it runs in other
processes, by name: no test may be missing or skipped.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.rigs.emulator import PATIENCE, ROOT, emulator, environment, requires_fuse
from tests.rigs.kernel_files.file_calls import MEASUREMENTS
from tests.rigs.kernel_paths import requires_namespace
from tests.rigs.ordinary_user import NOBODY, requires_nobody, run_python_as_nobody
from tests.rigs.suite.guests import OUTER_NAMESPACE, mount_namespace

pytestmark = [pytest.mark.rig, requires_fuse]

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


# -- files of other users --------------------------------------------------------------------------

# Prints the error of each operation below the directory $1, as JSON.
TRY = """
import json, sys
from attestkit.backends import probe_all
from attestkit.backends.configfs_tsm import ConfigfsTsm
from attestkit.backends.linux.paths import KernelPaths
from attestkit.backends.tdx.guest import TdGuest
from attestkit.backends.tdx_ioctl import TdxIoctl
from attestkit.errors import AttestKitError

root = sys.argv[1]
paths = KernelPaths.below(root)
guest = TdGuest(paths)
tries = {
    "configfs_tsm": lambda: ConfigfsTsm(root=root),
    "tdx_ioctl": lambda: TdxIoctl(root=root, generation="D"),
    "qgs": lambda: TdxIoctl(root=root),
    "register": lambda: guest.read_rtmr(3),
    "extend": lambda: guest.extend_rtmr(3, bytes(48)),
    "log": guest.read_event_log,
}
found = {}
for name, attempt in tries.items():
    try:
        attempt()
    except AttestKitError as error:
        found[name] = type(error).__name__, str(error)
    else:
        found[name] = "", ""
found["probes"] = {name: ["", text] for name, text in probe_all(paths).items()}
print(json.dumps(found))
"""
WE = f"this process has uid {NOBODY}, groups {NOBODY}"


def errors_of_nobody(root: Path) -> dict[str, Any]:
    """Return type and text of each operation's error for an ordinary user, or ""."""
    done = run_python_as_nobody("-c", TRY, str(root))
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture
def roots_guest() -> Iterator[Path]:
    """Create a guest of plain files with Linux's modes, owned by root."""
    with tempfile.TemporaryDirectory(prefix="ak") as name:
        root = Path(name)
        root.chmod(0o755)
        for path, mode in MODES.items():
            file = root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            if mode == 0o755:
                file.mkdir()
            else:
                file.write_bytes(bytes(48))
                file.chmod(mode)
        for folder in root.rglob("*/"):
            if folder.is_dir():
                folder.chmod(0o755)
        yield root


MODES = {
    "sys/kernel/config/tsm/report": 0o755,
    "dev/tdx_guest": 0o600,
    f"{MEASUREMENTS}/rtmr3:sha384": 0o644,
    "sys/firmware/acpi/tables/CCEL": 0o400,
    "etc/tdx-attest.conf": 0o600,
}


@requires_nobody
def test_ordinary_user_errors_name_mode_and_owner(roots_guest: Path) -> None:
    """Permitted operations succeed."""
    found = errors_of_nobody(roots_guest)

    def check(name: str, path: str, kind: str = "BackendUnavailableError") -> None:
        error_type, text = found[name]
        assert error_type == kind
        assert "EACCES" in text
        mode = f"{roots_guest / path} has mode {MODES[path]:04o}, owner uid 0, group 0; {WE}"
        assert mode in text

    check("configfs_tsm", "sys/kernel/config/tsm/report")
    check("tdx_ioctl", "dev/tdx_guest")
    check("qgs", "dev/tdx_guest")
    check("extend", f"{MEASUREMENTS}/rtmr3:sha384")
    check("log", "sys/firmware/acpi/tables/CCEL")
    assert found["register"] == ["", ""]
    assert found["probes"]["configfs_tsm"][1] == found["configfs_tsm"][1]
    assert found["probes"]["tdx_ioctl"][1] == found["tdx_ioctl"][1]


@requires_nobody
def test_ordinary_user_accessible_device_needs_configuration(roots_guest: Path) -> None:
    """A udev rule may open the device, while the configuration is root's."""
    (roots_guest / "dev/tdx_guest").chmod(0o666)
    kind, text = errors_of_nobody(roots_guest)["qgs"]
    assert kind == "BackendUnavailableError"
    assert f"{roots_guest}/etc/tdx-attest.conf has mode 0600, owner uid 0, group 0; {WE}" in text


@requires_nobody
def test_ordinary_user_inaccessible_paths_are_reported() -> None:
    """Even owner and mode cannot be read, as the errors state."""
    with emulator() as machine:
        machine.root.parent.chmod(0o755)
        found = errors_of_nobody(machine.root)
    for name in ("configfs_tsm", "tdx_ioctl", "qgs", "register", "extend", "log"):
        kind, text = found[name]
        assert kind == "BackendUnavailableError", text
        assert str(machine.root) in text
        assert "EACCES" in text
        assert f"failed (EACCES, permission denied); {WE}" in text
