"""`make dist` builds reproducible packages with the right files and correct tags."""

import base64
import csv
import hashlib
import os
import re
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT
from tests.packaging.conftest import Dist, files_of, git, make_dist, tracked
from tests.packaging.environments import (
    base_python,
    new_environment,
    pip_install,
    run,
    without_network,
)

pytestmark = pytest.mark.slow

CORE = "attestkit/_native/_lib.abi3.so"
NAME = "attestkit-0.1.0"
IN_WHEELS = {".py", ".pyi", ".typed", ".jinja", ".css", ".js", ".svg"}
NOT_IN_SDIST = {".pre-commit-config.yaml"}  # for development only


def digest_of(file: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def names_in(wheel: Path) -> set[str]:
    """Return the names of a wheel's files."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def core_of(dist: Dist, folder: Path) -> Path:
    """Extract the compiled core of the wheel and return its path."""
    with zipfile.ZipFile(dist.wheel) as archive:
        return Path(archive.extract(CORE, folder))


def readelf(option: str, library: Path) -> str:
    """Return readelf's output for a library."""
    if shutil.which("readelf") is None:
        pytest.skip("readelf is not here")
    return run("readelf", "--wide", option, library, folder=library.parent)


def test_build_is_reproducible(dist: Dist, tmp_path: Path) -> None:
    """Another folder, time, umask, locale, hash seed or compiler flag does not change a byte."""
    other = tmp_path / "a folder of another name"
    git(tmp_path, "clone", "--quiet", str(dist.repository), str(other))
    for path in other.rglob("*"):
        os.utime(path, (1e9, 1e9), follow_symlinks=False)
    temporary = tmp_path / "elsewhere"
    temporary.mkdir()
    before = os.umask(0o077)
    try:
        make_dist(
            other,
            tmp_path / "out",
            TMPDIR=str(temporary),
            LC_ALL="C",
            TZ="Pacific/Auckland",
            PYTHONHASHSEED="7",
            CFLAGS="-O0 -g",
            SOURCE_DATE_EPOCH="1",
        )
    finally:
        os.umask(before)
    again = files_of(other, tmp_path / "out")
    for one, two in zip(dist[1:], again[1:], strict=True):
        assert one.name == two.name
        assert digest_of(one) == digest_of(two)
    assert not list(temporary.iterdir())


def test_build_depends_on_commit(dist: Dist, tmp_path: Path) -> None:
    """The same files committed on another day give other packages, so the test above can fail."""
    other = tmp_path / "later"
    git(tmp_path, "clone", "--quiet", str(dist.repository), str(other))
    when = {"GIT_COMMITTER_DATE": "2030-01-01T00:00:00Z"}
    git(other, "commit", "--quiet", "--amend", "--no-edit", **when)
    said = make_dist(other, tmp_path / "out")
    again = files_of(other, tmp_path / "out")
    lines = said.splitlines()
    assert lines[0] == f"# commit {git(other, 'rev-parse', 'HEAD').strip()}"
    for file, before in zip(again[1:], dist[1:], strict=True):
        assert f"{digest_of(file)}  {file.relative_to(tmp_path / 'out')}" in lines[1:]
        assert digest_of(file) != digest_of(before)


@pytest.mark.parametrize("kind", ["wheel", "pure"])
def test_wheel_contains_package_only(kind: str, dist: Dist) -> None:
    """A wheel has every committed file of the package but C, licence and SBOM, and no test."""
    package = {name for name in tracked() if name.startswith("attestkit/")}
    package = {name for name in package if Path(name).suffix not in {".c", ".h", ".inc"}}
    assert {Path(name).suffix for name in package} <= IN_WHEELS
    about = ["METADATA", "WHEEL", "RECORD", "entry_points.txt"]
    about += ["licenses/LICENSE", "licenses/NOTICE"]
    expected = package | {f"{NAME}.dist-info/{name}" for name in about}
    expected.add(f"{NAME}.dist-info/sboms/attestkit.cdx.json")
    if kind == "wheel":
        expected.add(CORE)
    found = names_in(getattr(dist, kind))
    assert found == expected
    assert {"attestkit/py.typed", "attestkit/_native/_lib.pyi"} <= found
    assert any(name.startswith("attestkit/serve/pages/templates/") for name in found)


@pytest.mark.parametrize("kind", ["wheel", "pure"])
def test_record_matches_files(kind: str, dist: Dist) -> None:
    """RECORD lists each file once, with its hash and size."""
    record = f"{NAME}.dist-info/RECORD"
    with zipfile.ZipFile(getattr(dist, kind)) as archive:
        rows = list(csv.reader(archive.read(record).decode().splitlines()))
        assert sorted(row[0] for row in rows) == sorted(names_in(getattr(dist, kind)))
        for name, digest, size in rows:
            if name == record:
                assert (digest, size) == ("", "")
                continue
            data = archive.read(name)
            sha256 = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=")
            assert (digest, size) == (f"sha256={sha256.decode()}", str(len(data)))


def test_wheel_tags_are_correct(dist: Dist, tmp_path: Path) -> None:
    """The tags state the stable ABI of 3.10 and glibc 2.17, and the core needs no more."""
    assert re.fullmatch(
        rf"{NAME}-cp310-abi3-manylinux2014_(\w+)\.manylinux_2_17_\1\.whl", dist.wheel.name
    )
    assert dist.pure.name == f"{NAME}-py3-none-any.whl"
    core = core_of(dist, tmp_path)
    needed = {tuple(map(int, v)) for v in re.findall(r"GLIBC_(\d+)\.(\d+)", readelf("-V", core))}
    assert needed
    assert max(needed) <= (2, 17)
    dynamic = readelf("-d", core)
    assert re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic) == ["libc.so.6"]
    assert "RPATH" not in dynamic
    assert "RUNPATH" not in dynamic


def test_core_contains_no_local_paths(dist: Dist, tmp_path: Path) -> None:
    """The core contains no folder's name, and no debug information, which would have some."""
    core = core_of(dist, tmp_path)
    assert ".debug_info" not in readelf("-S", core)
    data = core.read_bytes()
    places = (
        ROOT,
        dist.repository,
        Path.home(),
        Path(tmp_path.anchor, "tmp"),
        base_python().parent,
    )
    assert [place for place in places if f"{place}/".encode() in data] == []
    assert b"/usr/include" not in data


def test_core_with_newer_glibc_is_refused(dist: Dist, tmp_path: Path) -> None:
    """With a function of glibc 2.36 the build fails, so the tag is verified."""
    other = tmp_path / "newer"
    git(tmp_path, "clone", "--quiet", str(dist.repository), str(other))
    source = other / "attestkit/_native/hex.c"
    declared = "unsigned arc4random(void);\nunsigned ak_any(void);\n"
    source.write_text(
        f"{source.read_text()}\n{declared}"
        '__attribute__((visibility("default"))) unsigned ak_any(void)\n'
        "{\n    return arc4random();\n}\n"
    )
    git(other, "commit", "--quiet", "--all", "--message", "Need something new")
    with pytest.raises(
        AssertionError, match=r"auditwheel repair(.|\n)*too-recent versioned symbols"
    ):
        make_dist(other, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


def test_sdist_contains_committed_files(dist: Dist) -> None:
    """The sdist has no built file, and every file that a test reads."""
    with tarfile.open(dist.sdist) as archive:
        assert all(member.isfile() for member in archive)
        found = {member.name.removeprefix(f"{NAME}/") for member in archive}
    assert found == set(tracked()) - NOT_IN_SDIST | {"PKG-INFO"}


def test_sdist_builds_without_network(dist: Dist, tmp_path: Path) -> None:
    """With the build requirements installed, pip builds a wheel with the core offline."""
    offline = without_network(tmp_path)
    python = new_environment(tmp_path, base_python())
    lock = ROOT / "requirements/build.lock"
    pip_install(python, "--require-hashes", "-r", lock)
    words = ("--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path)
    strict = {"ATTESTKIT_STRICT_BUILD": "1"}
    run(*offline, python, "-m", "pip", "wheel", *words, dist.sdist, folder=tmp_path, **strict)
    [wheel] = tmp_path.glob("*.whl")
    assert CORE in names_in(wheel)
    assert "-linux_" in wheel.name  # for this machine only


def test_sdist_passes_its_tests(dist: Dist, tmp_path: Path) -> None:
    """The unpacked sources build, pytest collects all tests, and those that read files pass."""
    run("tar", "-xf", dist.sdist, folder=tmp_path)
    place = tmp_path / NAME
    python = Path(sys.executable)
    run(python, "build_cffi.py", folder=place)
    pytest_of = (python, "-m", "pytest", "-q", "-p", "no:benchmark", "-p", "no:cacheprovider")
    found = run(*pytest_of, "--collect-only", folder=place)
    assert re.search(r"^\d{4,} tests collected", found, re.MULTILINE), found[-2000:]
    tests = ("tests/test_quote.py", "tests/test_deploy.py", "tests/supply_chain/test_lock.py")
    done = run(*pytest_of, *tests, "tests/packaging/test_hook.py", folder=place)
    assert re.search(r"\d\d+ passed", done), done
