"""What continuous integration installs is what was locked: one version, known by its hashes."""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.hardening.locks import ROOT, Locked, environments, read_lock

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LOCKS = ("build.lock", "ci.lock", "dist.lock", "docs.lock", "image.lock", "tools.lock")
JS = ROOT / "tests/clients/js"


def wanted(*extras: str, build: bool = True) -> Iterator[Requirement]:
    """Yield what pyproject.toml asks for, with these extras, and for the build."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = pyproject["project"]
    of_extra = project["optional-dependencies"]
    left = [*project["dependencies"], *(text for extra in extras for text in of_extra[extra])]
    left += pyproject["build-system"]["requires"] if build else []
    while left:
        requirement = Requirement(left.pop())
        if requirement.name == project["name"]:
            left += [text for extra in requirement.extras for text in of_extra[extra]]
        else:
            yield requirement


@pytest.mark.parametrize("lock", LOCKS)
def test_every_package_has_one_version_and_hashes(lock: str) -> None:
    """On no machine that it is for is a package there twice, or without a hash."""
    entries = read_lock(lock)
    assert all(entry.version and entry.hashes for entry in entries)
    for environment in environments():
        counts = Counter(entry.name for entry in entries if entry.counts_in(environment))
        assert [name for name, count in counts.items() if count > 1] == []


@pytest.mark.parametrize("lock", LOCKS)
def test_no_place_is_named(lock: str) -> None:
    """Neither an index nor an address: those are the machine's, and a mirror has the same files."""
    text = (ROOT / "requirements" / lock).read_text()
    assert re.findall(r"https?:|--(?:extra-)?index|--find-links|@ |git\+", text) == []


def unsatisfied(lock: str, requirements: Iterable[Requirement]) -> set[str]:
    """Return what a lock lacks somewhere, or has in a version that is not allowed."""
    entries = read_lock(lock)
    missing = set()
    requirements = list(requirements)
    for environment in environments():
        here: dict[str, Locked] = {e.name: e for e in entries if e.counts_in(environment)}
        for requirement in requirements:
            if requirement.marker and not requirement.marker.evaluate(environment):
                continue
            entry = here.get(canonicalize_name(requirement.name))
            if entry is None or not requirement.specifier.contains(entry.version):
                missing.add(str(requirement))
    return missing


def test_the_locks_satisfy_the_project() -> None:
    """All that pyproject.toml asks for is locked, in a version that it allows; `make lock` does."""
    assert unsatisfied("ci.lock", wanted("dev")) == set()
    assert unsatisfied("image.lock", wanted("serve", "verify", build=False)) == set()
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lines = (ROOT / "requirements/build.in").read_text().splitlines()
    builds = [line for line in lines if not line.startswith("#")]
    assert builds == pyproject["build-system"]["requires"]
    assert unsatisfied("build.lock", map(Requirement, builds)) == set()


def test_a_lock_that_does_not_satisfy_is_found_out() -> None:
    """What is missing, and what is too old, on whatever machine."""
    wrong = ["cffi>=99", "nobodys-package", "tomli>=99; python_version < '3.11'"]
    assert unsatisfied("ci.lock", map(Requirement, wrong)) == {
        *("cffi>=99", "nobodys-package", 'tomli>=99; python_version < "3.11"')
    }


def test_the_locks_agree() -> None:
    """What the image runs, and what builds the wheel, is what was tested."""
    tested = {(entry.name, entry.version): entry.hashes for entry in read_lock("ci.lock")}
    for lock in ("build.lock", "image.lock"):
        for entry in read_lock(lock):
            assert entry.hashes == tested[entry.name, entry.version]
    made_with = {(entry.name, entry.version): entry.hashes for entry in read_lock("dist.lock")}
    for entry in read_lock("build.lock"):
        assert entry.hashes == made_with[entry.name, entry.version]


def test_the_lock_has_what_the_build_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what the backend adds for an editable installation: nothing is fetched in the build."""
    build = pytest.importorskip("hatchling.build", reason="hatchling is not here")
    monkeypatch.chdir(ROOT)
    locked = {entry.name for entry in read_lock("ci.lock")}
    for asks in (build.get_requires_for_build_editable, build.get_requires_for_build_wheel):
        assert {Requirement(text).name for text in asks({})} <= locked


def test_nothing_is_installed_around_the_lock() -> None:
    """`make` installs the lock with hashes, then the project and nothing with it."""
    makefile = (ROOT / "Makefile").read_text()
    [rule] = re.findall(r"^\$\(VENV\)/\.dev:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    first, second = re.findall(r"pip install ((?:.*\\\n)*.*)", rule)
    assert "--require-hashes" in first
    assert "-r requirements/ci.lock" in first
    assert {"--no-deps", "--no-build-isolation"} <= set(second.split())
    assert "npm install" not in makefile.replace(
        "npm install --prefix $(JS) --package-lock-only", ""
    )
    assert "export PIP_ONLY_BINARY=:all:" in (ROOT / ".ci/run").read_text()


def test_the_javascript_clients_are_locked() -> None:
    """package-lock.json is of this package.json, each package with a hash, and names no place."""
    lock = json.loads((JS / "package-lock.json").read_text())
    packages = lock["packages"]
    own = packages.pop("")
    assert own["dependencies"] == json.loads((JS / "package.json").read_text())["dependencies"]
    assert {name for name in own["dependencies"] if f"node_modules/{name}" not in packages} == set()
    for name, package in packages.items():
        assert package["integrity"].startswith("sha512-"), name
        assert "resolved" not in package, name
