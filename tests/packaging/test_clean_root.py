"""The package installs and runs offline on a system that only has Python.

The commands are those of docs/install.md and docs/start.md. The system is created from the
distribution's packages in a folder.
"""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, read_blocks
from tests.docs.session import Installed, run_blocks
from tests.packaging.clean_root import CleanRoot, make_root, why_not
from tests.packaging.conftest import Dist
from tests.packaging.environments import fetch, interpreter

INSTALL = read_blocks((ROOT / "docs/install.md").read_text())
START = read_blocks((ROOT / "docs/start.md").read_text())
EXTRAS = "serve cli fuse fleet gpu client"
ALSO = "hatchling cffi setuptools"
WHEEL = "pip install --no-index --find-links wheels 'attestkit"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "it can be had"),
]


def page_says(words: str) -> str:
    """Return the commands of docs/install.md that begin with these words."""
    [text] = [block.text for block in INSTALL if block.text.startswith(words)]
    return text.strip()


@pytest.fixture
def clean(dist: Dist, tmp_path: Path) -> Iterator[CleanRoot]:
    """The system, with the files that the page transfers; it is deleted at the end."""
    try:
        clean = make_root(tmp_path / "root")
        carry(dist, clean, tmp_path)
        yield clean
    finally:
        shutil.rmtree(tmp_path / "root", ignore_errors=True)


def carry(dist: Dist, clean: CleanRoot, folder: Path) -> None:
    """Download all packages as the page says, on a machine with a network, and copy them."""
    online = folder / "online"
    shutil.copytree(dist.wheel.parent, online / "dist")
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    python = str(interpreter(clean.version()))
    text = f"{page_says('pip download')} dstack-sdk pytest {ALSO}"
    options = {"PIP_PYTHON": python, "PIP_NO_CACHE_DIR": "1", "PIP_PROGRESS_BAR": "off"}
    fetch("sh", "-euc", text, folder=online, PATH=path, **options)
    there = clean.root / "srv"
    shutil.copytree(online / "wheels", there / "wheels")
    shutil.copytree(online / "dist", there / "dist")
    shutil.copy(ROOT / "tests/packaging/installed.py", there)


def check(clean: CleanRoot, installed: Installed, core: str, extras: str = "") -> None:
    """Run the checks of an installed package in an empty folder."""
    clean.run(f"mkdir empty; cd empty; {installed.python} ../installed.py {core} {extras}")
    clean.run("rm -r empty")


def start(installed: Installed, folder: Path) -> None:
    """Run the five-minute start, except for the block that needs curl."""
    folder.mkdir()
    blocks = [block for block in START if "curl " not in block.text]
    assert len(blocks) == len(START) - 1
    ran = run_blocks(blocks, folder, installed)
    assert sum(len(one.answers) for one in ran) > 10


def test_install_needs_python_only(
    clean: CleanRoot, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    """The wheel, the pure wheel and the sources install without a compiler."""
    for program in ("cc", "gcc", "clang", "curl", "pip"):
        assert clean.run(f"command -v {program} || echo none") == "none\n"
    with subtests.test("the wheel, by the page's words"):
        installed = clean.new_environment("compiled")
        clean.run(f". compiled/bin/activate; {page_says(WHEEL)} dstack-sdk pytest")
        check(clean, installed, "compiled", EXTRAS)
        start(installed, tmp_path / "start")
    # One pip is enough: it takes longer to install than these do.
    path = "PATH=$PATH:/srv/compiled/bin"
    with subtests.test("the plain wheel"):
        installed = clean.new_environment("plain", "--without-pip")
        offline = "pip --python plain install --no-index --find-links wheels"
        clean.run(f'{path}; {offline} "$(echo dist/pure/*.whl)[serve,cli]"')
        check(clean, installed, "python", "serve cli")
    with subtests.test("the sources, by the page's words"):
        installed = clean.new_environment("built", "--without-pip")
        words = page_says(f"pip install --no-index --find-links wheels {ALSO}")
        path = f"export PIP_PYTHON=/srv/built; {path}"
        clean.run(f". built/bin/activate; {path}; cp dist/*.tar.gz .; {words}")
        check(clean, installed, "python")
