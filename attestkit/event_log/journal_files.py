"""The few things a journal does to files: one folder, names inside it, one system call or two each.

They are a protocol so that a test can stop the world after any of them.
"""

import fcntl
import os
from pathlib import Path
from typing import NamedTuple, Protocol

__all__ = ["Folder", "OsFolder", "Stamp"]


class Stamp(NamedTuple):
    """What tells whether a file is still the one that was read."""

    inode: int
    size: int  # bytes
    modified_ns: int


class Folder(Protocol):
    """File operations of a journal; every failure is an OSError."""

    def lock(self) -> bool:
        """Wait for the exclusive lock; False, and no lock, if the folder does not exist."""

    def unlock(self) -> None:
        """Give the lock back."""

    def make(self) -> None:
        """Create the folder, private to its owner, where it is missing."""

    def stamp(self, name: str) -> Stamp | None:
        """Return identity and size of a file, None where there is none."""

    def read(self, name: str) -> bytes | None:
        """Return a whole file, None where there is none."""

    def write(self, name: str, data: bytes) -> None:
        """Create or empty a file, mode 0600, and write `data`."""

    def append(self, name: str, data: bytes) -> None:
        """Write `data` behind what a file holds; create it, mode 0600, where it is missing."""

    def cut(self, name: str, size: int) -> None:
        """Shorten a file to `size` bytes."""

    def sync(self, name: str) -> None:
        """Wait until a file's content is on the disk."""

    def sync_folder(self) -> None:
        """Wait until the names in the folder are on the disk."""

    def rename(self, old: str, new: str) -> None:
        """Give a file another name at once, replacing a file of that name."""

    def remove(self, name: str) -> None:
        """Remove a file; nothing happens where there is none."""

    def close(self) -> None:
        """Let go of what the folder holds open."""


class OsFolder:
    """A real folder; the lock is `flock` on one file in it, shared with other programs."""

    def __init__(self, path: str | os.PathLike[str], lock_name: str) -> None:
        self._path = str(Path(path))
        self._lock_name = lock_name
        self._lock_fd: int | None = None

    def _name(self, name: str) -> str:
        return f"{self._path}/{name}"

    def lock(self) -> bool:
        """Wait for the exclusive lock; False, and no lock, if the folder does not exist."""
        if self._lock_fd is None:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            try:
                self._lock_fd = os.open(self._name(self._lock_name), flags, 0o600)
            except FileNotFoundError:
                return False
        fcntl.flock(self._lock_fd, fcntl.LOCK_EX)
        return True

    def unlock(self) -> None:
        """Give the lock back."""
        if self._lock_fd is not None:
            fcntl.flock(self._lock_fd, fcntl.LOCK_UN)

    def make(self) -> None:
        """Create the folder, mode 0700, where it is missing."""
        Path(self._path).mkdir(mode=0o700, parents=True, exist_ok=True)

    def stamp(self, name: str) -> Stamp | None:
        """Return identity and size of a file, None where there is none."""
        try:
            found = os.stat(self._name(name))  # noqa: PTH116 - on the way of every quote, a Path costs more than the call
        except FileNotFoundError:
            return None
        return Stamp(found.st_ino, found.st_size, found.st_mtime_ns)

    def read(self, name: str) -> bytes | None:
        """Return a whole file, None where there is none."""
        try:
            return Path(self._name(name)).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        """Create or empty a file, mode 0600, and write `data`."""
        self._put(name, data, os.O_TRUNC)

    def append(self, name: str, data: bytes) -> None:
        """Write `data` behind what a file holds; create it, mode 0600, where it is missing."""
        self._put(name, data, os.O_APPEND)

    def _put(self, name: str, data: bytes, how: int) -> None:
        fd = os.open(self._name(name), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | how, 0o600)
        try:
            while data:  # a write may stop early
                data = data[os.write(fd, data) :]
        finally:
            os.close(fd)

    def cut(self, name: str, size: int) -> None:
        """Shorten a file to `size` bytes."""
        os.truncate(self._name(name), size)

    def sync(self, name: str) -> None:
        """Wait until a file's content is on the disk."""
        self._sync(self._name(name), os.O_RDWR)

    def sync_folder(self) -> None:
        """Wait until the names in the folder are on the disk."""
        self._sync(self._path, os.O_RDONLY | os.O_DIRECTORY)

    def _sync(self, path: str, flags: int) -> None:
        fd = os.open(path, flags | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def rename(self, old: str, new: str) -> None:
        """Give a file another name at once, replacing a file of that name."""
        Path(self._name(old)).replace(self._name(new))

    def remove(self, name: str) -> None:
        """Remove a file; nothing happens where there is none."""
        Path(self._name(name)).unlink(missing_ok=True)

    def close(self) -> None:
        """Close the lock's file, which lets the lock go."""
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None
