"""Events of a boot from a disk: RTMR1 as a whole, and of GRUB single events of RTMR2.

The commands that GRUB runs depend on its environment block, on branches and on time-outs of its
menu, so RTMR2 cannot be predicted; single events in a log can be compared.
"""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from attestkit.errors import UsageError
from attestkit.event_log.event_types import EVENT_TAG, IPL
from attestkit.measure.expected_event import ExpectedEvent
from attestkit.measure.kernel.boot_events import (
    EXITS,
    before_images,
    event_of,
    image_event,
)
from attestkit.measure.kernel.gpt import GptTable, gpt_event
from attestkit.measure.kernel.load_options import check_cmdline, encode_options
from attestkit.measure.kernel.pe_image import authenticode_digest

_MOST_IMAGES: Final = 64


class BootImage(NamedTuple):
    """A PE image that is loaded from the disk."""

    name: str  # for the event, such as `shim` or `kernel`
    data: bytes


class GrubBoot(NamedTuple):
    """Files and command line of a GRUB menu entry."""

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
        separator: Whether the firmware separates in RTMR1 (edk2 from 202411), not in RTMR0.

    Raises:
        FormatError: If an image is not a valid PE image.
        UsageError: If the number of images is not 1 to 64.
    """
    if not 1 <= len(images) <= _MOST_IMAGES:
        message = f"images: must be 1 to {_MOST_IMAGES}, not {len(images)}"
        raise UsageError(message, reason="out_of_range")
    return [
        *before_images(separator=separator),
        gpt_event(table),
        *_image_events(images),
        *EXITS,
    ]


def grub_single_events(boot: GrubBoot) -> list[ExpectedEvent]:
    """Return events to look for in the log of a boot by GRUB, in no promised order.

    Which of them are there depends on the versions: those of type EV_IPL need a GRUB that measures
    into TDX registers, the others a kernel that GRUB starts through the firmware.

    Args:
        boot: What the menu entry boots.

    Raises:
        FormatError: If the kernel is not a valid PE image.
        UsageError: If the command line is not valid.
    """
    check_cmdline(boot.cmdline)
    command_line = boot.cmdline.encode()
    options = encode_options(boot.cmdline, terminated=False)
    events = [
        image_event("kernel", authenticode_digest(boot.kernel), "source"),
        event_of(2, "grub-kernel-file", IPL, boot.kernel, "source"),
        event_of(2, "grub-cmdline", IPL, command_line, "published"),
        event_of(2, "load-options", EVENT_TAG, options, "published"),
    ]
    events += [event_of(2, "grub-initrd-file", IPL, initrd, "source") for initrd in boot.initrds]
    if boot.initrds:
        events.append(event_of(2, "initrd", EVENT_TAG, _joined(boot.initrds), "source"))
    return events


def _image_events(images: Iterable[BootImage]) -> list[ExpectedEvent]:
    return [
        image_event(image.name, authenticode_digest(image.data), "independent") for image in images
    ]


def _joined(initrds: Iterable[bytes]) -> bytes:
    """Return the initrds as GRUB loads them: each is padded to a multiple of 4 bytes."""
    *padded, last = initrds
    return b"".join(initrd.ljust(-(-len(initrd) // 4) * 4, b"\0") for initrd in padded) + last
