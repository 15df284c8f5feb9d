"""Debian arm64 in a directory: Python with cffi, pytest, hypothesis, headers and dependencies.

qemu-user runs its programs on this machine's kernel. Packages are unpacked and not installed, so
their scripts do not run.
"""

import hashlib
import shutil
import tempfile
from pathlib import Path

from tests.rigs.apt import (
    Apt,
    MissingError,
    apt_from_scratch,
    cache_folder,
    locked_directory,
    unpack,
)

COMPILER = "aarch64-linux-gnu-gcc"
EMULATOR = "qemu-aarch64"
# Debian's programs sign each return address. Emulated, that is half of their time; without the
# feature these instructions do nothing. The core's compiler is not told to add any.
PROCESSOR = "max,pauth=off"

# apt adds their dependencies.
_PACKAGES = [
    "python3-cffi-backend",
    "python3-pytest",
    "python3-hypothesis",
    "python3-cryptography",  # for tests that parse certificates
    "python3-cbor2",  # and evidence
    "python3-msgspec",
    "libpython3-dev",
]
_WHAT = "Python for aarch64"


def check_programs() -> None:
    """Raise MissingError unless the compiler and the emulator are installed."""
    for program, package in ((COMPILER, "gcc-aarch64-linux-gnu"), (EMULATOR, "qemu-user")):
        if shutil.which(program) is None:
            raise MissingError(f"{program} is missing (Debian: {package})")


def fetch() -> Path:
    """Return the root directory of Debian arm64 in the cache.

    Raises:
        MissingError: If it is unavailable; the text has the reason.
    """
    folder = cache_folder() / "aarch64"
    folder.mkdir(parents=True, exist_ok=True)
    with locked_directory(folder):
        try:
            machine = {"APT__Architecture": "arm64", "APT__Architectures": "arm64"}
            apt = apt_from_scratch(folder, _WHAT, **machine)
        except MissingError:
            if kept := next(folder.glob("root-*"), None):
                return kept
            raise
        return _unpacked(apt, folder)


def _unpacked(apt: Apt, folder: Path) -> Path:
    plan = hashlib.sha256(apt.plan(_PACKAGES).encode()).hexdigest()
    place = folder / f"root-{plan[:16]}"
    if not place.exists():
        for other in folder.glob("root-*"):
            shutil.rmtree(other)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            root = Path(scratch) / "root"
            unpack(apt.download_all(_PACKAGES), root)
            root.rename(place)
    return place


def python(root: Path) -> list[str]:
    """Return the command that runs its Python."""
    return [EMULATOR, "-cpu", PROCESSOR, "-L", str(root), str(root / "usr/bin/python3")]


def headers(root: Path) -> Path:
    """Return the directory of Python.h."""
    [folder] = (root / "usr/include").glob("python3.*")
    return folder
