"""Another process's memory: where an old driver's ioctl follows pointers, so must its emulation."""

import ctypes
from errno import EFAULT, EPERM
from typing import Final

__all__ = ["ClientMemory"]

_LIMIT: Final = 1 << 20  # bytes of one access; the largest buffer of the interfaces is 128 KiB


class _Span(ctypes.Structure):
    """`struct iovec`."""

    _fields_ = (("base", ctypes.c_void_p), ("size", ctypes.c_size_t))


class ClientMemory:
    """The memory of the process `pid`, or of the one that has the thread of that number."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def read(self, address: int, size: int) -> bytes:
        """Return `size` bytes at `address`.

        Raises:
            OSError: EFAULT if they are not all there, EPERM if we may not look.
        """
        buffer = ctypes.create_string_buffer(size or 1)
        self._move("process_vm_readv", address, buffer, size)
        return buffer.raw[:size]

    def write(self, address: int, data: bytes) -> None:
        """Put `data` at `address`; errors as `read`."""
        buffer = ctypes.create_string_buffer(data, len(data) or 1)
        self._move("process_vm_writev", address, buffer, len(data))

    def _move(
        self, call: str, address: int, buffer: "ctypes.Array[ctypes.c_char]", size: int
    ) -> None:
        if not 0 <= size <= _LIMIT:
            raise OSError(EFAULT, "too much memory at once")
        libc = ctypes.CDLL(None, use_errno=True)
        here = _Span(ctypes.addressof(buffer), size)
        there = _Span(address, size)
        moved = getattr(libc, call)(
            self.pid, ctypes.byref(here), 1, ctypes.byref(there), 1, ctypes.c_ulong(0)
        )
        if moved != size:
            number = ctypes.get_errno()
            raise OSError(EPERM if moved < 0 and number == EPERM else EFAULT, call)
