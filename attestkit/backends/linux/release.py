"""TEE features of Linux releases (linux-tee-abi.md, section 1.7).

Distributions backport features and fixes, so a release number can explain why a feature is missing,
but not prove that it is.
"""

import re
from typing import Final, NamedTuple

# The mainline release that added a feature, and its name.
FEATURES: Final = {
    "tdx_guest": ((6, 2), "/dev/tdx_guest"),
    "ccel": ((6, 4), "the firmware's event log (CCEL)"),
    "configfs_tsm": ((6, 7), "configfs-tsm"),
    "svsm_services": ((6, 11), "reports about services of an SVSM"),
    "rtmr_files": ((6, 16), "RTMR files in sysfs"),
    "quote_errors": ((7, 1), "EIO in place of an empty outblob"),
}
# CVE-2026-31470, since configfs-tsm: the kernel does not check the quote length that the host
# returns. Fixed in 7.0 and, by series, in these patch levels.
_REPAIRED: Final = {(6, 12): 80, (6, 18): 21, (6, 19): 11}


class KernelRelease(NamedTuple):
    """A kernel release (`uname -r`) and its number, (0, 0, 0) if it has none."""

    text: str
    number: tuple[int, int, int]

    @classmethod
    def parse(cls, text: str) -> "KernelRelease":
        """Parse a release such as `6.12.94+deb13-amd64` or `7.1-rc3`."""
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
        """Return whether the mainline release has one of `FEATURES`; False without a number."""
        return self.number[:2] >= FEATURES[feature][0]

    @property
    def repaired(self) -> bool:
        """True if the mainline release is not affected by CVE-2026-31470.

        The vulnerability lets the host make the guest's kernel read beyond its quote buffer.
        """
        series = self.number[:2]
        if not self.has("configfs_tsm") or series >= (7, 0):
            return True
        return self.number[2] >= _REPAIRED.get(series, 1 << 16)
