"""Tests of the requirement locks: one version of each package, with hashes."""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib import metadata

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.runner.cases import every_case
from tests.supply_chain.locks import ROOT, Locked, environments, read_lock

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LOCKS = ("build.lock", "ci.lock", "dist.lock", "docs.lock", "image.lock", "tools.lock")
JS = ROOT / "tests/clients/js"


def find_requirements(*extras: str, build: bool = True) -> Iterator[Requirement]:
    """Yield the requirements of pyproject.toml with these extras, and of the build."""
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


@every_case("lock", LOCKS)
def test_lock_has_one_version_with_hashes(lock: str) -> None:
    """On each machine a package occurs once, with hashes."""
    entries = read_lock(lock)
    assert all(entry.version and entry.hashes for entry in entries)
    for environment in environments():
        counts = Counter(entry.name for entry in entries if entry.counts_in(environment))
        assert [name for name, count in counts.items() if count > 1] == []


@every_case("lock", LOCKS)
def test_lock_names_no_index(lock: str) -> None:
    """A lock has no index or URL, so that a mirror can be used."""
    text = (ROOT / "requirements" / lock).read_text()
    assert re.findall(r"https?:|--(?:extra-)?index|--find-links|@ |git\+", text) == []


def find_unsatisfied(lock: str, requirements: Iterable[Requirement]) -> set[str]:
    """Return the requirements that a lock does not satisfy in some environment."""
    entries = read_lock(lock)
    missing = set()
    requirements = list(requirements)
    for environment in environments():
        installed: dict[str, Locked] = {e.name: e for e in entries if e.counts_in(environment)}
        for requirement in requirements:
            if requirement.marker and not requirement.marker.evaluate(environment):
                continue
            entry = installed.get(canonicalize_name(requirement.name))
            if entry is None or not requirement.specifier.contains(entry.version):
                missing.add(str(requirement))
    return missing


def test_locks_satisfy_project() -> None:
    """All requirements of pyproject.toml are locked in an allowed version."""
    assert find_unsatisfied("ci.lock", find_requirements("dev")) == set()
    assert find_unsatisfied("image.lock", find_requirements("serve", build=False)) == set()
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lines = (ROOT / "requirements/build.in").read_text().splitlines()
    builds = [line for line in lines if not line.startswith("#")]
    assert builds == pyproject["build-system"]["requires"]
    assert find_unsatisfied("build.lock", map(Requirement, builds)) == set()


def test_locks_agree() -> None:
    """Image and wheel build use the versions that were tested."""
    tested = {(entry.name, entry.version): entry.hashes for entry in read_lock("ci.lock")}
    for lock in ("build.lock", "image.lock"):
        for entry in read_lock(lock):
            assert entry.hashes == tested[entry.name, entry.version]
    made_with = {(entry.name, entry.version): entry.hashes for entry in read_lock("dist.lock")}
    for entry in read_lock("build.lock"):
        assert entry.hashes == made_with[entry.name, entry.version]


def find_closure(requirements: Iterable[Requirement]) -> set[str]:
    """Return the names of all that requirements need here, by the installed packages' metadata."""
    found: set[tuple[str, str]] = set()
    left = [(requirement, "") for requirement in requirements]
    while left:
        requirement, extra = left.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        for each in ("", *requirement.extras):
            if (name, each) not in found:
                found.add((name, each))
                left += [(Requirement(text), each) for text in metadata.requires(name) or ()]
    return {name for name, _ in found}


def test_image_lock_has_only_what_the_image_needs() -> None:
    """The lock of the image is as `make lock` writes it, also after a requirement has gone."""
    try:
        needed = find_closure(find_requirements("serve", build=False))
    except metadata.PackageNotFoundError as error:
        pytest.skip(f"{error.name} is not installed")
    here = {name: str(value) for name, value in default_environment().items()}
    assert {entry.name for entry in read_lock("image.lock") if entry.counts_in(here)} == needed


def test_lock_satisfies_build_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock has all that the build backend requires, also for an editable installation."""
    build = pytest.importorskip("hatchling.build", reason="hatchling is not here")
    monkeypatch.chdir(ROOT)
    locked = {entry.name for entry in read_lock("ci.lock")}
    for asks in (build.get_requires_for_build_editable, build.get_requires_for_build_wheel):
        assert {Requirement(text).name for text in asks({})} <= locked


def test_makefile_installs_from_lock_only() -> None:
    """`make` installs the lock with hashes, then the project without dependencies."""
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


def test_javascript_lock_matches_package_json() -> None:
    """package-lock.json matches package.json, has hashes, and names no registry."""
    lock = json.loads((JS / "package-lock.json").read_text())
    packages = lock["packages"]
    own = packages.pop("")
    assert own["dependencies"] == json.loads((JS / "package.json").read_text())["dependencies"]
    assert {name for name in own["dependencies"] if f"node_modules/{name}" not in packages} == set()
    for name, package in packages.items():
        assert package["integrity"].startswith("sha512-"), name
        assert "resolved" not in package, name
