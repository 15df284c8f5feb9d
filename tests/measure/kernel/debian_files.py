"""Files of packages of this Debian release that vectors name."""

import pytest

from tests.measure.debian_packages import package_file
from tests.rigs.apt import MissingError


def release_file(package: str, path: str, sha256: str) -> bytes:
    """Return a file of a package; skip the test if it is unavailable, or another by its SHA-256."""
    try:
        return package_file(package, None, path, sha256)
    except MissingError as error:
        pytest.skip(str(error))
