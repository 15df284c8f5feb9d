"""Files and folders that behave as a kernel's, as plain objects: FUSE is not known here.

Every refusal is an OSError with the errno that the kernel gives. What each kind of file does was
read in Linux 6.12: fs/configfs/file.c, fs/sysfs/file.c.
"""

import os
from collections.abc import Callable
from errno import EACCES, EEXIST, EFBIG, EIO, EISDIR, ENOENT, ENOTDIR, ENOTTY, EPERM
from typing import Final, NamedTuple

from attestkit.backends.simulator.faults.fault_specs import Faults
from attestkit.emulator.linux_calls import ClientMemory

__all__ = ["Content", "File", "Folder", "Ioctl", "Link", "OpenFile", "TextFile", "Tree", "refuse"]


def refuse(number: int) -> OSError:
    """Return the OSError of an errno, to be raised."""
    return OSError(number, os.strerror(number))


class Ioctl(NamedTuple):
    """One ioctl, as a device gets it."""

    command: int
    argument: int  # as the caller gave it, an address mostly
    given: bytes  # what lies there, as far as the number says that it is read
    memory: ClientMemory  # the caller's


class OpenFile:
    """An open file description; a kind of file overrides what it can do."""

    seekable = True
    flushes = False  # whether it wants to hear of a close

    def read(self, size: int, offset: int) -> bytes:
        """Return up to `size` bytes from `offset`."""
        del size, offset
        raise refuse(EIO)

    def write(self, data: bytes, offset: int) -> int:
        """Take bytes; return how many."""
        del data, offset
        raise refuse(EIO)

    def ioctl(self, call: Ioctl) -> bytes:
        """Do a command; return what is copied back, where the number says that something is."""
        del call
        raise refuse(ENOTTY)

    def flush(self) -> None:
        """Somebody closes a descriptor of this file; others may have copies of it."""


class Node:
    """A name's content: a file, a folder or a link."""

    mode = 0  # permissions
    size = 0  # bytes, as stat tells it


class Link(Node):
    """A symbolic link."""

    mode = 0o777

    def __init__(self, target: str) -> None:
        self.target = target


class Folder(Node):
    """A folder; nothing can be made in one unless its kind says so."""

    mode = 0o755

    def __init__(self) -> None:
        self.names: dict[str, Node] = {}

    def make(self, name: str) -> "Folder":
        """Make a folder in this one."""
        del name
        raise refuse(EPERM)

    def remove(self, name: str) -> None:
        """Remove a folder in this one."""
        del name
        raise refuse(EPERM)


class File(Node):
    """A file with a label, by which faults know it; a kind says what an open one does."""

    def __init__(self, label: str, faults: Faults, *, mode: int, size: int = 0) -> None:
        self.label = label
        self.faults = faults
        self.mode = mode
        self.size = size

    def open(self, flags: int) -> OpenFile:
        """Open it. The mode counts for everybody, root too, as in configfs and sysfs."""
        self.faults.check(f"open:{self.label}")
        access = flags & os.O_ACCMODE
        if access != os.O_RDONLY and not self.mode & 0o222:
            raise refuse(EACCES)
        if access != os.O_WRONLY and not self.mode & 0o444:
            raise refuse(EACCES)
        return self.opened()

    def opened(self) -> OpenFile:
        """Return a new open file description."""
        raise refuse(EIO)

    def truncate(self) -> None:
        """Open with O_TRUNC: accepted, and means nothing."""


class Snapshot(OpenFile):
    """Content that is made at the first read and then stays, as text of configfs and procfs."""

    def __init__(self, file: File, make: Callable[[], bytes]) -> None:
        self._operation = f"read:{file.label}"
        self._faults = file.faults
        self._make = make
        self._content: bytes | None = None

    def read(self, size: int, offset: int) -> bytes:
        """Return a part of the content."""
        if self._content is None:
            self._faults.check(self._operation)
            self._content = self._make()
        return self._content[offset : offset + size]


class TextFile(File):
    """A read-only file whose content is made when somebody reads it."""

    def __init__(
        self, label: str, faults: Faults, content: Callable[[], bytes], *, mode: int = 0o444
    ) -> None:
        super().__init__(label, faults, mode=mode)
        self._content = content

    def opened(self) -> OpenFile:
        """Return an open file with its content yet to be made."""
        return Snapshot(self, self._content)


class Content(TextFile):
    """A read-only file of bytes that do not change."""

    def __init__(self, label: str, faults: Faults, data: bytes, *, mode: int = 0o444) -> None:
        super().__init__(label, faults, lambda: data, mode=mode)
        self.size: int = len(data)


class Tree:
    """All names, by path: `/sys/kernel/config`."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {"/": Folder()}

    def add(self, path: str, node: Node) -> None:
        """Put a node there, and the folders above it where they are missing."""
        parent, _, name = path.rpartition("/")
        parent = parent or "/"
        if parent not in self._nodes:
            self.add(parent, Folder())
        self._folder(parent).names[name] = node
        self._nodes[path] = node
        if isinstance(node, Folder):
            for inner, child in node.names.items():
                self._nodes[f"{path}/{inner}"] = child

    def find(self, path: str) -> Node:
        """Return the node there; ENOENT if there is none."""
        node = self._nodes.get(path)
        if node is None:
            raise refuse(ENOENT)
        return node

    def file(self, path: str) -> File:
        """Return the file there."""
        node = self.find(path)
        if isinstance(node, Folder):
            raise refuse(EISDIR)
        assert isinstance(node, File)
        return node

    def list(self, path: str) -> list[str]:
        """Return the names in a folder."""
        return list(self._folder(path).names)

    def make(self, path: str) -> None:
        """Make a folder, as far as the one above lets that happen."""
        if path in self._nodes:
            raise refuse(EEXIST)
        parent, _, name = path.rpartition("/")
        folder = self._folder(parent or "/").make(name)
        self.add(path, folder)

    def remove(self, path: str) -> None:
        """Remove a folder with its files, as far as the one above lets that happen."""
        node = self.find(path)
        if not isinstance(node, Folder):
            raise refuse(ENOTDIR)
        parent, _, name = path.rpartition("/")
        self._folder(parent or "/").remove(name)
        self.drop(path)

    def drop(self, path: str) -> None:
        """Forget a folder and its files, whatever anybody says."""
        parent, _, name = path.rpartition("/")
        folder = self._folder(path)
        del self._folder(parent or "/").names[name]
        del self._nodes[path]
        for inner in folder.names:
            del self._nodes[f"{path}/{inner}"]

    def _folder(self, path: str) -> Folder:
        node = self.find(path)
        if not isinstance(node, Folder):
            raise refuse(ENOTDIR)
        return node


WRITE_LIMIT: Final = 4095  # bytes of one write to a text file of configfs


class BinaryWriter(OpenFile):
    """An open binary file of configfs that is written: `commit` gets all of it at the close.

    A write that is refused counts too: the commit is then of what was there before it.
    """

    seekable = False
    flushes = True

    def __init__(self, file: File, limit: int, commit: Callable[[bytes], None]) -> None:
        self._operation = f"write:{file.label}"
        self._faults = file.faults
        self._limit = limit
        self._commit = commit
        self._buffer = bytearray()
        self._written = False  # since the last commit

    def write(self, data: bytes, offset: int) -> int:
        """Keep bytes; EFBIG beyond the limit."""
        self._faults.check(self._operation)
        self._written = True
        if offset + len(data) > self._limit:
            raise refuse(EFBIG)
        if missing := offset + len(data) - len(self._buffer):
            self._buffer += bytes(max(0, missing))
        self._buffer[offset : offset + len(data)] = data
        return len(data)

    def flush(self) -> None:
        """Commit, at the close of any copy of the descriptor.

        The kernel waits for the last one, which FUSE tells only after that close has returned.
        """
        if self._written:
            self._written = False
            self._commit(bytes(self._buffer))
