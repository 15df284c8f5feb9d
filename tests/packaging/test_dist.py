"""`make dist` builds reproducible packages with the right files and correct tags."""

import hashlib
import os
import platform
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
    fetch,
    install,
    new_environment,
    pip_of,
    run,
    without_network,
)
from tests.rigs.aarch64.sysroot import EMULATOR
from tests.rigs.aarch64.sysroot import fetch as fetch_root
from tests.rigs.aarch64.sysroot import python as aarch64_python
from tests.rigs.apt import MissingError
from tests.runner.first_import import find_modules
from tests.thorough import IS_WHOLE, limited

pytestmark = pytest.mark.slow

CORE = "attestkit/_native/_lib.abi3.so"
NAME = "attestkit-0.2.0"
IN_WHEELS = {
    ".c",
    ".h",
    ".pem",
    ".py",
    ".pyi",
    ".typed",
    ".jinja",
    ".css",
    ".js",
    ".svg",
    ".toml",
    ".xz",
}
# Functions of the C library that the core calls. Others would be of a compiler's own library.
LIBC = {"bcmp", "free", "malloc", "memchr", "memcmp", "memcpy", "memmove", "memset", "strlen"}
LIBC |= {"__stack_chk_fail", "__stack_chk_guard"}
SAY_VERSION = "import sys; print('%d.%d' % sys.version_info[:2])"
CHECK = """
import platform, installed
installed.check_package("compiled")
print(platform.machine())
"""
NOT_IN_SDIST = {".pre-commit-config.yaml"}  # for development only


def digest_of(file: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def names_in(wheel: Path) -> set[str]:
    """Return the names of a wheel's files."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def core_of(wheel: Path, folder: Path) -> Path:
    """Extract the compiled core of a wheel and return its path."""
    with zipfile.ZipFile(wheel) as archive:
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
    short = not IS_WHOLE  # the other tags differ in one option of zig
    options = ("--cross", "musllinux_1_2_aarch64") if short else ()
    before = os.umask(0o077)
    try:
        make_dist(
            other,
            tmp_path / "out",
            *options,
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
    assert len(again.cross) == (1 if short else 3)
    first = dist._replace(cross={tag: dist.cross[tag] for tag in again.cross})
    for one, two in zip(first.files(), again.files(), strict=True):
        assert one.name == two.name
        assert digest_of(one) == digest_of(two)
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("kind", ["wheel", "pure", "cross"])
def test_wheel_contains_package_only(kind: str, dist: Dist) -> None:
    """A wheel has every file of the package but the core's C, licence and SBOM, and no test."""
    package = {name for name in tracked() if name.startswith("attestkit/")}
    core = {name for name in package if name.startswith("attestkit/_native/")}
    package -= {name for name in core if Path(name).suffix in {".c", ".h", ".inc"}}
    assert {Path(name).suffix for name in package} <= IN_WHEELS
    about = ["METADATA", "WHEEL", "RECORD", "entry_points.txt"]
    about += ["licenses/LICENSE", "licenses/NOTICE"]
    expected = package | {f"{NAME}.dist-info/{name}" for name in about}
    expected.add(f"{NAME}.dist-info/sboms/attestkit.cdx.json")
    if kind != "pure":
        expected.add(CORE)
    wheels = {"wheel": [dist.wheel], "pure": [dist.pure], "cross": list(dist.cross.values())}[kind]
    for wheel in wheels:
        found = names_in(wheel)
        assert found == expected
        assert {"attestkit/py.typed", "attestkit/_native/_lib.pyi"} <= found
        assert any(name.startswith("attestkit/serve/pages/templates/") for name in found)


def test_core_contains_no_local_paths(dist: Dist, tmp_path: Path) -> None:
    """No core contains a folder's name, or debug information, which would have some."""
    places = (
        ROOT,
        dist.repository,
        Path.home(),
        Path(tmp_path.anchor, "tmp"),
        base_python().parent,
    )
    for wheel in (dist.wheel, *dist.cross.values()):
        core = core_of(wheel, tmp_path / wheel.stem)
        assert ".debug_info" not in readelf("-S", core)
        data = core.read_bytes()
        assert [place for place in places if f"{place}/".encode() in data] == []
        assert b"/usr/include" not in data


def needs(core: Path) -> tuple[str, set[str], set[str]]:
    """Return a core's machine, and the libraries and functions other than Python's it needs."""
    [machine] = re.findall(r"Machine: +(.+)", readelf("-h", core))
    libraries = re.findall(r"\(NEEDED\) .*\[(.+)\]", readelf("-d", core))
    symbols = re.findall(r" UND (\w\S*)", readelf("--dyn-syms", core))
    return machine, set(libraries), {name for name in symbols if not name.startswith(("Py", "_Py"))}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="they are made on x86-64")
def test_cross_built_cores_need_only_their_c_library(dist: Dist, tmp_path: Path) -> None:
    """Each is for its machine and C library, and glibc's functions are those of 2.17."""
    found = {tag: needs(core_of(dist.cross[tag], tmp_path / tag)) for tag in dist.cross}
    assert {tag: (machine, libraries) for tag, (machine, libraries, _) in found.items()} == {
        "manylinux_2_17_aarch64": ("AArch64", {"libc.so.6", "ld-linux-aarch64.so.1"}),
        "musllinux_1_2_aarch64": ("AArch64", {"libc.musl-aarch64.so.1"}),
        "musllinux_1_2_x86_64": ("Advanced Micro Devices X86-64", {"libc.musl-x86_64.so.1"}),
    }
    for tag, (_, _, symbols) in found.items():
        version = "@GLIBC_2.17" if tag.startswith("many") else ""
        assert {re.sub(r" \(\d+\)$", "", name) for name in symbols} <= {
            f"{name}{version}" for name in LIBC
        }


def test_aarch64_wheel_runs(dist: Dist, tmp_path: Path) -> None:
    """The wheel for aarch64 installs, and that machine's Python, emulated, loads its core."""
    if platform.machine() != "x86_64" or shutil.which(EMULATOR) is None:
        pytest.skip(f"it is made on x86-64, and runs in {EMULATOR}")
    try:
        root = fetch_root()
    except MissingError as reason:
        pytest.skip(str(reason))
    python = aarch64_python(root)
    version = run(*python, "-c", SAY_VERSION, folder=tmp_path).strip()
    site = tmp_path / "site-packages"
    words: list[str | Path] = ["--only-binary", ":all:", "--python-version", version]
    for glibc in ("_2_17", "2014", "_2_28"):  # the last two are those of dependencies
        words += ["--platform", f"manylinux{glibc}_aarch64"]
    words += ["--target", site, dist.cross["manylinux_2_17_aarch64"]]
    fetch(sys.executable, "-m", "pip", "install", "--quiet", *words, folder=tmp_path)
    path = f"{site}:{ROOT / 'tests/packaging'}"
    assert run(*python, "-c", CHECK, folder=tmp_path, PYTHONPATH=path) == "aarch64\n"


def test_sdist_contains_committed_files(dist: Dist) -> None:
    """The sdist has no built file, and every file that a test reads."""
    with tarfile.open(dist.sdist) as archive:
        assert all(member.isfile() for member in archive)
        found = {member.name.removeprefix(f"{NAME}/") for member in archive}
    assert found == set(tracked()) - NOT_IN_SDIST | {"PKG-INFO"}


@pytest.fixture
def quick_compiler(tmp_path: Path) -> str:
    """Return a command that compiles without optimisation, which is two thirds of the time."""
    path = tmp_path / "cc"
    path.write_text('#!/bin/sh\nexec gcc "$@" -O0\n')
    path.chmod(0o755)
    return str(path)


def test_sdist_builds_without_network(dist: Dist, tmp_path: Path, quick_compiler: str) -> None:
    """With the build requirements installed, pip builds a wheel with the core offline."""
    offline = without_network(tmp_path)
    python = new_environment(tmp_path, base_python())
    install(python, "--require-hashes", "-r", ROOT / "requirements/build.lock")
    words = ("--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path)
    run(*offline, *pip_of(python), "wheel", *words, dist.sdist, folder=tmp_path, CC=quick_compiler)
    [wheel] = tmp_path.glob("*.whl")
    assert CORE in names_in(wheel)
    assert "-linux_" in wheel.name  # for this machine only


def test_sdist_passes_its_tests(dist: Dist, tmp_path: Path) -> None:
    """With a core, pytest collects tests of the sources, and those that read files pass."""
    run("tar", "-xf", dist.sdist, folder=tmp_path)
    place = tmp_path / NAME
    core_of(dist.wheel, place)
    quiet = ("-q", "-p", "no:benchmark", "-p", "no:cacheprovider")
    pytest_of = (sys.executable, "-m", "pytest", *quiet)
    modules = find_modules([str(ROOT / "tests")])
    files = () if IS_WHOLE else limited([str(file.relative_to(ROOT)) for file in modules])
    # Without assertion rewriting, which takes half of a first import.
    found = run(*pytest_of, "--collect-only", "--assert=plain", *files, folder=place)
    few = 4 if IS_WHOLE else 3
    assert re.search(rf"^\d{{{few},}} tests collected", found, re.MULTILINE), found[-2000:]
    tests = (
        "tests/test_quote.py",
        "tests/packaging/test_deploy.py",
        "tests/supply_chain/test_lock.py",
    )
    done = run(*pytest_of, *tests, "tests/packaging/test_hook.py", folder=place)
    assert re.search(r"\d\d+ passed", done), done
