"""Debian's kernels for the rig, downloaded and unpacked, not installed.

The later kernel is in the backports suite next to the machine's own.
"""

import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.rigs.apt import (
    Apt,
    MissingError,
    backports_sources,
    cache_folder,
    codename,
    locked_directory,
    own_sources,
    unpack,
)

# The suites of the kernels.
OWN = "stable"
BACKPORTS = "backports"
_SOURCES: dict[str, Callable[[str], list[str]]] = {OWN: own_sources, BACKPORTS: backports_sources}

FIRST = (6, 2)  # the first with a driver for TDX guests
IMAGE = "linux-image-amd64"
HEADERS = "linux-headers-amd64"
MODULES = "usr/lib/modules"
# Packages on which the two metapackages depend, and which the rig uses.
_WANTED = re.compile(r"linux-(?:image|headers|modules|binary|kbuild)-[0-9]\S*(?<!-unsigned)")
_DEPENDS = re.compile(r"^ [ |](?:Pre)?Depends: (\S+)$", re.MULTILINE)


class Kernel(NamedTuple):
    """Unpacked kernel."""

    release: str  # the output of `uname -r`
    root: Path  # of the files that the packages would install

    @property
    def number(self) -> tuple[int, int]:
        """Return the first two components of its release."""
        return _number(self.release)

    @property
    def image(self) -> Path:
        """Return the bootable file, whose path depends on the Debian release."""
        old = self.root / "boot" / f"vmlinuz-{self.release}"
        return old if old.exists() else self.modules / "vmlinuz"

    @property
    def modules(self) -> Path:
        """Return the directory of its modules."""
        return self.root / MODULES / self.release

    @property
    def headers(self) -> Path:
        """Return the directory for building modules."""
        return self.root / "usr/src" / f"linux-headers-{self.release}"


def _number(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def fetch(suite: str) -> Kernel:
    """Return the latest kernel of a suite, unpacked in the cache.

    Raises:
        MissingError: If it is unavailable; the text has the reason.
    """
    release_name = codename("the kernel rig")
    folder = cache_folder() / suite
    folder.mkdir(parents=True, exist_ok=True)
    with locked_directory(folder):
        try:
            apt = Apt(folder, _SOURCES[suite](release_name), f"the {suite} kernel")
            apt.update()
        except MissingError:
            if kept := _find_cached(folder):
                return kept
            raise
        return _unpacked(apt, folder)


def _unpacked(apt: Apt, folder: Path) -> Kernel:
    """Return apt's kernel, from the cache if it has that version."""
    version = apt.version(IMAGE)
    if _number(version) < FIRST:
        raise MissingError(
            f"Linux {version} has no tdx_guest driver: needs {'.'.join(map(str, FIRST))}"
        )
    target = folder / f"kernel-{version}"
    if not (target / MODULES).exists():
        for other in folder.glob("kernel-*"):
            shutil.rmtree(other)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            root = Path(scratch) / "root"
            names = [f"{name}={version}" for name in _list_packages(apt, version)]
            unpack(apt.download(names, Path(scratch)), root)
            _relocate_headers(root, target)
            root.rename(target)
    return _kernel_in(target)


def _list_packages(apt: Apt, version: str) -> list[str]:
    """Return the packages with the kernel of this version and its headers."""
    found: list[str] = []
    level = [IMAGE, HEADERS]
    while level:
        names = [f"{name}={version}" for name in level]
        output = apt.run_tool("apt-cache", "depends", "--important", *names)
        packages = filter(_WANTED.fullmatch, _DEPENDS.findall(output))
        level = sorted(set(packages) - set(found))
        found += level
    return found


def _find_cached(folder: Path) -> Kernel | None:
    """Return the kernel of an earlier run, for a machine without network."""
    return next(map(_kernel_in, folder.glob("kernel-*")), None)


def _kernel_in(target: Path) -> Kernel:
    (modules,) = (target / MODULES).iterdir()
    return Kernel(modules.name, target)


def _relocate_headers(root: Path, target: Path) -> None:
    """Make the headers work below `place` instead of /usr/src."""
    for makefile in (root / "usr/src").glob("linux-headers-*-amd64/Makefile"):
        text = makefile.read_text()
        makefile.write_text(text.replace("/usr/src", f"{target}/usr/src"))
        # BTF of the kernel, from which a module's is made if pahole is installed.
        (makefile.parent / "vmlinux").unlink(missing_ok=True)
