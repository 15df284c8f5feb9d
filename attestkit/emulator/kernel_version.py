"""Differences between Linux releases in the interfaces of TDX and SEV-SNP guests."""

import re
from typing import Final, NamedTuple

from attestkit._sanitize import shown
from attestkit.errors import UsageError

__all__ = ["EmulatedKernel"]

_LAST: Final = 999_999
_TEXT: Final = re.compile(r"(\d{1,3})\.(\d{1,3})(?:\.(\d{1,5}))?", re.ASCII)


class EmulatedKernel(NamedTuple):
    """A release of Linux, such as `6.12.80`, or `6.12` for the last release of the series."""

    major: int
    minor: int
    patch: int

    @classmethod
    def parse(cls, text: str) -> "EmulatedKernel":
        """Parse `6.12` or `6.12.80`; UsageError otherwise."""
        match = _TEXT.fullmatch(text)
        if match is None:
            raise UsageError(
                f"kernel release: must be like 6.12 or 6.12.80, not {shown(text)}",
                reason="wrong_value",
            )
        return cls(int(match[1]), int(match[2]), int(match[3] or _LAST))

    @property
    def has_device(self) -> bool:
        """Whether the kernel has /dev/tdx_guest."""
        return self >= (6, 2)

    @property
    def has_ccel_data(self) -> bool:
        """Whether the firmware event log has a file, in addition to its ACPI table."""
        return self >= (6, 4)

    @property
    def has_reports(self) -> bool:
        """Whether the kernel has configfs-tsm."""
        return self >= (6, 7)

    @property
    def has_services(self) -> bool:
        """Whether a report entry can request a service of an SVSM."""
        return self >= (6, 11)

    @property
    def has_measurements(self) -> bool:
        """Whether sysfs has the registers (tsm-mr)."""
        return self >= (6, 16)

    @property
    def outblob_limit(self) -> int:
        """Maximum size of an outblob in bytes."""
        return 16 << 20 if self >= (7, 0) else 32 << 10

    @property
    def quote_buffer(self) -> int:
        """Size of the buffer shared with the host, with its header of 24 bytes."""
        return 128 << 10 if self >= (7, 0) else 8 << 10

    @property
    def reports_failure(self) -> bool:
        """Whether a failure of the host is an error, and not an empty outblob."""
        return self >= (7, 1)

    @property
    def checks_length(self) -> bool:
        """Whether the length from the host is compared with the buffer (CVE-2026-31470)."""
        fixed = {(6, 12): 80, (6, 18): 21, (6, 19): 11}
        return self >= (7, 0) or self.patch >= fixed.get((self.major, self.minor), _LAST + 1)
