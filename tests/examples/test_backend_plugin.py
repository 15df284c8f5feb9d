"""The example of a third-party backend can be installed, and is used by its name only."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs/examples/backend_plugin"
PATIENCE = 120  # seconds, enough on a loaded machine


def run(*command: str, path: Path | None = None, cwd: Path = ROOT) -> str:
    """Run a Python with `path` to import from, and return its output."""
    found = ":".join(str(one) for one in (path, ROOT) if one is not None)
    # Warnings of pip and of third-party pytest plugins are not errors here.
    ours = {"ATTESTKIT_BACKEND"} | ({"PYTHONWARNINGS"} if "-m" in command else set())
    environ = {name: value for name, value in os.environ.items() if name not in ours}
    done = subprocess.run(
        [sys.executable, *command],
        env={**environ, "PYTHONPATH": found},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder into which pip installed the example, without network."""
    folder = tmp_path_factory.mktemp("plugin")
    source, target = folder / "source", folder / "site"
    shutil.copytree(EXAMPLE, source)  # a build leaves files behind
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    run("-m", "pip", "install", "--quiet", *options, "--target", str(target), str(source))
    yield target
    shutil.rmtree(folder)


USED = """
import attestkit
from attestkit import backends
from attestkit.errors import AttestKitError

assert backends.names()[-1] == "example_tee"
assert backends.load("example_tee").__module__ == "attestkit_example_tee"
assert backends.probe_all()["example_tee"] is None
with attestkit.open("example_tee") as tee:
    assert tee.simulated
    evidence = tee.attest(report_data=b"nonce", pad=True)
assert evidence.report_data == b"nonce".ljust(64, b"\\0")
assert "example_tee" not in backends.AUTO_ORDER
try:
    assert attestkit.open().backend.name != "example_tee"
except AttestKitError:
    pass
"""


def test_plugin_is_used_by_name_only(installed: Path) -> None:
    """The installed backend is listed, probed and makes evidence; detection does not use it."""
    assert run("-c", USED, path=installed) == ""


@pytest.mark.slow  # a run of pytest
def test_plugin_tests_pass(installed: Path) -> None:
    """The package's tests pass as its README runs them, with the backend contract."""
    source = installed.parent / "source"
    options = ("-q", "-p", "no:cacheprovider", "--rootdir", str(source), "-c", os.devnull)
    printed = run("-m", "pytest", *options, "tests", path=installed, cwd=source)
    assert " passed" in printed
    assert "failed" not in printed
    assert int(printed.split(" passed")[0].split()[-1]) >= 11
