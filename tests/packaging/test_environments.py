"""`pip install dist/*.whl` in fresh environments of every Python here, with each extra alone."""

import re
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT
from tests.packaging.conftest import Dist
from tests.packaging.environments import (
    VERSIONS,
    Installer,
    interpreter,
    new_environment,
    pip_install,
    run,
)

pytestmark = pytest.mark.slow

CHECK = ROOT / "tests/packaging/installed.py"
EXTRAS = ("", "serve", "verify", "cli", "fuse", "fleet", "all")


def check(python: Path, core: str, extras: str) -> None:
    """Run what an installed wheel must do, in an empty folder."""
    folder = python.parents[2] / "empty"
    folder.mkdir()
    named = ["serve", "verify", "cli", "fuse", "fleet"] if extras == "all" else extras.split()
    run(python, CHECK, core, *named, folder=folder)


@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("version", VERSIONS)
def test_the_wheel(version: str, extra: str, dist: Dist, uv: Installer, tmp_path: Path) -> None:
    """It installs, runs with its core, does what the extra is for, and names those it lacks."""
    python = uv.new_environment(tmp_path / "env", interpreter(version))
    uv.install(python, f"{dist.wheel}[{extra}]" if extra else dist.wheel)
    uv.check(python)
    check(python, "compiled", extra)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_plain_wheel(version: str, dist: Dist, uv: Installer, tmp_path: Path) -> None:
    """The wheel for all other machines does the same, in Python."""
    python = uv.new_environment(tmp_path / "env", interpreter(version))
    uv.install(python, f"{dist.pure}[verify]")
    check(python, "python", "verify")


def test_the_distribution_s_own(dist: Dist, tmp_path: Path) -> None:
    """Debian's Python takes it from pip, as those do that were built elsewhere."""
    python = Path("/usr/bin/python3")
    if not python.exists():
        pytest.skip("no /usr/bin/python3 is here")
    run(python, "-c", "import sys; assert sys.version_info >= (3, 10)", folder=tmp_path)
    environment = new_environment(tmp_path, python)
    pip_install(environment, f"{dist.wheel}[all]")
    run(environment, "-m", "pip", "check", folder=tmp_path)
    check(environment, "compiled", "all")


def test_pip_takes_what_make_dist_made(dist: Dist, tmp_path: Path) -> None:
    """`pip install dist/*.whl` is one wheel; with the plain one it would be refused."""
    python = new_environment(tmp_path, interpreter(VERSIONS[-1]))
    pip = f"{python} -m pip install --no-deps --no-index"
    run("sh", "-c", f"{pip} {dist.wheel.parent}/*.whl", folder=tmp_path)
    both = f"{pip} {dist.wheel.parent}/*.whl {dist.wheel.parent}/pure/*.whl"
    with pytest.raises(AssertionError, match="conflict"):
        run("sh", "-c", both, folder=tmp_path)


def test_uninstalled(dist: Dist, tmp_path: Path) -> None:
    """Nothing of it stays behind."""
    python = new_environment(tmp_path, interpreter(VERSIONS[-1]))
    pip_install(python, "--no-deps", dist.wheel)
    run(python, "-c", "import attestkit.errors", folder=tmp_path)
    said = run(python, "-m", "pip", "uninstall", "--yes", "attestkit", folder=tmp_path)
    assert re.search(r"Successfully uninstalled attestkit-", said)
    assert not list((tmp_path / "env").rglob("*attestkit*"))
