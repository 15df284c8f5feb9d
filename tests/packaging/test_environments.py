"""`pip install dist/*.whl` in fresh environments of every installed Python, per extra."""

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
    """Run the checks of an installed wheel in an empty folder."""
    folder = python.parents[2] / "empty"
    folder.mkdir()
    named = ["serve", "verify", "cli", "fuse", "fleet"] if extras == "all" else extras.split()
    run(python, CHECK, core, *named, folder=folder)


@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("version", VERSIONS)
def test_wheel_installs_and_runs(
    version: str, extra: str, dist: Dist, uv: Installer, tmp_path: Path
) -> None:
    """The wheel installs, runs with its core, supports the extra, and names missing ones."""
    python = uv.new_environment(tmp_path / "env", interpreter(version))
    uv.install(python, f"{dist.wheel}[{extra}]" if extra else dist.wheel)
    uv.check(python)
    check(python, "compiled", extra)


@pytest.mark.parametrize("version", VERSIONS)
def test_pure_wheel_installs_and_runs(
    version: str, dist: Dist, uv: Installer, tmp_path: Path
) -> None:
    """The pure wheel, for all other platforms, passes the same checks."""
    python = uv.new_environment(tmp_path / "env", interpreter(version))
    uv.install(python, f"{dist.pure}[verify]")
    check(python, "python", "verify")


def test_distribution_python_accepts_wheel(dist: Dist, tmp_path: Path) -> None:
    """Debian's Python accepts the wheel from pip, like self-built ones."""
    python = Path("/usr/bin/python3")
    if not python.exists():
        pytest.skip("no /usr/bin/python3 is here")
    run(python, "-c", "import sys; assert sys.version_info >= (3, 10)", folder=tmp_path)
    environment = new_environment(tmp_path, python)
    pip_install(environment, f"{dist.wheel}[all]")
    run(environment, "-m", "pip", "check", folder=tmp_path)
    check(environment, "compiled", "all")


def test_pip_accepts_dist_folder(dist: Dist, tmp_path: Path) -> None:
    """`pip install dist/*.whl` matches one wheel; with the pure one, pip would refuse."""
    python = new_environment(tmp_path, interpreter(VERSIONS[-1]))
    pip = f"{python} -m pip install --no-deps --no-index"
    run("sh", "-c", f"{pip} {dist.wheel.parent}/*.whl", folder=tmp_path)
    both = f"{pip} {dist.wheel.parent}/*.whl {dist.wheel.parent}/pure/*.whl"
    with pytest.raises(AssertionError, match="conflict"):
        run("sh", "-c", both, folder=tmp_path)


def test_uninstall_removes_all_files(dist: Dist, tmp_path: Path) -> None:
    """Uninstalling removes every file."""
    python = new_environment(tmp_path, interpreter(VERSIONS[-1]))
    pip_install(python, "--no-deps", dist.wheel)
    run(python, "-c", "import attestkit.errors", folder=tmp_path)
    said = run(python, "-m", "pip", "uninstall", "--yes", "attestkit", folder=tmp_path)
    assert re.search(r"Successfully uninstalled attestkit-", said)
    assert not list((tmp_path / "env").rglob("*attestkit*"))
