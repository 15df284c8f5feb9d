"""System calls on device files: one each, with the GIL released, and an OSError for a failure.

`os.read` and `os.write` repeat a call that a signal interrupted, which hides the EINTR that a
device's rules give a meaning to. `fcntl.ioctl` holds the GIL while it works on more than 1024
bytes, so that a slow device stops every thread, and a buffer shorter than what the kernel writes
crashes the interpreter. Signals keep their meaning: Python's handlers run once the call is over.

The arithmetic of ioctl numbers is that of x86 (asm-generic/ioctl.h): direction in bits 30 and 31,
size of the argument in bits 16 to 29, type in bits 8 to 15, number in bits 0 to 7.
"""

import ctypes
import errno
import os
import stat
from collections.abc import Callable
from mmap import mmap
from pathlib import Path
from typing import Final, NamedTuple

from attestkit.errors import UsageError

__all__ = [
    "REAL_CALLS",
    "DeviceCalls",
    "address_of",
    "error_name",
    "ioctl",
    "ior",
    "iow",
    "iowr",
    "open_file",
    "permissions",
    "read",
    "read_file",
    "size_of",
    "write",
]

_LIBC: Final = ctypes.CDLL(None, use_errno=True)  # a CDLL lets the GIL go, a PyDLL would keep it
_LIBC.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)
_LIBC.ioctl.restype = ctypes.c_int
_LIBC.read.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
_LIBC.read.restype = ctypes.c_ssize_t
_LIBC.write.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t)
_LIBC.write.restype = ctypes.c_ssize_t

_LARGEST_READ: Final = 1 << 30  # bytes; Linux itself stops just below 2 GiB
_PIECE: Final = 32 << 10  # bytes to ask for at once; sysfs gives a page at a time
_INTERRUPTIONS: Final = 100  # signals that one file's reading survives


# -- ioctl numbers -----------------------------------------------------------------------------


def ior(kind: str, number: int, size: int) -> int:
    """Return `_IOR(kind, number, size)`: by its name the kernel writes `size` bytes."""
    return _command(2, kind, number, size)


def iow(kind: str, number: int, size: int) -> int:
    """Return `_IOW(kind, number, size)`: by its name the kernel reads `size` bytes."""
    return _command(1, kind, number, size)


def iowr(kind: str, number: int, size: int) -> int:
    """Return `_IOWR(kind, number, size)`: by its name the kernel reads and writes `size` bytes."""
    return _command(3, kind, number, size)


def _command(direction: int, kind: str, number: int, size: int) -> int:
    return direction << 30 | size << 16 | ord(kind) << 8 | number


def size_of(command: int) -> int:
    """Return the size in bytes of the argument that an ioctl number names."""
    return command >> 16 & 0x3FFF


# -- calls -------------------------------------------------------------------------------------


def open_file(path: str | os.PathLike[str], flags: int, folder: int | None = None) -> int:
    """Return a descriptor that no child program inherits; `folder` is where `path` starts.

    Raises:
        OSError: The file cannot be opened so.
    """
    return os.open(path, flags | os.O_CLOEXEC, dir_fd=folder)


def ioctl(fd: int, command: int, buffer: bytearray) -> int:
    """Make one ioctl call on `buffer`, which the kernel may read and write; return its result.

    Raises:
        UsageError: The number names no argument, or the buffer is not a bytearray as long as that.
        OSError: The call failed, or a signal interrupted it: it is not made again.
    """
    size = size_of(command)
    if not size or command >> 32:
        raise UsageError(f"ioctl {command:#x} names no argument of a known size")
    if type(buffer) is not bytearray or len(buffer) != size:
        raise UsageError(f"ioctl {command:#010x} takes a bytearray of {size} bytes")
    argument = (ctypes.c_char * size).from_buffer(buffer)  # until it goes nobody can resize it
    result: int = _LIBC.ioctl(fd, command, argument)
    return _checked(result)


def read(fd: int, size: int) -> bytes:
    """Make one read call for at most `size` bytes, none at the end of the file.

    Raises:
        UsageError: `size` is negative, or above 1 GiB.
        OSError: The call failed, or a signal interrupted it: it is not made again.
    """
    if not 0 <= size <= _LARGEST_READ:
        raise UsageError(f"cannot read {size} bytes at once")
    buffer = ctypes.create_string_buffer(size)
    count = _checked(_LIBC.read(fd, buffer, size))
    return ctypes.string_at(buffer, count)


def write(fd: int, data: bytes) -> int:
    """Make one write call and return how many bytes it took.

    Raises:
        UsageError: `data` is not bytes.
        OSError: The call failed, or a signal interrupted it: it is not made again.
    """
    if type(data) is not bytes:
        raise UsageError(f"a write takes bytes, not {type(data).__name__}")
    return _checked(_LIBC.write(fd, data, len(data)))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def address_of(pages: mmap) -> int:
    """Return where writable mapped memory is, for a struct that points to it.

    It holds as long as `pages` is open, which is the caller's to see to.
    """
    return ctypes.addressof(ctypes.c_char.from_buffer(pages))


class DeviceCalls(NamedTuple):
    """The calls that a backend makes; a test hands in others."""

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
    """Return what a file holds, at most `limit` bytes and one more, which tells that it is longer.

    The size that the file claims is not looked at: the kernel's files claim 0, or a page.

    Raises:
        OSError: It cannot be opened or read.
    """
    fd = calls.open_file(path, os.O_RDONLY, folder)
    try:
        pieces = []
        left, interrupted = limit + 1, 0
        while left:
            try:
                piece = calls.read(fd, min(left, _PIECE))
            except InterruptedError:  # reading on changes nothing
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


# -- what a refusal means ----------------------------------------------------------------------


def error_name(error: OSError) -> str:
    """Return an error as people look it up: "EACCES, permission denied"."""
    number = error.errno or 0
    return f"{errno.errorcode.get(number, f'errno {number}')}, {os.strerror(number).lower()}"


def permissions(path: str | os.PathLike[str]) -> str:
    """Return who may use a file, and who we are: what somebody needs to know who is refused."""
    groups = ",".join(map(str, sorted({os.getegid(), *os.getgroups()})))
    we = f"we are uid {os.geteuid()}, groups {groups}"
    try:
        found = Path(path).stat()
    except OSError as error:
        return f"{path} cannot be looked at ({error_name(error)}); {we}"
    mode = stat.S_IMODE(found.st_mode)
    return f"{path} has mode {mode:04o}, owner uid {found.st_uid}, group {found.st_gid}; {we}"
