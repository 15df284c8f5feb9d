"""Events of a boot from a disk: those of RTMR1, and single events of RTMR2 for a boot by GRUB.

The commands that GRUB runs depend on its environment block, on branches and on time-outs of its
menu, so RTMR2 cannot be predicted; single events in a log can be compared. Partition table: UEFI
specification, 5.3; TCG PFP, UEFI_GPT_DATA.
"""

import struct
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from attestkit._outcomes.reasons import FormatReason
from attestkit.errors import FormatError, UsageError
from attestkit.event_log.event_types import EVENT_TAG, GPT_EVENT, IPL
from attestkit.measure.expected import ExpectedEvent
from attestkit.measure.kernel import kernel_events
from attestkit.measure.kernel.pe_image import authenticode_digest

_HEADER: Final = 92  # bytes
_BLOCK_SIZES: Final = (512, 4096)
_MOST_BYTES: Final = 1 << 20  # bytes of the partition entries; usual are 16,384
_SMALLEST_ENTRY: Final = 128  # bytes


class GptTable(NamedTuple):
    """A GUID partition table: its header (92 bytes), and the entries whose type is not zero."""

    header: bytes  # 92 bytes
    entries: tuple[bytes, ...]  # those whose type is not zero

    @classmethod
    def parse(cls, disk: bytes, block_size: int = 512) -> "GptTable":
        """Read the primary table; its checksums are not verified.

        Args:
            disk: The disk from its first byte; bytes after the table may be missing.
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
            raise _error("truncated", "header truncated", len(disk))
        if header[:8] != b"EFI PART":
            raise _error("unrecognized", "block 1 must begin with 'EFI PART'", block_size)
        first, count, size = struct.unpack_from("<QII", header, 72)
        if size < _SMALLEST_ENTRY or size % _SMALLEST_ENTRY:
            problem = f"entries of {size} bytes, must be a multiple of {_SMALLEST_ENTRY}"
            raise _error("wrong_size", problem, block_size + 84)
        if count * size > _MOST_BYTES:
            problem = f"{count} entries of {size} bytes, at most {_MOST_BYTES} bytes in all"
            raise _error("too_large", problem, block_size + 80)
        start = first * block_size
        if start + count * size > len(disk):
            problem = f"{len(disk)} bytes of the disk, must be at least {start + count * size}"
            raise _error("truncated", problem, len(disk))
        entries = (disk[at : at + size] for at in range(start, start + count * size, size))
        return cls(header, tuple(entry for entry in entries if any(entry[:16])))

    @property
    def event_data(self) -> bytes:
        """UEFI_GPT_DATA, the measured data: header, number of used entries, and these entries."""
        return self.header + struct.pack("<Q", len(self.entries)) + b"".join(self.entries)


def gpt_event(table: GptTable) -> ExpectedEvent:
    """Return the event of RTMR1 for the partition table, before the first image of the disk."""
    return kernel_events.event_of(1, "gpt", GPT_EVENT, table.event_data, "published")


def _error(reason: FormatReason, problem: str, offset: int) -> FormatError:
    return FormatError(f"GPT: {problem}", reason=reason, offset=offset)


_MOST_IMAGES: Final = 64


class BootImage(NamedTuple):
    """A PE image (`data`) that is loaded from the disk; `name` is for the event, such as `shim`."""

    name: str  # for the event, such as `shim` or `kernel`
    data: bytes


class GrubBoot(NamedTuple):
    """Files of a GRUB menu entry.

    Attributes:
        kernel: Linux kernel.
        initrds: Initrds in their order.
        cmdline: Command line, with the path of the kernel, as GRUB passes it.
    """

    kernel: bytes
    initrds: tuple[bytes, ...] = ()
    cmdline: str = ""  # with the path of the kernel, as GRUB passes it


def disk_boot_events(
    table: GptTable, images: Sequence[BootImage], *, separator: bool
) -> list[ExpectedEvent]:
    """Return the events of RTMR1 of a boot from a disk.

    Args:
        table: Partition table of the disk.
        images: The loaded images in order: shim, boot loader, unified kernel image, kernel. The
            first start of an Ubuntu image loads shim, its fallback program, and shim again.
        separator: Whether the firmware measures its second separator into RTMR1 (edk2 from 202411),
            not into RTMR0.

    Raises:
        FormatError: If an image is not a valid PE image.
        UsageError: If the number of images is not 1 to 64.
    """
    if not 1 <= len(images) <= _MOST_IMAGES:
        message = f"images: must be 1 to {_MOST_IMAGES}, not {len(images)}"
        raise UsageError(message, reason="out_of_range")
    return [
        *kernel_events.before_images(separator=separator),
        gpt_event(table),
        *_image_events(images),
        *kernel_events.EXITS,
    ]


def grub_single_events(boot: GrubBoot) -> list[ExpectedEvent]:
    """Return events that the log of a boot by GRUB may contain, in any order.

    They are events of RTMR2 and, for the kernel as a PE image, of RTMR1.

    Events of type EV_IPL need a GRUB that measures into TDX registers, the others a kernel that
    GRUB starts through the firmware.

    Args:
        boot: What the menu entry boots.

    Raises:
        FormatError: If the kernel is not a valid PE image.
        UsageError: If the command line is not valid.
    """
    kernel_events.check_cmdline(boot.cmdline)
    command_line = boot.cmdline.encode()
    options = kernel_events.encode_options(boot.cmdline, terminated=False)
    events = [
        kernel_events.image_event("kernel", authenticode_digest(boot.kernel), "source"),
        kernel_events.event_of(2, "grub-kernel-file", IPL, boot.kernel, "source"),
        kernel_events.event_of(2, "grub-cmdline", IPL, command_line, "published"),
        kernel_events.event_of(2, "load-options", EVENT_TAG, options, "published"),
    ]
    events += [
        kernel_events.event_of(2, "grub-initrd-file", IPL, initrd, "source")
        for initrd in boot.initrds
    ]
    if boot.initrds:
        events.append(
            kernel_events.event_of(2, "initrd", EVENT_TAG, _joined(boot.initrds), "source")
        )
    return events


def _image_events(images: Iterable[BootImage]) -> list[ExpectedEvent]:
    return [
        kernel_events.image_event(image.name, authenticode_digest(image.data), "independent")
        for image in images
    ]


def _joined(initrds: Iterable[bytes]) -> bytes:
    """Return the initrds as GRUB loads them: each is zero-padded to a multiple of 4 bytes."""
    *padded, last = initrds
    return b"".join(initrd.ljust(-(-len(initrd) // 4) * 4, b"\0") for initrd in padded) + last
