"""Kernel command lines in measurement documents.

Registers cover the root file system only through its hash on the command line.
"""

import re
from typing import Final

from attestkit._crypto.hashes import sha384

MAX_CMDLINE: Final = 2048
"""Largest size in bytes: COMMAND_LINE_SIZE of Linux on x86."""

_ROOTFS: Final = re.compile(rb"dstack\.rootfs_hash=[0-9a-fA-F]{64}")


def has_rootfs_hash(cmdline: str) -> bool:
    """Return whether the kernel finds the word `dstack.rootfs_hash=<64 hex digits>` in `cmdline`.

    The kernel stops at a NUL, and separates words by ASCII whitespace.
    """
    return any(map(_ROOTFS.fullmatch, cmdline.partition("\0")[0].encode().split()))


def load_options_digest(options: str) -> bytes:
    """Return the SHA-384 of UEFI load options: UTF-16, little-endian, with a final NUL."""
    return sha384(f"{options}\0".encode("utf-16-le"))
