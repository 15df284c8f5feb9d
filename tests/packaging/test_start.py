"""The five-minute start works as documented with only the wheel installed."""

from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, Block, read_blocks
from tests.docs.session import Installed, run_blocks, why_not
from tests.packaging.conftest import Dist
from tests.packaging.environments import VERSIONS, Installer, interpreter

START = ROOT / "docs/start.md"
WHICH = Block(0, "sh", "python -c 'import attestkit; print(attestkit.__file__)'\n", {})

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "it can be had"),
]


@pytest.mark.parametrize("version", [VERSIONS[0], VERSIONS[-1]])
def test_start_page_runs_as_documented(
    version: str, dist: Dist, uv: Installer, tmp_path: Path
) -> None:
    """Each command prints the documented output, with the oldest Python and the newest."""
    python = uv.new_environment(tmp_path / "env", interpreter(version))
    uv.install(python, f"{dist.wheel}[all]", "dstack-sdk", "pytest")
    folder = tmp_path / "session"
    folder.mkdir()
    blocks = [WHICH, *read_blocks(START.read_text())]
    ran = run_blocks(blocks, folder, Installed(python))
    assert ran[0].printed.startswith(f"{tmp_path}/env/lib/python{version}/site-packages/")
    assert sum(len(one.answers) for one in ran) > 10
