"""Files of packages of this Debian release that vectors name, downloaded and not installed."""

import hashlib
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

import pytest

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
def package_file(package: str, path: str, sha256: str) -> bytes:
    """Return a file of a package; skip the test if it is unavailable, or another by its SHA-256."""
    try:
        return _package_file(package, path, sha256)
    except MissingError as error:
        pytest.skip(str(error))


def _package_file(package: str, path: str, sha256: str) -> bytes:
    folder = cache_folder() / "measured-files"
    kept = folder / sha256
    for place in (Path("/") / path, kept):
        if place.is_file() and hashlib.sha256(found := place.read_bytes()).hexdigest() == sha256:
            return found
    sources = own_sources(codename("a file of Debian"))
    folder.mkdir(parents=True, exist_ok=True)
    with locked_directory(folder), tempfile.TemporaryDirectory(dir=folder) as scratch:
        apt = Apt(folder, sources, package)
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
