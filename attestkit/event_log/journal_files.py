"""The few things a journal does to files: one folder, names inside it, one system call or two each.

They are a protocol so that a test can stop the world after any of them.
"""

import contextlib
import errno
import fcntl
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from attestkit._system.file_queue import FileQueue
from attestkit._system.untrusted_files import make_folder, open_regular, read_regular

__all__ = ["LONGEST", "QUEUE", "Folder", "OsFolder", "Stamp", "WatchedFolder"]

QUEUE: Final = "runtime_event.queue"
LONGEST: Final = 16 << 20
"""Bytes of a file that is read: as many as a log of events may have."""
_MOST_NAMES: Final = 1024  # in the folder, that are looked at for another name of a file


class Stamp(NamedTuple):
    """What tells whether a file is still the one that was read."""

    inode: int
    size: int  # bytes
    modified_ns: int
    changed_ns: int = 0  # which, unlike the former, no program can set


class Folder(Protocol):
    """File operations of a journal; every failure is an OSError that names the file."""

    def place(self, name: str, /) -> str:
        """Return the path of a file, for errors."""
        ...

    def enter_queue(self) -> None:
        """Wait until every thread that came before has left the queue; never a failure."""
        ...

    def leave_queue(self) -> None:
        """Let the next one have its turn; nothing happens to a thread that is not in the queue."""
        ...

    def lock(self) -> bool:
        """Wait for the exclusive lock; False, and no lock, if the folder does not exist."""
        ...

    def unlock(self) -> None:
        """Give the lock back; nothing happens without it."""
        ...

    def make(self) -> None:
        """Create the folder, private to its owner, where it is missing."""
        ...

    def stamp(self, name: str, /) -> Stamp | None:
        """Return identity and size of a file, None where there is none."""
        ...

    def read(self, name: str, /) -> bytes | None:
        """Return a whole file of at most LONGEST bytes, None where there is none."""
        ...

    def check(self, name: str, /) -> None:
        """Fail if `append` would refuse a file for what it is; it is well where there is none."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Create or empty a file, mode 0600, and write `data`."""
        ...

    def append(self, name: str, data: bytes) -> None:
        """Write `data` behind what a file holds; create it, mode 0600, where it is missing."""
        ...

    def cut(self, name: str, size: int) -> None:
        """Shorten a file to `size` bytes."""
        ...

    def sync(self, name: str) -> None:
        """Wait until a file's content is on the disk."""
        ...

    def sync_folder(self) -> None:
        """Wait until the names in the folder are on the disk."""
        ...

    def rename(self, old: str, new: str) -> None:
        """Give a file another name at once, replacing a file of that name."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file; nothing happens where there is none."""
        ...

    def close(self) -> None:
        """Let go of what the folder holds open."""
        ...


class OsFolder:
    """A real folder; the lock is `flock` on one file in it, shared with other programs.

    One lock is one OsFolder's: whoever uses it takes turns on it.
    """

    def __init__(self, path: str | os.PathLike[str], lock_name: str) -> None:
        self._path = str(Path(path))
        self._lock_name = lock_name
        self._lock_fd: int | None = None
        self._queue = FileQueue(self._name(QUEUE))

    def _name(self, name: str) -> str:
        return f"{self._path}/{name}"

    def place(self, name: str) -> str:
        """Return the path of a file, for errors."""
        return self._name(name)

    def enter_queue(self) -> None:
        """Wait until every thread of attestkit's programs that came before has left the queue."""
        self._queue.enter()

    def leave_queue(self) -> None:
        """Let the next one have its turn; nothing happens to a thread that is not in the queue."""
        self._queue.leave()

    def lock(self) -> bool:
        """Wait for the exclusive lock; False, and no lock, if the folder does not exist."""
        path = self._name(self._lock_name)
        while True:
            if self._lock_fd is None:
                try:
                    self._lock_fd = open_regular(path, os.O_RDWR | os.O_CREAT)
                except FileNotFoundError:
                    return False
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX)
            # Somebody may have removed the file: a lock on what has no name keeps nobody out.
            if self._lock_has_its_name(path):
                return True
            self._close_lock()

    def _lock_has_its_name(self, path: str) -> bool:
        assert self._lock_fd is not None
        try:
            named = os.lstat(path)
        except FileNotFoundError:
            return False
        mine = os.fstat(self._lock_fd)
        return (mine.st_ino, mine.st_dev) == (named.st_ino, named.st_dev)

    def unlock(self) -> None:
        """Give the lock back; nothing happens without it."""
        if self._lock_fd is not None:
            fcntl.flock(self._lock_fd, fcntl.LOCK_UN)

    def make(self) -> None:
        """Create the folder, mode 0700, where it is missing."""
        make_folder(self._path)

    def stamp(self, name: str) -> Stamp | None:
        """Return identity and size of a file, None where there is none."""
        try:
            found = os.lstat(self._name(name))
        except FileNotFoundError:
            return None
        return Stamp(found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    def read(self, name: str) -> bytes | None:
        """Return a whole file of at most 16 MiB, None where there is none."""
        path = self._name(name)
        try:
            data = read_regular(path, LONGEST + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _named(error, path) from error
        if len(data) > LONGEST:
            raise OSError(errno.EFBIG, f"more than {LONGEST} bytes", path)
        return data

    def check(self, name: str) -> None:
        """Fail if `append` would refuse a file for what it is; it is well where there is none."""
        with contextlib.suppress(FileNotFoundError):
            os.close(self._open(name, os.O_WRONLY | os.O_APPEND))

    def _open(self, name: str, flags: int) -> int:
        """Open a file to write in it; where it has a second name the failure says which."""
        path = self._name(name)
        try:
            return open_regular(path, flags)
        except OSError as error:
            if error.errno != errno.EMLINK:
                raise
            cure = f"{error.strerror}: remove {self._second_name(path)}"
            raise OSError(errno.EMLINK, cure, path) from error

    def _second_name(self, path: str) -> str:
        try:
            asked = os.lstat(path)
            with os.scandir(self._path) as found:
                for entry in itertools.islice(found, _MOST_NAMES):
                    if entry.path != path and os.path.samestat(
                        asked, entry.stat(follow_symlinks=False)
                    ):
                        return entry.path
        except OSError:  # it is a help and no more
            pass
        return "its other name, which `find / -xdev -samefile FILE` tells"

    def write(self, name: str, data: bytes) -> None:
        """Create or empty a file, mode 0600, and write `data`."""
        self._put(name, data, os.O_TRUNC)

    def append(self, name: str, data: bytes) -> None:
        """Write `data` behind what a file holds; create it, mode 0600, where it is missing."""
        self._put(name, data, os.O_APPEND)

    def _put(self, name: str, data: bytes, how: int) -> None:
        path = self._name(name)
        fd = self._open(name, os.O_WRONLY | os.O_CREAT | how)
        try:
            while data:  # a write may stop early
                data = data[os.write(fd, data) :]
        except OSError as error:
            raise _named(error, path) from error
        finally:
            os.close(fd)

    def cut(self, name: str, size: int) -> None:
        """Shorten a file to `size` bytes."""
        path = self._name(name)
        fd = self._open(name, os.O_WRONLY)
        try:
            os.ftruncate(fd, size)
        except OSError as error:
            raise _named(error, path) from error
        finally:
            os.close(fd)

    def sync(self, name: str) -> None:
        """Wait until a file's content is on the disk."""
        path = self._name(name)
        _sync_and_close(self._open(name, os.O_RDWR), path)

    def sync_folder(self) -> None:
        """Wait until the names in the folder are on the disk."""
        fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        _sync_and_close(fd, self._path)

    def rename(self, old: str, new: str) -> None:
        """Give a file another name at once, replacing a file of that name."""
        Path(self._name(old)).replace(self._name(new))

    def remove(self, name: str) -> None:
        """Remove a file; nothing happens where there is none."""
        Path(self._name(name)).unlink(missing_ok=True)

    def close(self) -> None:
        """Close the lock's file, which lets the lock go."""
        self._queue.close()
        self._close_lock()

    def _close_lock(self) -> None:
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None


def _sync_and_close(fd: int, path: str) -> None:
    try:
        os.fsync(fd)
    except OSError as error:
        raise _named(error, path) from error
    finally:
        os.close(fd)


def _named(error: OSError, path: str) -> OSError:
    """Return the failure of a call that was given a descriptor, with the file's name."""
    return OSError(error.errno, error.strerror, path)


class WatchedFolder:
    """A folder that calls `step` before and after each change, with the change's name.

    For tests that end a program there, so it writes in two halves. The names are `before write
    runtime_event.pending`, `half write ...`, `after write ...`, and so on for append, cut, sync,
    rename, remove, `sync folder` and `make folder`.
    """

    def __init__(self, folder: Folder, step: Callable[[str], None]) -> None:
        self._step = step
        self._folder = folder
        self.enter_queue: Callable[[], None] = folder.enter_queue
        self.leave_queue: Callable[[], None] = folder.leave_queue
        self.lock: Callable[[], bool] = folder.lock
        self.unlock: Callable[[], None] = folder.unlock
        self.place: Callable[[str], str] = folder.place
        self.stamp: Callable[[str], Stamp | None] = folder.stamp
        self.read: Callable[[str], bytes | None] = folder.read
        self.check: Callable[[str], None] = folder.check
        self.close: Callable[[], None] = folder.close

    @contextlib.contextmanager
    def _around(self, what: str) -> Iterator[None]:
        self._step(f"before {what}")
        yield
        self._step(f"after {what}")

    def make(self) -> None:
        """Create the folder."""
        with self._around("make folder"):
            self._folder.make()

    def write(self, name: str, data: bytes) -> None:
        """Create or empty a file, and write."""
        with self._around(f"write {name}"):
            self._folder.write(name, data[: len(data) // 2])
            self._step(f"half write {name}")
            self._folder.append(name, data[len(data) // 2 :])

    def append(self, name: str, data: bytes) -> None:
        """Write behind what a file holds."""
        with self._around(f"append {name}"):
            self._folder.append(name, data[: len(data) // 2])
            self._step(f"half append {name}")
            self._folder.append(name, data[len(data) // 2 :])

    def cut(self, name: str, size: int) -> None:
        """Shorten a file."""
        with self._around(f"cut {name}"):
            self._folder.cut(name, size)

    def sync(self, name: str) -> None:
        """Wait for the disk."""
        with self._around(f"sync {name}"):
            self._folder.sync(name)

    def sync_folder(self) -> None:
        """Wait for the disk."""
        with self._around("sync folder"):
            self._folder.sync_folder()

    def rename(self, old: str, new: str) -> None:
        """Give a file another name."""
        with self._around(f"rename {old}"):
            self._folder.rename(old, new)

    def remove(self, name: str) -> None:
        """Remove a file."""
        with self._around(f"remove {name}"):
            self._folder.remove(name)
