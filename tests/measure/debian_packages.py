"""Files of packages of Debian that vectors name, downloaded and unpacked, not installed."""

import hashlib
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

from tests.rigs.apt import (
    Apt,
    MissingError,
    cache_folder,
    codename,
    locked_directory,
    own_sources,
    unpack,
)


@lru_cache
def package_file(package: str, suite: str | None, path: str, sha256: str) -> bytes:
    """Return a file of a package: the installed one, or that of the latest package of a suite.

    Args:
        package: Name of the package.
        suite: Suite of Debian; None for that of this machine.
        path: Path of the file without the first slash.
        sha256: Its SHA-256 in hex.

    Raises:
        MissingError: If it is unavailable, or has another SHA-256 in this version.
    """
    folder = cache_folder() / ("measured-files" if suite is None else f"firmware-{suite}")
    kept = folder / sha256
    for place in (Path("/") / path, kept):
        if place.is_file() and hashlib.sha256(found := place.read_bytes()).hexdigest() == sha256:
            return found
    folder.mkdir(parents=True, exist_ok=True)
    with locked_directory(folder), tempfile.TemporaryDirectory(dir=folder) as scratch:
        apt = Apt(folder, package_sources(suite), package)
        apt.update()
        version = apt.version(package)
        root = Path(scratch) / "root"
        unpack(apt.download([package], Path(scratch)), root)
        place = root / path
        found = place.read_bytes() if place.is_file() else b""
        if hashlib.sha256(found).hexdigest() != sha256:
            raise MissingError(f"{package} {version} has another {path}")
        shutil.move(place, kept)
        return found


def package_sources(suite: str | None) -> list[str]:
    """Return the lines of a sources.list for a suite, from this machine's mirrors."""
    name = codename("a file of Debian")
    if suite is None:
        return own_sources(name)
    lines = [line for line in own_sources(name) if line.endswith(f" {name} main")]
    return [line.replace(f" {name} main", f" {suite} main") for line in lines]
