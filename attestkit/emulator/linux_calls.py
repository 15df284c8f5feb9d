"""System calls that Python lacks, and differences between Linux releases.

The calls are unshare, mount, and access to the memory of another process; numbers:
include/uapi/linux/sched.h and mount.h. Releases differ in the interfaces of TDX and SEV-SNP guests.
"""

import ctypes
import os
import re
from errno import EFAULT, EPERM
from typing import Final

from attestkit._sanitize import shown
from attestkit.backends.linux.kernel_paths import KernelRelease
from attestkit.errors import UsageError

_TEXT: Final = re.compile(r"\d{1,3}\.\d{1,3}(\.\d{1,5})?", re.ASCII)
_LAST: Final = 65535  # patch level of the last release of a series


class EmulatedKernel(KernelRelease):
    """A release of Linux, such as `6.12.80`, or `6.12` for the last release of the series."""

    @classmethod
    def parse(cls, text: str) -> "EmulatedKernel":
        """Parse `text`, such as `6.12` or `6.12.80`; UsageError otherwise."""
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
        """Bytes of the buffer shared with the host for quotes, with its header of 24 bytes."""
        return 128 << 10 if self.number >= (7, 0) else 8 << 10


NEW_MOUNTS: Final = 0x00020000  # CLONE_NEWNS
NEW_USERS: Final = 0x10000000  # CLONE_NEWUSER
NEW_NETWORK: Final = 0x40000000  # CLONE_NEWNET
MS_NOSUID: Final = 1 << 1
MS_BIND: Final = 1 << 12
MS_REC: Final = 1 << 14
MS_SLAVE: Final = 1 << 19


def unshare(namespaces: int) -> None:
    """Move this process into new namespaces, given as CLONE_ flags; raises OSError."""
    _call_libc("unshare", ctypes.c_int(namespaces))


def mount(source: str, target: str, *, kind: str = "", flags: int = 0, options: str = "") -> None:
    """Mount a file system on the path `target`; raises OSError.

    Args:
        source: Device or name; with MS_BIND the file or folder to show.
        target: File or folder to mount on.
        kind: Type of the file system, such as `tmpfs`; empty: none.
        flags: MS_ flags.
        options: Options of the file system, such as `mode=755`; empty: none.
    """
    _call_libc(
        "mount",
        os.fsencode(source),
        os.fsencode(target),
        kind.encode() or None,
        ctypes.c_ulong(flags),
        options.encode() or None,
        path=target,
    )


def _call_libc(call: str, *arguments: object, path: str | None = None) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, call)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)


# Memory of a client process, for ioctls of old drivers that follow pointers.

_LIMIT: Final = 1 << 20  # bytes of one access; the largest buffer of the interfaces is 128 KiB


class _Iovec(ctypes.Structure):
    """`struct iovec`."""

    _fields_ = (("base", ctypes.c_void_p), ("size", ctypes.c_size_t))


class ClientMemory:
    """The memory of the process with the process or thread id `pid`.

    An OSError becomes the errno of that process's ioctl; its text is not shown.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def read(self, address: int, size: int) -> bytes:
        """Return `size` bytes at `address`.

        Raises:
            OSError: EFAULT if not all of the bytes are mapped, EPERM without permission.
        """
        buffer = ctypes.create_string_buffer(size or 1)
        self._move("process_vm_readv", address, buffer, size)
        return buffer.raw[:size]

    def write(self, address: int, data: bytes) -> None:
        """Write `data` at `address`.

        Raises:
            OSError: As for `read`.
        """
        buffer = ctypes.create_string_buffer(data, len(data) or 1)
        self._move("process_vm_writev", address, buffer, len(data))

    def _move(
        self, call: str, address: int, buffer: "ctypes.Array[ctypes.c_char]", size: int
    ) -> None:
        if not 0 <= size <= _LIMIT:
            raise OSError(EFAULT, "size: above the limit")
        libc = ctypes.CDLL(None, use_errno=True)
        here = _Iovec(ctypes.addressof(buffer), size)
        there = _Iovec(address, size)
        moved = getattr(libc, call)(
            self.pid, ctypes.byref(here), 1, ctypes.byref(there), 1, ctypes.c_ulong(0)
        )
        if moved != size:
            number = ctypes.get_errno()
            raise OSError(EPERM if moved < 0 and number == EPERM else EFAULT, call)
