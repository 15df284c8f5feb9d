"""unshare and mount of Linux: Python has the first since 3.12 only, the second never.

Numbers: include/uapi/linux/sched.h and mount.h.
"""

import ctypes
import os
from typing import Final

__all__ = [
    "MS_BIND",
    "MS_NOSUID",
    "MS_REC",
    "MS_SLAVE",
    "NEW_MOUNTS",
    "NEW_USERS",
    "mount",
    "unshare",
]

NEW_MOUNTS: Final = 0x00020000  # CLONE_NEWNS
NEW_USERS: Final = 0x10000000  # CLONE_NEWUSER
MS_NOSUID: Final = 1 << 1
MS_BIND: Final = 1 << 12
MS_REC: Final = 1 << 14
MS_SLAVE: Final = 1 << 19


def unshare(namespaces: int) -> None:
    """Give this process namespaces of its own; OSError if it may not."""
    _checked("unshare", ctypes.c_int(namespaces))


def mount(source: str, target: str, *, kind: str = "", flags: int = 0, options: str = "") -> None:
    """Mount a file system of a kind, or with MS_BIND what is at `source`; OSError if not."""
    _checked(
        "mount",
        os.fsencode(source),
        os.fsencode(target),
        kind.encode() or None,
        ctypes.c_ulong(flags),
        options.encode() or None,
        path=target,
    )


def _checked(call: str, *arguments: object, path: str | None = None) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, call)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
