"""What a Linux release should offer a TEE, by its number (linux-tee-abi.md, section 1.7).

A distribution may have brought a change, or a repair, to an older number: a release explains what
is missing, it does not tell what is there.
"""

import re
from typing import Final, NamedTuple

__all__ = ["FEATURES", "KernelRelease"]

# What came with which release of mainline Linux.
FEATURES: Final = {
    "tdx_guest": ((6, 2), "/dev/tdx_guest"),
    "ccel": ((6, 4), "the firmware's event log (CCEL)"),
    "configfs_tsm": ((6, 7), "configfs-tsm"),
    "rtmr_files": ((6, 16), "RTMR files in sysfs"),
    "quote_errors": ((7, 1), "EIO in place of an empty outblob"),
}
# CVE-2026-31470: the guest trusts the length of a quote that the host returns. Repaired in 7.0 and,
# by series, in these patch levels; it came with configfs-tsm.
_REPAIRED: Final = {(6, 12): 80, (6, 18): 21, (6, 19): 11}


class KernelRelease(NamedTuple):
    """A release as `uname -r` tells it, and its number; (0, 0, 0) if it has none."""

    text: str
    number: tuple[int, int, int]

    @classmethod
    def parse(cls, text: str) -> "KernelRelease":
        """Read a release, `6.12.94+deb13-amd64` or `7.1-rc3`; what follows the number is kept."""
        found = re.match(r"(\d{1,5})\.(\d{1,5})(?:\.(\d{1,5}))?", text)
        if found is None:
            return cls(text, (0, 0, 0))
        major, minor, patch = (int(digits or 0) for digits in found.groups())
        return cls(text, (major, minor, patch))

    @property
    def known(self) -> bool:
        """True if the release has a number."""
        return self.number != (0, 0, 0)

    def has(self, feature: str) -> bool:
        """Tell whether a release of this number has one of `FEATURES`; False if it is unknown."""
        return self.number[:2] >= FEATURES[feature][0]

    @property
    def repaired(self) -> bool:
        """True if CVE-2026-31470 does not concern a release of this number.

        Before the repair a host can make the guest's kernel copy beyond its buffer of quotes.
        """
        series = self.number[:2]
        if not self.has("configfs_tsm") or series >= (7, 0):
            return True
        return self.number[2] >= _REPAIRED.get(series, 1 << 16)
