"""What differs between kernels in the interfaces of a TDX or SEV-SNP guest, by release."""

import re
from typing import Final, NamedTuple

from attestkit._sanitize import shown
from attestkit.errors import UsageError

__all__ = ["EmulatedKernel"]

_LAST: Final = 999_999
_TEXT: Final = re.compile(r"(\d{1,3})\.(\d{1,3})(?:\.(\d{1,5}))?", re.ASCII)


class EmulatedKernel(NamedTuple):
    """A release of Linux: `6.12.80`, or `6.12` for the last of its series."""

    major: int
    minor: int
    patch: int

    @classmethod
    def parse(cls, text: str) -> "EmulatedKernel":
        """Read `6.12` or `6.12.80`; UsageError for anything else."""
        match = _TEXT.fullmatch(text)
        if match is None:
            raise UsageError(f"a kernel release is like 6.12 or 6.12.80, not {shown(text)}")
        return cls(int(match[1]), int(match[2]), int(match[3] or _LAST))

    @property
    def has_device(self) -> bool:
        """Whether there is /dev/tdx_guest."""
        return self >= (6, 2)

    @property
    def has_ccel_data(self) -> bool:
        """Whether the firmware's log has a file; its ACPI table always has."""
        return self >= (6, 4)

    @property
    def has_reports(self) -> bool:
        """Whether there is configfs-tsm."""
        return self >= (6, 7)

    @property
    def has_services(self) -> bool:
        """Whether an entry can name a service of an SVSM."""
        return self >= (6, 11)

    @property
    def has_measurements(self) -> bool:
        """Whether the registers are files (tsm-mr)."""
        return self >= (6, 16)

    @property
    def outblob_limit(self) -> int:
        """The most bytes that an outblob has."""
        return 16 << 20 if self >= (7, 0) else 32 << 10

    @property
    def quote_buffer(self) -> int:
        """Size of the buffer shared with the host, its header of 24 bytes included."""
        return 128 << 10 if self >= (7, 0) else 8 << 10

    @property
    def tells_failure(self) -> bool:
        """Whether a quote that the host failed to make is an error, not an empty outblob."""
        return self >= (7, 1)

    @property
    def checks_length(self) -> bool:
        """Whether the length that the host says is compared with the buffer (CVE-2026-31470)."""
        fixed = {(6, 12): 80, (6, 18): 21, (6, 19): 11}
        return self >= (7, 0) or self.patch >= fixed.get((self.major, self.minor), _LAST + 1)
