"""The emulator in a mount namespace and for ordinary users."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from attestkit.quote import Quote
from tests.rigs.emulator import (
    PATIENCE,
    ROOT,
    Emulator,
    emulator,
    environment,
    missing_for_fuse,
    requires_fuse,
)
from tests.rigs.kernel_paths import requires_namespace, run_at_kernel_paths
from tests.rigs.ordinary_user import requires_nobody, run_python_as_nobody

pytestmark = [pytest.mark.rig, requires_fuse]

COVERED = ("/dev", "/etc", "/proc", "/run", "/sys")  # parents of the kernel's paths

# Selected tests: entries, registers, both types of ioctl, an old driver that uses pointers.
SELECTION = (
    "test_fs_quote_verifies or test_fs_write_extends or test_fs_get_report0"
    " or test_fs_inblob_write_counts or test_fs_runtime_log or test_generation_d_driver"
    " or test_fs_killed_client"
)
TESTS = [
    *("-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", SELECTION),
    *(
        str(ROOT / "tests/rigs/kernel_files" / name)
        for name in ("test_file_calls.py", "test_other_guests.py")
    ),
]


@pytest.fixture(scope="module")
def machine() -> Iterator[Emulator]:
    """Run a machine with all features."""
    with emulator(qgs_port=4050) as machine:
        yield machine


def check_passed(done: "subprocess.CompletedProcess[str]") -> None:
    """Check that the selected tests passed."""
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^1[0-9] passed, \d+ deselected in", done.stdout, re.MULTILINE), done.stdout


@requires_namespace
def test_namespace_has_files_at_kernel_paths(machine: Emulator) -> None:
    """A shell gets a quote."""
    script = """
        cat /proc/sys/kernel/random/boot_id /etc/tdx-attest.conf
        ls /sys/devices/virtual/misc/tdx_guest/measurements
        head -c 4 /sys/firmware/acpi/tables/CCEL; echo
        wc -c < /sys/firmware/acpi/tables/data/CCEL
        ls -A /run
        [ -e /dev/tdx_guest ] && [ -c /dev/null ] && [ -d /dev/fd/ ] && getent passwd 0
        cd /sys/kernel/config/tsm/report
        mkdir a; printf %064d 5 > a/inblob; cat a/outblob > "$1"; rmdir a
    """
    target = machine.root.parent / "quote"
    done = run_at_kernel_paths(machine, ["sh", "-euc", script, "sh", str(target)])
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == machine.boot_id
    assert "port = 4050" in lines
    assert "rtmr3:sha384" in lines
    assert lines[-3:-1] == ["CCEL", "65536"]
    assert lines[-1].startswith("root:")
    assert Quote.parse(target.read_bytes()).report_data == b"%064d" % 5


def _mounts_of(machine: Emulator) -> list[str]:
    """Return the mounts of `machine`, and those at the kernel's paths."""
    places = (*COVERED, str(machine.root.parent))
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    return [line for line in mounts if line.split()[1].startswith(places)]


@requires_namespace
def test_namespace_leaves_nothing_outside(machine: Emulator) -> None:
    """The real machine has no new node, file or mount."""
    there = [path for path in ("/dev/tdx_guest", "/etc/tdx-attest.conf") if Path(path).exists()]
    script = "echo new > /etc/file-of-a-test; echo new > /run/file-of-a-test"
    before = _mounts_of(machine)
    done = run_at_kernel_paths(machine, ["sh", "-euc", script])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert _mounts_of(machine) == before
    assert not Path("/etc/file-of-a-test").exists()
    assert not Path("/run/file-of-a-test").exists()
    assert there == [p for p in ("/dev/tdx_guest", "/etc/tdx-attest.conf") if Path(p).exists()]


@requires_namespace
def test_namespace_returns_the_programs_exit_code(machine: Emulator) -> None:
    """The wrapper adds nothing."""
    assert run_at_kernel_paths(machine, ["sh", "-c", "exit 7"]).returncode == 7


@requires_namespace
def test_namespace_of_old_kernel_lacks_newer_files() -> None:
    """Files of newer kernels are absent."""
    with emulator(kernel="6.6") as machine:
        script = "ls /sys/kernel/config /sys/devices/virtual/misc/tdx_guest /dev/tdx_guest"
        done = run_at_kernel_paths(machine, ["sh", "-c", script])
    assert done.stdout.split() == [
        *("/dev/tdx_guest", "/sys/devices/virtual/misc/tdx_guest:", "dev")
    ]
    assert "/sys/kernel/config" in done.stderr


@requires_nobody
def test_emulator_works_for_ordinary_user() -> None:
    """The selected tests pass for a user's own mount."""
    check_passed(run_python_as_nobody(*TESTS, timeout=2 * PATIENCE))


@requires_nobody
def test_emulator_is_invisible_to_other_users(machine: Emulator) -> None:
    """Access to root's mount is denied."""
    machine.root.parent.chmod(0o755)
    program = "import os, sys; os.listdir(sys.argv[1])"
    done = run_python_as_nobody("-c", program, str(machine.root))
    assert f"PermissionError: [Errno 13] Permission denied: '{machine.root}'" in done.stderr


def _no_user_namespace() -> str:
    if why := missing_for_fuse():
        return why
    words = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", ": < /dev/fuse"]
    try:
        done = subprocess.run(words, check=False, capture_output=True, text=True)
    except OSError as error:
        return str(error)
    return done.stderr.strip()


@pytest.mark.skipif(bool(_no_user_namespace()), reason=_no_user_namespace() or "there are some")
def test_emulator_works_in_user_namespace(tmp_path: Path) -> None:
    """The user is root there, like in a rootless container."""
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", sys.executable, *TESTS],
        env={**environment(), "TMPDIR": str(tmp_path), "HOME": os.devnull},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )
    check_passed(done)
