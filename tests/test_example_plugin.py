"""The example of a backend in a package of its own can be installed, and works by its name only."""

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
PATIENCE = 120  # seconds that a loaded machine may take


def run(*command: str, path: Path | None = None, cwd: Path = ROOT) -> str:
    """Run a Python with `path` to import from, and return what it printed."""
    found = ":".join(str(one) for one in (path, ROOT) if one is not None)
    # What pip and the plugins of a pytest without our settings warn of is not ours to mend.
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


def ask(program: str, path: Path) -> Any:
    """Return the value of a Python expression over attestkit, where the package is installed."""
    text = f"import json, attestkit\nfrom attestkit import backends\nprint(json.dumps({program}))"
    return json.loads(run("-c", text, path=path))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder that the example was installed into, by pip and without network."""
    folder = tmp_path_factory.mktemp("plugin")
    source, target = folder / "source", folder / "site"
    shutil.copytree(EXAMPLE, source)  # a build leaves things behind
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    run("-m", "pip", "install", "--quiet", *options, "--target", str(target), str(source))
    yield target
    shutil.rmtree(folder)


def add(site: Path, package: str, name: str, value: str) -> Path:
    """Install another package with a backend beside a copy of `site`."""
    copy = site.parent / package
    shutil.copytree(site, copy)
    info = copy / f"{package}-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[attestkit.backends]\n{name} = {value}\n")
    return copy


def test_without_it_there_is_no_such_backend(tmp_path: Path) -> None:
    """The other tests see what the installation did."""
    assert "example_tee" not in ask("backends.names()", tmp_path)


def test_it_is_a_backend_by_its_name(installed: Path) -> None:
    """Known, loaded, probed and opened; it makes evidence."""
    names = ask("backends.names()", installed)
    assert names[-1] == "example_tee"
    assert ask("backends.load('example_tee').__module__", installed) == "attestkit_example_tee"
    assert ask("backends.probe_all()['example_tee']", installed) is None
    made = "attestkit.open('example_tee').attest(b'nonce').report_data.hex()"
    assert bytes.fromhex(ask(made, installed)) == b"nonce".ljust(64, b"\0")
    assert ask("attestkit.open('example_tee').simulated", installed) is True


def test_nobody_gets_it_without_naming_it(installed: Path) -> None:
    """What happens to be installed does not make evidence: it is not among those that are asked."""
    assert "example_tee" not in ask("backends.AUTO_ORDER", installed)
    program = """
import attestkit
try:
    print(attestkit.open().backend.name)
except attestkit.errors.AttestKitError as error:
    print(type(error).__name__)
"""
    assert run("-c", program, path=installed).strip() != "example_tee"


def test_its_own_tests_pass(installed: Path) -> None:
    """The contract among them, as its README says to run it."""
    source = installed.parent / "source"
    options = ("-q", "-p", "no:cacheprovider", "--rootdir", str(source), "-c", os.devnull)
    printed = run("-m", "pytest", *options, "tests", path=installed, cwd=source)
    assert " passed" in printed
    assert "failed" not in printed
    assert int(printed.split(" passed")[0].split()[-1]) >= 11


def test_a_plugin_cannot_take_a_built_in_name(installed: Path) -> None:
    """Whoever names the simulator gets ours."""
    site = add(installed, "taker", "simulator", "attestkit_example_tee:ExampleTee")
    module = ask("backends.load('simulator').__module__", site)
    assert module == "attestkit.backends.simulator.tdx_simulator"
    assert ask("backends.names().count('simulator')", site) == 1
    assert ask("attestkit.open('simulator').backend.name", site) == "simulator"


def test_a_broken_plugin_is_named(installed: Path) -> None:
    """And takes neither the other plugin nor the built-in ones with it."""
    site = add(installed, "wrong", "wrong_tee", "no_such_package:Backend")
    found = ask("backends.probe_all()", site)
    assert "'wrong_tee' of no_such_package:Backend cannot be loaded" in found["wrong_tee"]
    assert found["example_tee"] is None
    assert found["simulator"] is None


def test_two_plugins_of_one_name_are_refused(installed: Path) -> None:
    """Chance does not decide."""
    site = add(installed, "twin", "example_tee", "no_such_package:Backend")
    assert "2 installed packages" in ask("backends.probe_all()['example_tee']", site)


def test_the_readme_is_true() -> None:
    """The name that it tells to open is the one that is registered, and it stays short."""
    readme = (EXAMPLE / "README.md").read_text()
    project = (EXAMPLE / "pyproject.toml").read_text()
    assert 'example_tee = "attestkit_example_tee:ExampleTee"' in project
    assert 'attestkit.open("example_tee")' in readme
    assert "attestkit_example_tee/__init__.py" in readme
    assert len(readme.splitlines()) <= 12
