"""System calls on device files: made once, with the GIL released; failures are OSErrors.

The standard library is not usable here: `os.read` and `os.write` retry after EINTR, which has a
meaning for these devices (PEP 475). `fcntl.ioctl` holds the GIL for buffers above 1024 bytes, and a
buffer shorter than the kernel's write corrupts memory. Python's signal handlers run after the call.

ioctl numbers are those of asm-generic/ioctl.h: direction in bits 30 and 31, size of the argument in
bits 16 to 29, type in bits 8 to 15, number in bits 0 to 7.
"""

import ctypes
import os
from collections.abc import Callable
from mmap import mmap
from typing import Final, NamedTuple

from attestkit.errors import UsageError

_LIBC: Final = ctypes.CDLL(None, use_errno=True)  # a CDLL releases the GIL, a PyDLL does not
_LIBC.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)
_LIBC.ioctl.restype = ctypes.c_int
_LIBC.read.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
_LIBC.read.restype = ctypes.c_ssize_t
_LIBC.write.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t)
_LIBC.write.restype = ctypes.c_ssize_t

_LARGEST_READ: Final = 1 << 30  # bytes; Linux itself stops just below 2 GiB
_PIECE: Final = 32 << 10  # bytes per read; sysfs returns one page at a time
_INTERRUPTIONS: Final = 100  # EINTRs that read_file ignores


# -- ioctl numbers -----------------------------------------------------------------------------


def ior(kind: str, number: int, size: int) -> int:
    """Return the ioctl number `_IOR(kind, number, size)`: the kernel writes `size` bytes.

    `kind` is the letter of the driver.
    """
    return _command(2, kind, number, size)


def iow(kind: str, number: int, size: int) -> int:
    """Return the ioctl number `_IOW(kind, number, size)`: the kernel reads `size` bytes.

    `kind` is the letter of the driver.
    """
    return _command(1, kind, number, size)


def iowr(kind: str, number: int, size: int) -> int:
    """Return the ioctl number `_IOWR(kind, number, size)`: the kernel reads and writes the bytes.

    `kind` is the letter of the driver.
    """
    return _command(3, kind, number, size)


def _command(direction: int, kind: str, number: int, size: int) -> int:
    return direction << 30 | size << 16 | ord(kind) << 8 | number


def size_of(command: int) -> int:
    """Return the size in bytes of an ioctl's argument, as its number `command` encodes it."""
    return command >> 16 & 0x3FFF


# -- calls -------------------------------------------------------------------------------------


def open_file(path: str | os.PathLike[str], flags: int, folder: int | None = None) -> int:
    """Open a file with `flags` (O_RDONLY etc.) and O_CLOEXEC; return its descriptor.

    A relative path is relative to the directory descriptor `folder`; None: the working directory.

    Raises:
        OSError: If the file cannot be opened.
    """
    return os.open(path, flags | os.O_CLOEXEC, dir_fd=folder)


def ioctl(fd: int, command: int, buffer: bytearray) -> int:
    """Call ioctl once on the descriptor `fd`, with the number `command`; return its result.

    `buffer` is the argument, which the kernel may change.

    Raises:
        UsageError: If the number has no argument size, or `buffer` is not a bytearray of that size.
        OSError: If the call failed or was interrupted; it is not retried.
    """
    size = size_of(command)
    if not size or command >> 32:
        text = f"ioctl {command:#x}: no argument size in the request number"
        raise UsageError(text, reason="wrong_value")
    if type(buffer) is not bytearray or len(buffer) != size:
        found = len(buffer) if type(buffer) is bytearray else type(buffer).__name__
        text = f"ioctl {command:#010x}: buffer must be a bytearray of {size} bytes, not {found}"
        raise UsageError(text, reason="wrong_size" if type(buffer) is bytearray else "wrong_type")
    argument = (ctypes.c_char * size).from_buffer(buffer)  # locks the size of `buffer`
    result: int = _LIBC.ioctl(fd, command, argument)
    return _check_result(result)


def read(fd: int, size: int) -> bytes:
    """Call read once on the descriptor `fd` for at most `size` bytes; empty at the end of the file.

    Raises:
        UsageError: If `size` is negative or above 1 GiB.
        OSError: If the call failed or was interrupted; it is not retried.
    """
    if not 0 <= size <= _LARGEST_READ:
        raise UsageError(f"size: must be 0 to {_LARGEST_READ}, not {size}", reason="out_of_range")
    buffer = ctypes.create_string_buffer(size)
    count = _check_result(_LIBC.read(fd, buffer, size))
    return ctypes.string_at(buffer, count)


def write(fd: int, data: bytes) -> int:
    """Call write once on the descriptor `fd`; return the number of bytes written, maybe not all.

    Raises:
        UsageError: If `data` is not bytes.
        OSError: If the call failed or was interrupted; it is not retried.
    """
    if type(data) is not bytes:
        raise UsageError(f"data: must be bytes, not {type(data).__name__}", reason="wrong_type")
    return _check_result(_LIBC.write(fd, data, len(data)))


def _check_result(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def address_of(pages: mmap) -> int:
    """Return the address of writable mapped memory, valid while `pages` is open."""
    return ctypes.addressof(ctypes.c_char.from_buffer(pages))


class DeviceCalls(NamedTuple):
    """The system calls of a backend; tests replace them. They raise OSError.

    Attributes:
        open_file: Called with path, flags of open(2), and the descriptor of a folder to which the
            path is relative, or None; returns the descriptor.
        ioctl: Called with descriptor, request number and buffer, which the kernel reads and
            writes; returns the result of the call.
        read: Called with descriptor and maximum number of bytes; returns the bytes.
        write: Called with descriptor and bytes; returns how many were written.
    """

    open_file: Callable[[str | os.PathLike[str], int, int | None], int] = open_file
    ioctl: Callable[[int, int, bytearray], int] = ioctl
    read: Callable[[int, int], bytes] = read
    write: Callable[[int, bytes], int] = write


REAL_CALLS: Final = DeviceCalls()


def read_file(
    path: str | os.PathLike[str],
    limit: int,
    *,
    folder: int | None = None,
    calls: DeviceCalls = REAL_CALLS,
) -> bytes:
    """Return at most the first `limit` + 1 bytes of a file.

    A result of `limit` + 1 bytes means that the file is longer than `limit`.
    The size from fstat is ignored: files of the kernel report 0 or one page.

    Args:
        path: The file; if relative, relative to `folder`.
        limit: Bytes.
        folder: Descriptor of a directory; None: the working directory.
        calls: The system calls.

    Raises:
        OSError: If the file cannot be opened or read.
    """
    fd = calls.open_file(path, os.O_RDONLY, folder)
    try:
        pieces = []
        left, interrupted = limit + 1, 0
        while left:
            try:
                piece = calls.read(fd, min(left, _PIECE))
            except InterruptedError:  # no data was consumed
                if (interrupted := interrupted + 1) > _INTERRUPTIONS:
                    raise
                continue
            if not piece:
                break
            pieces.append(piece)
            left -= len(piece)
        return b"".join(pieces)
    finally:
        os.close(fd)
