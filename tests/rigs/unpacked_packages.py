"""Packages of Debian, unpacked in the rig's cache, not installed."""

import re
import shutil
import tempfile
from pathlib import Path

from tests.rigs.apt import Apt, cache_folder, codename, locked_directory, own_sources, unpack


def unpacked_packages(
    name: str, packages: tuple[str, ...], sources: list[str] | None = None
) -> Path:
    """Return the root directory of packages, from the cache if it has their latest versions.

    Args:
        name: Name of the set, for the cache and for error texts.
        packages: All packages that are needed, or `package=version`; dependencies are not added.
        sources: Lines of a sources.list. None: those of this release.

    Raises:
        MissingError: If a package is unavailable.
    """
    folder = cache_folder() / name
    folder.mkdir(parents=True, exist_ok=True)
    with locked_directory(folder):
        apt = Apt(folder, own_sources(codename(name)) if sources is None else sources, name)
        apt.update()
        versions = [
            package if "=" in package else f"{package}={apt.version(package)}"
            for package in packages
        ]
        # No colons, because the folder may be a part of LD_LIBRARY_PATH.
        root = folder / f"root-{re.sub('[^A-Za-z0-9.=+~-]', '_', '-'.join(versions))}"
        if not root.is_dir():
            for old in folder.glob("root-*"):
                shutil.rmtree(old)
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                unpacked = Path(scratch) / "root"
                unpack(apt.download(versions, Path(scratch)), unpacked)
                unpacked.rename(root)
        return root
