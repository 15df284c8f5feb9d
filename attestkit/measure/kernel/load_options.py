"""Load options that firmware and boot loaders give the kernel: its command line in UTF-16."""

from typing import Final

from attestkit.errors import UsageError

MAX_CMDLINE: Final = 1 << 16
"""Largest command line in bytes. Linux uses 2047 of them, firmware measures all."""


def direct_boot_options(
    cmdline: str, *, has_initrd: bool, initrd_first: bool, shim: bool = False
) -> bytes:
    """Return the load options that OVMF gives a kernel of QEMU's `-kernel`.

    Args:
        cmdline: The command line.
        has_initrd: Whether there is an initrd that is not empty.
        initrd_first: Whether the firmware puts `initrd=initrd` before the command line (edk2 from
            202508), not after it.
        shim: Whether the kernel is started by a shim of QEMU's `-shim`.

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
    """Return the load options as text; `initrd` is where `initrd=initrd` stands, or `none`."""
    before = "kernel " * shim + "initrd=initrd " * (initrd == "first")
    return before + cmdline + " initrd=initrd" * (initrd == "last")


def encode_options(text: str, *, terminated: bool = True) -> bytes:
    """Return text as UTF-16LE, with a final NUL unless `terminated` is false, as in GRUB."""
    return (f"{text}\0" if terminated else text).encode("utf-16-le")


def check_cmdline(cmdline: str) -> None:
    """Check that a command line has one representation in firmware, loader and kernel.

    Raises:
        UsageError: If the command line is not ASCII, contains a NUL or is too long.
    """
    if len(cmdline) > MAX_CMDLINE:
        message = f"command line: {len(cmdline)} characters, over {MAX_CMDLINE}"
        raise UsageError(message, reason="too_large")
    if not cmdline.isascii() or "\0" in cmdline:
        raise UsageError("command line: must be ASCII without NUL", reason="encoding")
