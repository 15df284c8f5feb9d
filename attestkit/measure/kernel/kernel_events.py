"""Load options, and events by firmware, Linux's EFI stub and shim, for all kinds of boot."""

from typing import Final

from attestkit._crypto.hashes import sha384
from attestkit.errors import UsageError
from attestkit.event_log.event_types import BOOT_APPLICATION, EFI_ACTION, EVENT_TAG, IPL, SEPARATOR
from attestkit.measure.expected import Basis, ExpectedEvent

MAX_CMDLINE: Final = 1 << 16
"""Largest command line in bytes. Linux uses 2047 of them, firmware measures all."""


def direct_boot_options(
    cmdline: str, *, has_initrd: bool, initrd_first: bool, shim: bool = False
) -> bytes:
    """Return the EFI load options that OVMF gives a kernel from QEMU's `-kernel`.

    Args:
        cmdline: The command line.
        has_initrd: Whether there is an initrd that is not empty.
        initrd_first: Whether the firmware puts `initrd=initrd` before the command line (edk2 from
            202508), not after it.
        shim: Whether the kernel is started by a shim from QEMU's `-shim`.

    Returns:
        UTF-16LE with a final NUL; no bytes for an empty command line without initrd.

    Raises:
        UsageError: If the command line is not ASCII, contains a NUL or is too long.
    """
    check_cmdline(cmdline)
    initrd = ("first" if initrd_first else "last") if has_initrd else "none"
    text = options_text(cmdline, initrd, shim=shim)
    return encode_options(text) if text else b""


def options_text(cmdline: str, initrd: str, *, shim: bool) -> str:
    """Return the load options of a kernel with the command line `cmdline`, as text.

    `initrd` is the place of `initrd=initrd` in it: `first`, `last`, or `none`. With `shim`, the
    options begin with `kernel `.
    """
    before = "kernel " * shim + "initrd=initrd " * (initrd == "first")
    return before + cmdline + " initrd=initrd" * (initrd == "last")


def encode_options(text: str, *, terminated: bool = True) -> bytes:
    """Return text as UTF-16LE, with a final NUL unless `terminated` is false, as in GRUB."""
    return (f"{text}\0" if terminated else text).encode("utf-16-le")


def check_cmdline(cmdline: str) -> None:
    """Check that `cmdline` has one representation in firmware, boot loader and kernel.

    Raises:
        UsageError: If the command line is not ASCII, contains a NUL or is too long.
    """
    if len(cmdline) > MAX_CMDLINE:
        message = f"command line: {len(cmdline)} characters, at most {MAX_CMDLINE}"
        raise UsageError(message, reason="too_large")
    if not cmdline.isascii() or "\0" in cmdline:
        raise UsageError("command line: must be ASCII without NUL", reason="encoding")


def event_of(register: int, name: str, event_type: int, data: bytes, basis: Basis) -> ExpectedEvent:
    """Return the event whose digest is the SHA-384 of `data`.

    Args:
        register: Number of the RTMR, 0 to 3.
        name: Name of the event, such as `initrd`.
        event_type: TCG event type.
        data: Data that the digest covers.
        basis: What confirms the rule by which the data are computed.
    """
    return ExpectedEvent(register, name, event_type, sha384(data), basis)


def image_event(name: str, digest: bytes, basis: Basis) -> ExpectedEvent:
    """Return the event of RTMR1 for a loaded PE image.

    Args:
        name: Name of the event, such as `kernel`.
        digest: Authenticode hash of the image, 48 bytes.
        basis: What confirms the hash.
    """
    return ExpectedEvent(1, name, BOOT_APPLICATION, digest, basis)


ACTIONS: Final = {
    "calling": b"Calling EFI Application from Boot Option",
    "exit-invocation": b"Exit Boot Services Invocation",
    "exit-success": b"Exit Boot Services Returned with Success",
}
"""Event data of the firmware's actions, by event name."""

CALLING, *_EXITS = [
    event_of(1, name, EFI_ACTION, text, "hardware") for name, text in ACTIONS.items()
]
BOOT_SEPARATOR: Final = event_of(1, "separator", SEPARATOR, bytes(4), "hardware")
EXITS: Final = tuple(_EXITS)


def before_images(*, separator: bool) -> list[ExpectedEvent]:
    """Return the events of RTMR1 before the first image is loaded.

    Args:
        separator: Whether the firmware measures its second separator here (edk2 from 202411), not
            into RTMR0.
    """
    return [CALLING, BOOT_SEPARATOR] if separator else [CALLING]


def kernel_stub_events(
    options: bytes, initrd: bytes | None, basis: Basis = "independent"
) -> list[ExpectedEvent]:
    """Return the events of RTMR2 that the EFI stub of Linux adds.

    Args:
        options: The load options in UTF-16LE; empty ones are not measured.
        initrd: The initrd that the stub loads; None or empty: none.
        basis: What confirms the load options.
    """
    events = []
    if options:
        events.append(event_of(2, "load-options", EVENT_TAG, options, basis))
    if initrd:
        events.append(event_of(2, "initrd", EVENT_TAG, initrd, "independent"))
    return events


def shim_variable_events() -> list[ExpectedEvent]:
    """Return the events of a shim's variables in RTMR2; their digests are unknown."""
    names = ("MokList", "MokListX", "MokListTrusted")
    return [ExpectedEvent(2, name, IPL, None, "source") for name in names]
