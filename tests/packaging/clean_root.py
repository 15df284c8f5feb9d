"""A root directory in a folder: this distribution with a Python, and no compiler."""

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.docs.session import Installed
from tests.packaging.environments import fetch, run
from tests.processes import run_program

_ENTER = (  # mounts end with the namespace
    *("unshare", "--net", "--mount", "--propagation", "private", "--pid", "--fork"),
    *("--kill-child", "--mount-proc"),
)
_PACKAGES = "python3,python3-venv"
# Most of the installed modules are never imported, so none is compiled before.
_ENVIRONMENT = ("PATH=/usr/bin:/bin", "HOME=/root", "LC_ALL=C.UTF-8", "PIP_COMPILE=0")


class Mirror(NamedTuple):
    """The apt source of this machine's distribution, and its key file."""

    site: str
    release: str
    keyring: str


class CleanRoot(NamedTuple):
    """A folder whose programs see it as `/`, without network."""

    root: Path

    def run(self, script: str, folder: str = "/srv") -> str:
        """Run a bash script in it; return its output on both streams."""
        words = ("env", "-i", *_ENVIRONMENT, "bash", "-euc", f"cd {folder}; {script}")
        return run(*_ENTER, f"--root={self.root}", *words, folder=self.root)

    def new_environment(self, name: str) -> Installed:
        """Create a virtual environment in its /srv."""
        self.run(f"python3 -m venv {name}")
        return Installed(Path("/srv", name, "bin/python"), self.root)

    def version(self) -> str:
        """Return the version of its Python, such as 3.13."""
        return self.run("python3 -c 'import sys; print(\"%d.%d\" % sys.version_info[:2])'").strip()


def mirror() -> Mirror:
    """Read apt's configuration, or skip."""
    for program in ("apt-get", "debootstrap", "unshare"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not here")
    codename = run("sh", "-c", ". /etc/os-release; echo $VERSION_CODENAME", folder=Path("/"))
    form = "$(SITE) $(RELEASE) $(COMPONENT) $(SIGNED_BY)"
    words = ("apt-get", "indextargets", "--format", form, "Created-By: Packages")
    listed = run(*words, folder=Path("/"))
    for line in listed.splitlines():
        site, release, component, keyring = line.split(" ", maxsplit=3)
        if site.startswith("http") and (release, component) == (codename.strip(), "main"):
            return Mirror(site, release, keyring)
    pytest.skip("apt has no mirror of this distribution")


def make_root(root: Path) -> CleanRoot:
    """Install the distribution's minimal variant with Python, or skip; it takes over a minute."""
    site, release, keyring = mirror()
    known = (f"--keyring={keyring}",) if Path(keyring).is_file() else ()
    words = ("--variant=minbase", f"--include={_PACKAGES}", *known, release, root, site)
    # It is deleted after the test, so nothing has to be synced to disk.
    environment = {"DPKG_FORCE": "unsafe-io", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    fetch("debootstrap", *words, folder=root.parent, **environment)
    return CleanRoot(root)


def why_not() -> str:
    """Return why a folder cannot be a root here; "" if it can."""
    try:
        done = run_program(*_ENTER, "--root=/", "true")
    except OSError as error:
        return str(error)
    return done.stderr.strip()
