"""The emulator in a user namespace, like in a rootless container."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rigs.emulator import PATIENCE, environment, missing_for_fuse
from tests.rigs.unshare import last_error_line

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
UNSHARE = ("unshare", "--user", "--map-root-user", "--mount")
# Entries, registers, both types of ioctl, and an old driver that uses pointers.
SELECTION = (
    "test_fs_quote_verifies or test_fs_write_extends or test_fs_get_report0"
    " or test_fs_inblob_write_counts or test_generation_d_driver or test_fs_killed_client"
)


def _missing() -> str:
    return missing_for_fuse() or last_error_line([*UNSHARE, "sh", "-c", ": < /dev/fuse"])


@pytest.mark.slow
@pytest.mark.rig
@pytest.mark.skipif(bool(_missing()), reason=_missing() or "available")
def test_emulator_works_in_user_namespace(tmp_path: Path) -> None:
    """The selected tests pass for a user that is root only there."""
    files = [str(HERE / name) for name in ("test_file_calls.py", "test_other_guests.py")]
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", SELECTION]
    done = subprocess.run(
        [*UNSHARE, *words, *files],
        env={**environment(), "TMPDIR": str(tmp_path), "HOME": os.devnull},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^10 passed, \d+ deselected in", done.stdout, re.MULTILINE), done.stdout
