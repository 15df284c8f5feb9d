"""The example of a third-party backend can be installed, and is used by its name only."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
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
        env={**environ, "PYTHONPATH": found, "PYTHONDONTWRITEBYTECODE": "1"},
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


def evaluate(program: str, path: Path) -> Any:
    """Return the value of a Python expression over attestkit with the installed package."""
    text = f"import json, attestkit\nfrom attestkit import backends\nprint(json.dumps({program}))"
    return json.loads(run("-c", text, path=path))


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


def add(site: Path, package: str, name: str, value: str) -> Path:
    """Install another package with a backend into a copy of `site`."""
    copy = site.parent / package
    shutil.copytree(site, copy)
    info = copy / f"{package}-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[attestkit.backends]\n{name} = {value}\n")
    return copy


def test_backend_is_unknown_without_plugin(tmp_path: Path) -> None:
    """Without the package the backend is unknown, so the other tests show the installation."""
    assert "example_tee" not in evaluate("backends.names()", tmp_path)


def test_plugin_is_used_by_name(installed: Path) -> None:
    """The installed backend is listed, loaded, probed and opened, and makes evidence."""
    names = evaluate("backends.names()", installed)
    assert names[-1] == "example_tee"
    assert evaluate("backends.load('example_tee').__module__", installed) == "attestkit_example_tee"
    assert evaluate("backends.probe_all()['example_tee']", installed) is None
    made = "attestkit.open('example_tee').attest(b'nonce').report_data.hex()"
    assert bytes.fromhex(evaluate(made, installed)) == b"nonce".ljust(64, b"\0")
    assert evaluate("attestkit.open('example_tee').simulated", installed) is True


def test_plugin_is_not_detected_automatically(installed: Path) -> None:
    """Detection of backends does not consider the plugin, so installing it is harmless."""
    assert "example_tee" not in evaluate("backends.AUTO_ORDER", installed)
    program = """
import attestkit
try:
    print(attestkit.open().backend.name)
except attestkit.errors.AttestKitError as error:
    print(type(error).__name__)
"""
    assert run("-c", program, path=installed).strip() != "example_tee"


def test_plugin_tests_pass(installed: Path) -> None:
    """The package's tests pass as its README runs them, with the backend contract."""
    source = installed.parent / "source"
    options = ("-q", "-p", "no:cacheprovider", "--rootdir", str(source), "-c", os.devnull)
    printed = run("-m", "pytest", *options, "tests", path=installed, cwd=source)
    assert " passed" in printed
    assert "failed" not in printed
    assert int(printed.split(" passed")[0].split()[-1]) >= 11


def test_plugin_cannot_replace_built_in_name(installed: Path) -> None:
    """The simulator's name always selects the built-in backend."""
    site = add(installed, "taker", "simulator", "attestkit_example_tee:ExampleTee")
    module = evaluate("backends.load('simulator').__module__", site)
    assert module == "attestkit.backends.simulator.tdx_simulator"
    assert evaluate("backends.names().count('simulator')", site) == 1
    assert evaluate("attestkit.open('simulator').backend.name", site) == "simulator"


def test_broken_plugin_is_named(installed: Path) -> None:
    """A broken plugin is named in the error; other plugins and built-in backends still work."""
    site = add(installed, "wrong", "wrong_tee", "no_such_package:Backend")
    found = evaluate("backends.probe_all()", site)
    assert "cannot import the plugin no_such_package:Backend" in found["wrong_tee"]
    assert found["example_tee"] is None
    assert found["simulator"] is None


def test_duplicate_plugin_name_is_refused(installed: Path) -> None:
    """Two plugins of one name are an error."""
    site = add(installed, "twin", "example_tee", "no_such_package:Backend")
    assert "2 installed packages" in evaluate("backends.probe_all()['example_tee']", site)


def test_readme_opens_registered_name() -> None:
    """The README opens the registered name, and stays short."""
    readme = (EXAMPLE / "README.md").read_text()
    project = (EXAMPLE / "pyproject.toml").read_text()
    assert 'example_tee = "attestkit_example_tee:ExampleTee"' in project
    assert 'attestkit.open("example_tee")' in readme
    assert "attestkit_example_tee/__init__.py" in readme
    assert len(readme.splitlines()) <= 12
