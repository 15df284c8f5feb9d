"""What FUSE asks for, answered from the tree of a machine; one request at a time."""

import ctypes
import os
import stat
import time
from collections.abc import Callable
from errno import EACCES, ENOTTY, EPERM
from pathlib import Path
from typing import Final, Protocol

from attestkit.emulator.kernel_files import File, Folder, Ioctl, Link, Node, OpenFile, refuse
from attestkit.emulator.linux_calls import ClientMemory
from attestkit.emulator.machine import Machine

__all__ = ["FuseOperations", "wait_unless_signalled"]

_LOOK: Final = 0.01  # seconds between two looks for a signal
_TAKES, _GIVES = 1, 2  # directions in an ioctl number: data in, data out


class FileInfo(Protocol):
    """libfuse's `struct fuse_file_info`: an open file, and what it is to be like."""

    fh: int  # our number
    flags: int  # of open(2)
    direct_io: int
    nonseekable: int
    noflush: int


class FuseOperations:
    """The operations by the names that mfusepy looks for; an OSError is the answer's errno.

    Args:
        machine: Whose files they are.
        context: Returns uid, gid and thread of the caller.
        ready: Called once, when the mount answers.
    """

    use_ns = True
    flag_nopath = True  # an open file is known by its number, for its path may be gone
    flag_nullpath_ok = True

    def __init__(
        self,
        machine: Machine,
        context: Callable[[], tuple[int, int, int]],
        ready: Callable[[], None],
    ) -> None:
        self._tree = machine.tree
        self._context = context
        self._ready = ready
        self._files: dict[int, tuple[File, OpenFile]] = {}
        self._appended: dict[int, int] = {}  # by open file: where its next append goes
        self._folders: dict[int, str] = {}
        self._number = 0
        self._uid, self._gid = os.getuid(), os.getgid()

    def init_with_config(self, connection: object, config: object) -> None:
        """Tell that the mount answers."""
        del connection, config
        self._ready()

    def getattr(self, path: str | None, info: FileInfo | None = None) -> dict[str, int]:
        """Say what a name is; the kernel asks at every step of a path that it does not know."""
        node = self._tree.find(path) if path is not None else self._opened(_number(info))
        return self._attributes(node)

    def _opened(self, number: int) -> Node:
        """Return the node of an open file or folder."""
        if number in self._folders:
            return self._tree.find(self._folders[number])
        return self._files[number][0]

    def _attributes(self, node: Node) -> dict[str, int]:
        kind = stat.S_IFREG
        if isinstance(node, Folder):
            kind = stat.S_IFDIR
        elif isinstance(node, Link):
            kind = stat.S_IFLNK
        return {
            "st_mode": kind | node.mode,
            "st_nlink": 1,
            "st_size": node.size,
            "st_uid": self._uid,
            "st_gid": self._gid,
        }

    def readlink(self, path: str) -> str:
        """Return what a link points to."""
        node = self._tree.find(path)
        assert isinstance(node, Link)
        return node.target

    def opendir(self, path: str) -> int:
        """Open a folder."""
        self._tree.list(path)
        self._number += 1
        self._folders[self._number] = path
        return self._number

    def readdir(self, path: str | None, number: int) -> list[str]:
        """Return the names in an open folder."""
        del path
        return [".", "..", *self._tree.list(self._folders[number])]

    def releasedir(self, path: str | None, number: int) -> int:
        """Close a folder."""
        del path
        del self._folders[number]
        return 0

    def mkdir(self, path: str, mode: int) -> int:
        """Make a report entry."""
        del mode
        self._tree.make(path)
        return 0

    def rmdir(self, path: str) -> int:
        """Remove a report entry."""
        self._tree.remove(path)
        return 0

    def create(self, path: str, mode: int, info: object) -> int:
        """Refuse: no file can be made in configfs or sysfs."""
        del path, mode, info
        raise refuse(EACCES)

    def mknod(self, path: str, mode: int, device: int) -> int:
        """Refuse."""
        del path, mode, device
        raise refuse(EPERM)

    def unlink(self, path: str) -> int:
        """Refuse: the files of an entry go with it."""
        del path
        raise refuse(EPERM)

    def rename(self, old: str, new: str) -> int:
        """Refuse."""
        del old, new
        raise refuse(EPERM)

    def symlink(self, target: str, source: str) -> int:
        """Refuse."""
        del target, source
        raise refuse(EPERM)

    def link(self, target: str, source: str) -> int:
        """Refuse."""
        del target, source
        raise refuse(EPERM)

    def open(self, path: str, info: FileInfo) -> int:
        """Open a file; nothing of it is kept in the kernel's cache."""
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

    def truncate(self, path: str | None, length: int, info: FileInfo | None = None) -> int:
        """Accept, as configfs and sysfs do."""
        del length
        file = self._tree.file(path) if path is not None else self._files[_number(info)][0]
        file.truncate()
        return 0

    def read(self, path: str | None, size: int, offset: int, info: FileInfo) -> bytes:
        """Read from an open file."""
        del path
        return self._files[info.fh][1].read(size, offset)

    def write(self, path: str | None, data: bytes, offset: int, info: FileInfo) -> int:
        """Write to an open file. O_APPEND means nothing to these files, to FUSE it would."""
        del path
        number = info.fh
        opened = self._files[number][1]
        if number not in self._appended:
            return opened.write(data, offset)
        count = opened.write(data, self._appended[number])
        self._appended[number] += count
        return count

    def flush(self, path: str | None, info: FileInfo) -> int:
        """Tell an open file that somebody closes it; the close waits for this."""
        del path
        self._files[info.fh][1].flush()
        return 0

    def release(self, path: str | None, info: FileInfo) -> int:
        """Forget an open file; the last close may have returned already."""
        del path
        self._appended.pop(info.fh, None)
        self._files.pop(info.fh)[1].flush()
        return 0

    def ioctl(  # noqa: PLR0917 - as libfuse calls it
        self,
        path: str | None,
        command: int,
        argument: int | None,
        info: FileInfo,
        flags: int,
        data: int | None,
    ) -> int:
        """Do a device's command. FUSE carries data in and out as the number says."""
        del path, flags
        if info.fh not in self._files:  # a folder
            raise refuse(ENOTTY)
        size, direction = command >> 16 & 0x3FFF, command >> 30
        given = ctypes.string_at(data, size) if data and direction & _TAKES else b""
        memory = ClientMemory(self._context()[2])
        call = Ioctl(command, argument or 0, given, memory)
        answer = self._files[info.fh][1].ioctl(call)
        if data and direction & _GIVES:
            ctypes.memmove(data, answer, min(size, len(answer)))
        return 0


def _number(info: FileInfo | None) -> int:
    """Return the number of an open file, which libfuse tells where it tells no path."""
    assert info is not None
    return info.fh


def wait_unless_signalled(
    seconds: float,
    thread: int,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Sleep for `seconds`; return False as soon as `thread` or its process has a signal to handle.

    FUSE tells of signals too, but only a program that reads its requests meanwhile.
    """
    end = clock() + seconds
    while (left := end - clock()) > 0:
        if _has_signal(thread):
            return False
        sleep(min(_LOOK, left))
    return True


def _has_signal(thread: int) -> bool:
    try:
        text = Path(f"/proc/{thread}/status").read_text(encoding="ascii", errors="replace")
    except OSError:  # gone, or nobody that can be seen from here
        return False
    masks = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    pending = int(masks.get("SigPnd", "0"), 16) | int(masks.get("ShdPnd", "0"), 16)
    return bool(pending & ~int(masks.get("SigBlk", "0"), 16))
