"""FUSE operations on the file tree of an emulated machine; requests are serialised."""

import ctypes
import os
import stat
import time
from collections.abc import Callable
from errno import EACCES, ENOTTY, EPERM
from pathlib import Path
from typing import Any, Final, Protocol

from attestkit.emulator import kernel_files
from attestkit.emulator.linux_calls import ClientMemory
from attestkit.emulator.machine import Machine

_POLL_INTERVAL: Final = 0.01  # seconds
_WRITE, _READ = 1, 2  # directions in an ioctl number (_IOC_WRITE, _IOC_READ)


class FileInfo(Protocol):
    """Fields of libfuse's `struct fuse_file_info`.

    Attributes:
        fh: Handle of the open file.
        flags: Flags of open(2).
        direct_io: 1: the kernel does not cache the content.
        nonseekable: 1: the file cannot be read or written at an offset.
        noflush: 1: close(2) makes no request.
    """

    fh: int  # the file handle
    flags: int  # of open(2)
    direct_io: int
    nonseekable: int
    noflush: int


class FuseOperations:
    """FUSE operations, named as mfusepy expects; an OSError becomes the errno of the response.

    A path is absolute in the mount, such as `/dev/tdx_guest`. For an open file it is None: then
    `info` has its handle. Operations without a result return 0.

    Args:
        machine: The machine with the files.
        context: Returns uid, gid and thread id of the caller.
        ready: Called once, when the file system is mounted.
        notify: Wakes the program of a poll handle, and frees the handle.
    """

    use_ns = True
    flag_nopath = True  # open files are identified by handle, as the path may be removed
    flag_nullpath_ok = True

    def __init__(
        self,
        machine: Machine,
        context: Callable[[], tuple[int, int, int]],
        ready: Callable[[], None],
        notify: Callable[[int], None],
    ) -> None:
        self._tree = machine.tree
        self._context = context
        self._ready = ready
        self._notify = notify
        self._waiting: dict[int, int] = {}  # by handle of a file: handle of poll(2)
        self._files: dict[int, tuple[kernel_files.File, kernel_files.OpenFile]] = {}
        self._appended: dict[int, int] = {}  # by handle: offset of the next append
        self._folders: dict[int, str] = {}
        self._number = 0
        self._uid, self._gid = os.getuid(), os.getgid()

    def init_with_config(self, _connection: object, _config: object) -> None:
        """Report that the kernel has mounted the file system, by the constructor's `ready`.

        The arguments are ignored.
        """
        self._ready()

    def getattr(self, path: str | None, info: FileInfo | None = None) -> dict[str, int]:
        """Return the attributes of a file or folder by name, such as `st_mode`.

        If `path` is None, it is the open one whose handle is in `info`.
        """
        node = self._tree.find(path) if path is not None else self._node_of(_handle(info))
        return self._attributes(node)

    def _node_of(self, number: int) -> kernel_files.Node:
        """Return the node of an open file or folder with the handle `number`."""
        if number in self._folders:
            return self._tree.find(self._folders[number])
        return self._files[number][0]

    def _attributes(self, node: kernel_files.Node) -> dict[str, int]:
        kind = stat.S_IFREG
        if isinstance(node, kernel_files.Folder):
            kind = stat.S_IFDIR
        elif isinstance(node, kernel_files.Link):
            kind = stat.S_IFLNK
        return {
            "st_mode": kind | node.mode,
            "st_nlink": 1,
            "st_size": node.size,
            "st_uid": self._uid,
            "st_gid": self._gid,
        }

    def readlink(self, path: str) -> str:
        """Return the target of the link at `path`."""
        node = self._tree.find(path)
        assert isinstance(node, kernel_files.Link)
        return node.target

    def opendir(self, path: str) -> int:
        """Open the folder at `path`, an absolute path in the mount, and return its handle."""
        self._tree.list(path)
        self._number += 1
        self._folders[self._number] = path
        return self._number

    def readdir(self, _path: str | None, number: int) -> list[str]:
        """Return the names in an open folder, whose handle is `number`; the path is ignored."""
        return [".", "..", *self._tree.list(self._folders[number])]

    def releasedir(self, _path: str | None, number: int) -> int:
        """Close the open folder whose handle is `number`; the path is ignored."""
        del self._folders[number]
        return 0

    def mkdir(self, path: str, _mode: int) -> int:
        """Create the folder `path`, which must be a report entry; its mode is ignored."""
        self._tree.make(path)
        return 0

    def rmdir(self, path: str) -> int:
        """Remove the folder `path`, which must be a report entry."""
        self._tree.remove(path)
        return 0

    def create(self, *_: object) -> int:
        """Raise EACCES: configfs and sysfs do not allow new files."""
        raise kernel_files.os_error(EACCES)

    def _refuse(self, *_: object) -> int:
        """Raise EPERM: files are created and removed only together with their entry."""
        raise kernel_files.os_error(EPERM)

    mknod: Callable[..., int] = _refuse
    unlink: Callable[..., int] = _refuse
    rename: Callable[..., int] = _refuse
    symlink: Callable[..., int] = _refuse
    link: Callable[..., int] = _refuse

    def open(self, path: str, info: FileInfo) -> int:
        """Open the file at `path` with the flags in `info`, without caching by the kernel.

        The handle and the options are set in `info`.
        """
        file = self._tree.file(path)
        opened = file.open(info.flags)
        if info.flags & os.O_TRUNC:
            file.truncate()
        self._number += 1
        self._files[self._number] = file, opened
        if info.flags & os.O_APPEND:
            self._appended[self._number] = 0
        info.fh = self._number
        info.direct_io = 1
        info.nonseekable = not opened.seekable
        info.noflush = not opened.flushes
        return 0

    def truncate(self, path: str | None, _length: int, info: FileInfo | None = None) -> int:
        """Call the file's `truncate`, which by default does nothing, as in configfs and sysfs.

        The length is ignored. If `path` is None, the file is the open one in `info`.
        """
        file = self._tree.file(path) if path is not None else self._files[_handle(info)][0]
        file.truncate()
        return 0

    def read(self, _path: str | None, size: int, offset: int, info: FileInfo) -> bytes:
        """Return at most `size` bytes at `offset` of the open file in `info`."""
        data = self._files[info.fh][1].read(size, offset)
        self._wake(info.fh)
        return data

    def write(self, _path: str | None, data: bytes, offset: int, info: FileInfo) -> int:
        """Write `data` at `offset` of the open file in `info`; return the number of bytes written.

        These files ignore O_APPEND, which FUSE would apply to the offset.
        """
        number = info.fh
        opened = self._files[number][1]
        if number not in self._appended:
            count = opened.write(data, offset)
            self._wake(number)
            return count
        count = opened.write(data, self._appended[number])
        self._appended[number] += count
        return count

    def flush(self, _path: str | None, info: FileInfo) -> int:
        """Flush the open file in `info` at a close(2), which waits for this."""
        self._files[info.fh][1].flush()
        return 0

    def release(self, _path: str | None, info: FileInfo) -> int:
        """Release the open file in `info`; the last close(2) may have returned already."""
        self._appended.pop(info.fh, None)
        opened = self._files.pop(info.fh)[1]
        self._wake(info.fh)
        opened.flush()
        opened.release()
        return 0

    def poll(
        self, _path: str | None, info: FileInfo, handle: int | None, events: "ctypes.Array[Any]"
    ) -> int:
        """Set `events[0]` to the POLL bits of the open file in `info` that are ready.

        `handle` is that of a program that waits in poll(2), which is stored; 0 or None: no program
        waits.
        """
        events[0] = (
            self._files[info.fh][1].poll() if info.fh in self._files else kernel_files.ALWAYS_READY
        )
        if handle:
            self._wake(info.fh)  # libfuse has one handle for each open file
            self._waiting[info.fh] = handle
        return 0

    def _wake(self, number: int) -> None:
        """Make the kernel evaluate a program's poll(2) of the open file `number` again."""
        if handle := self._waiting.pop(number, None):
            self._notify(handle)

    def ioctl(
        self,
        _path: str | None,
        command: int,
        argument: int | None,
        info: FileInfo,
        _flags: int,
        data: int | None,
    ) -> int:
        """Execute an ioctl of an open file.

        Args:
            command: Request number; it contains size and direction of the data.
            argument: Third argument of ioctl(2), usually an address in the caller's memory; None:
                0.
            info: The open file.
            data: Address of libfuse's buffer, from and to which FUSE copies the data; None: no
                data.
        """
        if info.fh not in self._files:  # a folder
            raise kernel_files.os_error(ENOTTY)
        size, direction = command >> 16 & 0x3FFF, command >> 30
        content = ctypes.string_at(data, size) if data and direction & _WRITE else b""
        memory = ClientMemory(self._context()[2])
        call = kernel_files.Ioctl(command, argument or 0, content, memory)
        answer = self._files[info.fh][1].ioctl(call)
        if data and direction & _READ:
            ctypes.memmove(data, answer, min(size, len(answer)))
        return 0


def _handle(info: FileInfo | None) -> int:
    """Return the handle of the open file `info`, which libfuse passes instead of a path."""
    assert info is not None
    return info.fh


def wait_unless_signalled(seconds: float, thread: int) -> bool:
    """Sleep for `seconds`; return False as soon as a thread or its process has a pending signal.

    FUSE reports signals too, but only to a program that reads requests at the same time. `thread`
    is the id of the thread.
    """
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if _has_signal(thread):
            return False
        time.sleep(min(_POLL_INTERVAL, left))
    return True


def _has_signal(thread: int) -> bool:
    try:
        text = Path(f"/proc/{thread}/status").read_text(encoding="ascii", errors="replace")
    except OSError:  # ended, or not visible in this PID namespace
        return False
    masks = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    pending = int(masks.get("SigPnd", "0"), 16) | int(masks.get("ShdPnd", "0"), 16)
    return bool(pending & ~int(masks.get("SigBlk", "0"), 16))
