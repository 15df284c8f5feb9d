"""Debian's kernels for the rig: found, downloaded and unpacked, not installed.

The later kernel is in the backports suite beside the machine's own.
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
    only_one_at_a_time,
    own_sources,
    unpack,
)

# The suites that a kernel can come from.
OWN = "stable"
BACKPORTS = "backports"
_SOURCES: dict[str, Callable[[str], list[str]]] = {OWN: own_sources, BACKPORTS: backports_sources}

FIRST = (6, 2)  # with a driver of TDX guests
IMAGE = "linux-image-amd64"
HEADERS = "linux-headers-amd64"
MODULES = "usr/lib/modules"
# What the two metapackages lead to, and of that what the rig uses.
_WANTED = re.compile(r"linux-(?:image|headers|modules|binary|kbuild)-[0-9]\S*(?<!-unsigned)")
_DEPENDS = re.compile(r"^ [ |](?:Pre)?Depends: (\S+)$", re.MULTILINE)


class Kernel(NamedTuple):
    """One kernel, unpacked."""

    release: str  # as uname says it
    root: Path  # of the files that the packages would have installed

    @property
    def number(self) -> tuple[int, int]:
        """The first two parts of its release."""
        return _number(self.release)

    @property
    def image(self) -> Path:
        """The bootable file, which moved with Debian's packaging."""
        old = self.root / "boot" / f"vmlinuz-{self.release}"
        return old if old.exists() else self.modules / "vmlinuz"

    @property
    def modules(self) -> Path:
        """The folder of its modules."""
        return self.root / MODULES / self.release

    @property
    def headers(self) -> Path:
        """The folder that modules are built in."""
        return self.root / "usr/src" / f"linux-headers-{self.release}"


def _number(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def fetch(suite: str) -> Kernel:
    """Return the latest kernel of a suite, unpacked in the cache.

    Raises:
        MissingError: It cannot be had; the text says why.
    """
    release_name = codename("the kernel rig")
    folder = cache_folder() / suite
    folder.mkdir(parents=True, exist_ok=True)
    with only_one_at_a_time(folder):
        try:
            apt = Apt(folder, _SOURCES[suite](release_name), f"the {suite} kernel")
            apt.update()
        except MissingError:
            if kept := _kept(folder):
                return kept
            raise
        return _unpacked(apt, folder)


def _unpacked(apt: Apt, folder: Path) -> Kernel:
    """Return the kernel that apt offers, from the cache if it is the one that is there."""
    version = apt.version(IMAGE)
    if _number(version) < FIRST:
        raise MissingError(
            f"Linux {version} has no tdx_guest driver: needs {'.'.join(map(str, FIRST))}"
        )
    place = folder / f"kernel-{version}"
    if not (place / MODULES).exists():
        for other in folder.glob("kernel-*"):
            shutil.rmtree(other)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            root = Path(scratch) / "root"
            names = [f"{name}={version}" for name in _needed(apt, version)]
            unpack(apt.download(names, Path(scratch)), root)
            _make_headers_usable(root, place)
            root.rename(place)
    return _kernel_in(place)


def _needed(apt: Apt, version: str) -> list[str]:
    """Return the packages with the kernel of this version and with its headers."""
    found: list[str] = []
    level = [IMAGE, HEADERS]
    while level:
        names = [f"{name}={version}" for name in level]
        said = apt.say("apt-cache", "depends", "--important", *names)
        wanted = filter(_WANTED.fullmatch, _DEPENDS.findall(said))
        level = sorted(set(wanted) - set(found))
        found += level
    return found


def _kept(folder: Path) -> Kernel | None:
    """Return what an earlier run left, for a machine that is off the network today."""
    return next(map(_kernel_in, folder.glob("kernel-*")), None)


def _kernel_in(place: Path) -> Kernel:
    (modules,) = (place / MODULES).iterdir()
    return Kernel(modules.name, place)


def _make_headers_usable(root: Path, place: Path) -> None:
    """Let the headers work below `place`, where they will be, and not below /usr/src only."""
    for makefile in (root / "usr/src").glob("linux-headers-*-amd64/Makefile"):
        text = makefile.read_text()
        makefile.write_text(text.replace("/usr/src", f"{place}/usr/src"))
        # Types of the whole kernel, from which a module's are made where pahole is installed.
        (makefile.parent / "vmlinux").unlink(missing_ok=True)
