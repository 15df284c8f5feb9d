"""Outside of Linux all modules import, evidence is verified, and other calls name their need."""

import os
import sys
from pathlib import Path

import pytest

from tests.processes import run_program

ROOT = Path(__file__).resolve().parents[2]
SAID = """\
<AttestationResult dstack-tdx, UpToDate, simulated>
configfs_tsm is unavailable
tdx_ioctl is unavailable
dstack_agent is unavailable
None is unavailable
O_PATH: missing on darwin; use Linux
left behind: []
"""


@pytest.mark.slow
@pytest.mark.parametrize("core", ["0", "1"], ids=["compiled", "plain"])
def test_package_works_without_linux_only_modules(core: str) -> None:
    """With the modules of macOS every import works, and each refusal names its reason."""
    without = ("DSTACK_SIMULATOR_ENDPOINT", "ATTESTKIT_BACKEND")
    kept = {name: value for name, value in os.environ.items() if name not in without}
    done = run_program(
        sys.executable,
        "-m",
        "tests.packaging.like_macos",
        cwd=ROOT,
        env={**kept, "ATTESTKIT_PURE_PYTHON": core},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == SAID
