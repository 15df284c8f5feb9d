"""Files and folders that behave like those of configfs and sysfs, independent of FUSE.

Errors are OSErrors with the kernel's errno. Source: fs/configfs/file.c and fs/sysfs/file.c of Linux
6.12.
"""

import os
import select
from collections.abc import Callable
from dataclasses import dataclass
from errno import EACCES, EEXIST, EFBIG, EIO, EISDIR, ENOENT, ENOTDIR, ENOTTY, EPERM
from typing import Final, NamedTuple

from attestkit.backends.simulator.faults.fault_specs import Faults
from attestkit.emulator.linux_calls import ClientMemory

ALWAYS_READY: Final = select.POLLIN | select.POLLOUT | select.POLLRDNORM | select.POLLWRNORM


def os_error(number: int) -> OSError:
    """Return the OSError of the errno `number`, with the system's text."""
    return OSError(number, os.strerror(number))


class Ioctl(NamedTuple):
    """An ioctl(2) call of a program.

    Attributes:
        command: Request number.
        argument: Third argument, usually an address.
        given: Data at that address, if the command number has _IOC_WRITE; else empty.
        memory: Memory of the caller.
    """

    command: int  # request number
    argument: int  # usually an address
    given: bytes  # the data at that address, if the command number has _IOC_WRITE
    memory: ClientMemory  # of the caller


class OpenFile:
    """An open file description; subclasses override the supported operations."""

    seekable = True
    flushes = False  # whether `flush` has an effect

    def read(self, _size: int, _offset: int) -> bytes:
        """Return up to `size` bytes from `offset`; raises EIO by default."""
        raise os_error(EIO)

    def write(self, _data: bytes, _offset: int) -> int:
        """Write the bytes at an offset; return their number; raises EIO by default."""
        raise os_error(EIO)

    def ioctl(self, _call: Ioctl) -> bytes:
        """Execute a command; return the data to copy back if its number has _IOC_READ.

        Raises ENOTTY by default.
        """
        raise os_error(ENOTTY)

    def flush(self) -> None:
        """Handle close(2) of a descriptor; other copies of the descriptor may stay open."""

    def poll(self) -> int:
        """Return the ready events as POLL bits; by default those of a regular file."""
        return ALWAYS_READY

    def release(self) -> None:
        """Handle the close(2) of the last copy of the descriptor."""


class Node:
    """A file, a folder or a link."""

    mode = 0  # permissions
    size = 0  # st_size


class Link(Node):
    """A symbolic link."""

    mode = 0o777

    def __init__(self, target: str) -> None:
        self.target = target


class Folder(Node):
    """A folder; subclasses may allow `make` and `remove`."""

    mode = 0o755

    def __init__(self) -> None:
        self.names: dict[str, Node] = {}

    def make(self, _name: str) -> "Folder":
        """Create and return a folder with this name in this one; raises EPERM by default."""
        raise os_error(EPERM)

    def remove(self, _name: str) -> None:
        """Remove the folder with this name from this one; raises EPERM by default."""
        raise os_error(EPERM)


@dataclass(eq=False, repr=False)
class File(Node):
    """A file of an emulated kernel; armed faults can make its operations fail.

    Attributes:
        label: Name of the file in fault specifications; empty: no faults.
        faults: The armed faults.
        opened: Returns a new open file description.
        mode: Permissions.
        size: st_size.
        truncate: Called for O_TRUNC.
    """

    label: str  # in fault specifications
    faults: Faults
    opened: "Callable[[File], OpenFile]"  # returns a new open file description
    mode: int = 0o444
    size: int = 0
    truncate: Callable[[], None] = lambda: None  # for O_TRUNC

    def open(self, flags: int) -> OpenFile:
        """Open the file with the flags of a system call; raises EACCES if the mode forbids it.

        The mode applies to root too, as in configfs and sysfs. An armed fault raises its errno.
        """
        self.faults.check(f"open:{self.label}")
        access = flags & os.O_ACCMODE
        if access != os.O_RDONLY and not self.mode & 0o222:
            raise os_error(EACCES)
        if access != os.O_WRONLY and not self.mode & 0o444:
            raise os_error(EACCES)
        return self.opened(self)


class Snapshot(OpenFile):
    """An open file whose content is fixed at the first read, as in configfs and procfs."""

    def __init__(self, file: File, make: Callable[[], bytes]) -> None:
        self._operation = f"read:{file.label}"
        self._faults = file.faults
        self._make = make
        self._content: bytes | None = None

    def read(self, size: int, offset: int) -> bytes:
        """Return at most `size` bytes of the content at `offset`."""
        if self._content is None:
            self._faults.check(self._operation)
            self._content = self._make()
        return self._content[offset : offset + size]


class WriteOnly(OpenFile):
    """An open file of which each write is stored immediately."""

    def __init__(self, store: Callable[[bytes], None]) -> None:
        self._store = store

    def write(self, data: bytes, _offset: int) -> int:
        """Store `data`, whatever the offset; return the number of bytes."""
        self._store(data)
        return len(data)


def text_file(
    label: str, faults: Faults, content: Callable[[], bytes], *, mode: int = 0o444, size: int = 0
) -> File:
    """Return a read-only file whose content is computed at the first read after an open.

    Args:
        label: Name of the file in fault specifications, such as `read:LABEL=EIO`; may be empty.
        faults: The armed faults.
        content: Returns the content.
        mode: Permissions.
        size: st_size, which need not be the size of the content.
    """
    return File(label, faults, lambda file: Snapshot(file, content), mode=mode, size=size)


def constant_file(label: str, faults: Faults, data: bytes, *, mode: int = 0o444) -> File:
    """Return a read-only file with the content `data`.

    Args:
        label: Name of the file in fault specifications; may be empty.
        faults: The armed faults.
        data: Content; its size is st_size.
        mode: Permissions.
    """
    return text_file(label, faults, lambda: data, mode=mode, size=len(data))


class Tree:
    """All files by absolute path, such as `/sys/kernel/config`. Errors are OSErrors."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {"/": Folder()}

    def add(self, path: str, node: Node) -> None:
        """Add a node at `path`, and missing parent folders."""
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
        """Return the node at a path; raises ENOENT."""
        node = self._nodes.get(path)
        if node is None:
            raise os_error(ENOENT)
        return node

    def file(self, path: str) -> File:
        """Return the file at a path; raises ENOENT, or EISDIR for a folder."""
        node = self.find(path)
        if isinstance(node, Folder):
            raise os_error(EISDIR)
        assert isinstance(node, File)
        return node

    def list(self, path: str) -> list[str]:
        """Return the names in the folder at `path`; raises ENOENT or ENOTDIR."""
        return list(self._folder(path).names)

    def make(self, path: str) -> None:
        """Create the folder `path`, if its parent allows it; raises EEXIST."""
        if path in self._nodes:
            raise os_error(EEXIST)
        parent, _, name = path.rpartition("/")
        folder = self._folder(parent or "/").make(name)
        self.add(path, folder)

    def remove(self, path: str) -> None:
        """Remove the folder `path` with its files, if its parent allows it."""
        node = self.find(path)
        if not isinstance(node, Folder):
            raise os_error(ENOTDIR)
        parent, _, name = path.rpartition("/")
        self._folder(parent or "/").remove(name)
        self.drop(path)

    def drop(self, path: str) -> None:
        """Remove the folder `path` with its files unconditionally."""
        parent, _, name = path.rpartition("/")
        folder = self._folder(path)
        del self._folder(parent or "/").names[name]
        del self._nodes[path]
        for inner in folder.names:
            del self._nodes[f"{path}/{inner}"]

    def _folder(self, path: str) -> Folder:
        node = self.find(path)
        if not isinstance(node, Folder):
            raise os_error(ENOTDIR)
        return node


WRITE_LIMIT: Final = 4095  # bytes of one write to a text file of configfs


class BinaryWriter(OpenFile):
    """A binary file of configfs opened for writing; at close(2), `commit` gets the content.

    The content has at most `limit` bytes. A failed write also leads to a commit, of the content
    before it.
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
        """Buffer `data` for the content at `offset`; raises EFBIG beyond the limit."""
        self._faults.check(self._operation)
        self._written = True
        if offset + len(data) > self._limit:
            raise os_error(EFBIG)
        if missing := offset + len(data) - len(self._buffer):
            self._buffer += bytes(max(0, missing))
        self._buffer[offset : offset + len(data)] = data
        return len(data)

    def flush(self) -> None:
        """Commit at the close of any copy of the descriptor.

        The kernel commits at the last close, which FUSE reports only after close(2) has returned.
        """
        if self._written:
            self._written = False
            self._commit(bytes(self._buffer))
