"""The event of the partition table of a disk (UEFI specification, 5.3; TCG PFP, UEFI_GPT_DATA)."""

import struct
from typing import Final, NamedTuple

from attestkit._reasons import FormatReason
from attestkit.errors import FormatError, UsageError
from attestkit.event_log.event_types import GPT_EVENT
from attestkit.measure.expected_event import ExpectedEvent
from attestkit.measure.kernel.boot_events import event_of

_HEADER: Final = 92  # bytes
_BLOCK_SIZES: Final = (512, 4096)
_MOST_BYTES: Final = 1 << 20  # bytes of the partition entries; usual are 16,384
_SMALLEST_ENTRY: Final = 128  # bytes


class GptTable(NamedTuple):
    """Header and used entries of a partition table."""

    header: bytes  # 92 bytes
    entries: tuple[bytes, ...]  # those whose type is not zero

    @classmethod
    def parse(cls, disk: bytes, block_size: int = 512) -> "GptTable":
        """Read the primary table.

        Args:
            disk: The disk from its first byte; the rest after the table may be missing.
            block_size: Bytes of a logical block, 512 or 4096.

        Raises:
            FormatError: If the table is malformed or truncated.
            UsageError: If the block size is not supported.
        """
        if block_size not in _BLOCK_SIZES:
            message = f"block size: must be 512 or 4096, not {block_size}"
            raise UsageError(message, reason="wrong_value")
        header = disk[block_size : block_size + _HEADER]
        if len(header) < _HEADER:
            raise _error("truncated", "header: truncated", len(disk))
        if header[:8] != b"EFI PART":
            raise _error("unrecognized", "no signature in block 1", block_size)
        first, count, size = struct.unpack_from("<QII", header, 72)
        if size < _SMALLEST_ENTRY or size % _SMALLEST_ENTRY:
            raise _error("wrong_size", f"entries of {size} bytes", block_size + 84)
        if count * size > _MOST_BYTES:
            problem = f"{count} entries of {size} bytes, over {_MOST_BYTES} bytes"
            raise _error("too_large", problem, block_size + 80)
        start = first * block_size
        if start + count * size > len(disk):
            raise _error("truncated", "entries: truncated", len(disk))
        entries = (disk[at : at + size] for at in range(start, start + count * size, size))
        return cls(header, tuple(entry for entry in entries if any(entry[:16])))

    @property
    def event_data(self) -> bytes:
        """UEFI_GPT_DATA, which is measured."""
        return self.header + struct.pack("<Q", len(self.entries)) + b"".join(self.entries)


def gpt_event(table: GptTable) -> ExpectedEvent:
    """Return the event of RTMR1 when the first image is loaded from the disk."""
    return event_of(1, "gpt", GPT_EVENT, table.event_data, "published")


def _error(reason: FormatReason, problem: str, offset: int) -> FormatError:
    return FormatError(f"GPT: {problem}", reason=reason, offset=offset)
