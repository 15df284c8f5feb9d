"""Differences between Linux releases in the interfaces of TDX and SEV-SNP guests."""

import re
from typing import Final

from attestkit._sanitize import shown
from attestkit.backends.linux.release import KernelRelease
from attestkit.errors import UsageError

_TEXT: Final = re.compile(r"\d{1,3}\.\d{1,3}(\.\d{1,5})?", re.ASCII)
_LAST: Final = 65535  # patch level of the last release of a series


class EmulatedKernel(KernelRelease):
    """A release of Linux, such as `6.12.80`, or `6.12` for the last release of the series."""

    @classmethod
    def parse(cls, text: str) -> "EmulatedKernel":
        """Parse `6.12` or `6.12.80`; UsageError otherwise."""
        match = _TEXT.fullmatch(text)
        if match is None:
            text = f"kernel release: must be like 6.12 or 6.12.80, not {shown(text)}"
            raise UsageError(text, reason="wrong_value")
        return cls(*KernelRelease.parse(text if match[1] else f"{text}.{_LAST}"))

    @property
    def outblob_limit(self) -> int:
        """Maximum size of an outblob in bytes."""
        return 16 << 20 if self.number >= (7, 0) else 32 << 10

    @property
    def quote_buffer(self) -> int:
        """Size of the buffer shared with the host, with its header of 24 bytes."""
        return 128 << 10 if self.number >= (7, 0) else 8 << 10
