"""Version numbers of QEMU, as its program prints them and as a VM configuration states them."""

import re
from typing import Final, NamedTuple

from attestkit._sanitize import shown
from attestkit.errors import FormatError

_VERSION: Final = re.compile(
    r"(\d{1,3})\.(\d{1,3})(?:\.(\d{1,3}))?"
    r"(?:[-+~][\w.+~-]{1,64})?"  # of a patched build, or the name of a candidate
    r"(?: \([ -~]{1,256}\))?",  # package
    re.ASCII,
)
_DEVELOPMENT: Final = 50  # micro version from which on it is a development version of the next
_LAST_MINOR: Final = 2  # QEMU has releases x.0, x.1 and x.2

# Releases whose tables were compared and are equal; every other release is a line of its own.
_SAME_TABLES: Final = {(10, 2): (10, 0)}


class QemuVersion(NamedTuple):
    """Version number of QEMU.

    Micro versions from 50 on are development versions and candidates of the next release: those of
    9.2.0 begin with 9.1.50.
    """

    major: int
    minor: int
    micro: int = 0

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.micro}"

    @classmethod
    def parse(cls, text: str) -> "QemuVersion":
        """Parse a version such as `9.2.1`, `9.2`, or `10.0.13 (Debian 1:10.0.13+ds-0+deb13u1)`.

        The number may have a suffix such as `-rc2` or `+tdx`, which is ignored like the package.

        Raises:
            FormatError: If the text is not a version number with an optional suffix and package.
        """
        match = _VERSION.fullmatch(text)
        if match is None:
            raise FormatError(f"QEMU version: must be like 9.2.1: {shown(text)}", reason="syntax")
        return cls(*(int(part or 0) for part in match.groups()))

    @property
    def release(self) -> tuple[int, int]:
        """Major and minor version, such as (9, 2); of a development version, the next release's."""
        if self.micro < _DEVELOPMENT:
            return self.major, self.minor
        if self.minor >= _LAST_MINOR:
            return self.major + 1, 0
        return self.major, self.minor + 1

    @property
    def line(self) -> str:
        """Release line, such as `9.2`: all versions of a release line make the same tables."""
        major, minor = _SAME_TABLES.get(self.release, self.release)
        return f"{major}.{minor}"
