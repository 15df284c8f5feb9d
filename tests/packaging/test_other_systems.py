"""Where it is no Linux all can be imported, evidence judged, and the rest says what it needs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SAID = """\
<AttestationResult dstack-tdx, UpToDate, simulated>
configfs_tsm is unavailable
tdx_ioctl is unavailable
dstack_agent is unavailable
None is unavailable
this needs O_PATH, by which nobody puts another file in the place of ours, and which \
darwin has not: use Linux
left behind: []
"""


@pytest.mark.slow
@pytest.mark.parametrize("core", ["0", "1"], ids=["compiled", "plain"])
def test_without_what_is_only_in_linux(core: str) -> None:
    """Python's modules are as macOS has them: every import works, and a refusal has its reason."""
    without = ("DSTACK_SIMULATOR_ENDPOINT", "ATTESTKIT_BACKEND")
    kept = {name: value for name, value in os.environ.items() if name not in without}
    done = subprocess.run(
        [sys.executable, "-m", "tests.packaging.like_macos"],
        cwd=ROOT,
        env={**kept, "ATTESTKIT_PURE_PYTHON": core},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == SAID
