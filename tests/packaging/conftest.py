"""The packages of this tree, built once for all of their tests."""

import faulthandler
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.docs.blocks import ROOT
from tests.packaging.environments import alone, own_environment, tool
from tests.processes import run_program


class Dist(NamedTuple):
    """A repository with one commit of this tree, and the files that `make dist` built from it."""

    repository: Path
    wheel: Path
    pure: Path
    sdist: Path
    cross: dict[str, Path]  # the wheels for other machines, by the last platform in their names

    def files(self) -> list[Path]:
        """Return all of them."""
        return [self.wheel, self.pure, self.sdist, *self.cross.values()]


def git(repository: Path, *words: str, **environment: str) -> str:
    """Return git's output, independent of the user's configuration."""
    who = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    done = run_program(
        "git",
        *who,
        *words,
        cwd=repository,
        env=own_environment(HOME=str(repository), GIT_CONFIG_NOSYSTEM="1", **environment),
        check=True,
    )
    return done.stdout


def tracked() -> list[str]:
    """Return the files of this tree that are committed or could be."""
    said = git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard")
    return sorted(name for name in said.splitlines() if ROOT.joinpath(name).is_file())


def make_dist(repository: Path, to: Path, *options: str, **environment: str) -> str:
    """Run the commands of `make dist` in a repository; return their output."""
    faulthandler.cancel_dump_traceback_later()
    done = subprocess.run(
        [tool("dist") / "bin/python", "build_dist.py", "--to", to, *options],
        cwd=repository,
        env=own_environment(HOME=str(to.parent), **environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        check=False,
    )
    if done.returncode:
        raise AssertionError(done.stdout)
    return done.stdout


def files_of(repository: Path, to: Path) -> Dist:
    """Return the built files."""
    [wheel], [pure], [sdist] = to.glob("*.whl"), to.glob("pure/*.whl"), to.glob("*.tar.gz")
    cross = sorted(to.glob("cross/*.whl"))
    platforms = [re.split(r"[-.]", file.stem)[-1] for file in cross]
    return Dist(repository, wheel, pure, sdist, dict(zip(platforms, cross, strict=True)))


@pytest.fixture(scope="session")
def dist(shared: Path) -> Dist:
    """This tree's packages, built by the first worker that needs them."""
    for program in ("git", "gcc", "tar"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not here")
    if not (ROOT / ".git").exists():
        pytest.skip("this is not a git checkout")
    folder = shared / "dist"
    repository = folder / "repository"
    with alone(shared / "dist.lock"):
        if not (folder / "out").exists():
            shutil.rmtree(folder, ignore_errors=True)  # left by another worker that did not finish
            commit_tree(repository)
            make_dist(repository, folder / "out")
    return files_of(repository, folder / "out")


def commit_tree(repository: Path) -> None:
    """Create a repository with one commit of this tree."""
    for name in tracked():
        place = repository / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, place)
    git(repository, "init", "--quiet")
    git(repository, "add", "--all", "--force")
    git(repository, "commit", "--quiet", "--message", "All of it")
