"""A root directory in a folder: this distribution with a Python, and no compiler.

Its packages are unpacked, which is all that most of them need: to install them takes ten times as
long.
"""

import os
import shutil
import stat
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.docs.session import Installed
from tests.packaging.environments import run
from tests.processes import run_program
from tests.rigs.apt import (
    MissingError,
    apt_from_scratch,
    cache_folder,
    locked_directory,
    unpack,
)

_ENTER = (  # mounts end with the namespace
    *("unshare", "--net", "--mount", "--propagation", "private", "--pid", "--fork"),
    *("--kill-child", "--mount-proc"),
)
_PACKAGES = ["?essential", "python3", "python3-venv"]  # apt adds their dependencies
_DEVICES = {"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9}  # minor number of each
# Most of the installed modules are never imported, so none is compiled before.
_ENVIRONMENT = ("PATH=/usr/bin:/bin", "HOME=/root", "LC_ALL=C.UTF-8", "PIP_COMPILE=0")


class CleanRoot(NamedTuple):
    """A folder whose programs see it as `/`, without network."""

    root: Path

    def run(self, script: str, folder: str = "/srv") -> str:
        """Run a bash script in it; return its output on both streams."""
        words = ("env", "-i", *_ENVIRONMENT, "bash", "-euc", f"cd {folder}; {script}")
        return run(*_ENTER, f"--root={self.root}", *words, folder=self.root)

    def new_environment(self, name: str, options: str = "") -> Installed:
        """Create a virtual environment in its /srv."""
        self.run(f"python3 -m venv {options} {name}")
        return Installed(Path("/srv", name, "bin/python"), self.root)

    def version(self) -> str:
        """Return the version of its Python, such as 3.13."""
        return self.run("python3 -c 'import sys; print(\"%d.%d\" % sys.version_info[:2])'").strip()


def make_root(root: Path) -> CleanRoot:
    """Unpack the distribution's essential packages and its Python, or skip."""
    folder = cache_folder() / "clean-root"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked_directory(folder):
            apt = apt_from_scratch(folder, "a clean system")
            unpack(apt.download_all(_PACKAGES), root)
    except MissingError as error:
        pytest.skip(str(error))
    # As the scripts of the packages do.
    known = sorted(root.glob("usr/share/ca-certificates/mozilla/*.crt"))
    bundle = "".join(certificate.read_text() for certificate in known)
    (root / "etc/ssl/certs/ca-certificates.crt").write_text(bundle)
    for name in ("passwd", "group"):
        shutil.copy(root / f"usr/share/base-passwd/{name}.master", root / "etc" / name)
    for name, minor in _DEVICES.items():
        os.mknod(root / "dev" / name, stat.S_IFCHR, os.makedev(1, minor))
        (root / "dev" / name).chmod(0o666)
    (root / "dev/fd").symlink_to("/proc/self/fd")
    for name in ("dev/shm", "srv"):
        (root / name).mkdir()
    return CleanRoot(root)


def why_not() -> str:
    """Return why a folder cannot be a root here; "" if it can."""
    try:
        done = run_program(*_ENTER, "--root=/", "true")
    except OSError as error:
        return str(error)
    return done.stderr.strip()
