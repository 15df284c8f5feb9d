"""The files of the journal: operations on names in one folder, and the state of the log file.

An operation is one or two system calls. Tests replace them to kill the program between any two.
"""

import contextlib
import errno
import fcntl
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from attestkit._outcomes.reasons import JournalReason
from attestkit._system.file_queue import FileQueue
from attestkit._system.untrusted_files import make_folder, open_regular, read_regular
from attestkit.errors import FormatError, JournalError
from attestkit.event_log.event import Event
from attestkit.event_log.journal_protocols import ZERO, replay_from
from attestkit.event_log.runtime_events import parse_runtime_lines

LOG: Final = "runtime_events.log"
PENDING: Final = "runtime_event.pending"
VERSION: Final = "runtime_event_version"
LOCK: Final = "runtime_event.lock"
BOOT_ID: Final = "runtime_event.boot_id"
QUEUE: Final = "runtime_event.queue"
MAX_FILE_SIZE: Final = 16 << 20
"""Maximum size in bytes of a file that is read; an event log may have this size."""
_MAX_NAMES: Final = 1024  # entries of the folder that are searched for a second name of a file


class Stamp(NamedTuple):
    """Identity and state of a file, to detect changes; times are in nanoseconds of Unix time."""

    inode: int
    size: int  # bytes
    modified_ns: int
    changed_ns: int = 0  # unlike `modified_ns`, programs cannot set it


class OsFolder:
    """A folder in the file system; its lock is `flock` on a file, which other programs use too.

    Methods get the names of files in the folder, and raise OSError. Two threads must not call
    `lock` of the same OsFolder at the same time.
    """

    def __init__(self, path: str | os.PathLike[str], lock_name: str) -> None:
        self._path = str(Path(path))
        self._lock_name = lock_name
        self._lock_fd: int | None = None
        self._queue = FileQueue(self._name(QUEUE))

    def _name(self, name: str) -> str:
        return f"{self._path}/{name}"

    def path_of(self, name: str) -> str:
        """Return the path of the file `name`, for errors."""
        return self._name(name)

    def enter_queue(self) -> None:
        """Wait until all threads of attestkit programs that entered earlier have left the queue."""
        self._queue.enter()

    def leave_queue(self) -> None:
        """Leave the queue for the journal's lock; do nothing if this thread is not in it."""
        self._queue.leave()

    def lock(self) -> bool:
        """Wait for the exclusive lock; return False if the folder does not exist."""
        path = self._name(self._lock_name)
        while True:
            if self._lock_fd is None:
                try:
                    self._lock_fd = open_regular(path, os.O_RDWR | os.O_CREAT)
                except FileNotFoundError:
                    return False
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX)
            # If the file was removed meanwhile, other programs lock another file.
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
        """Release the lock, if it is held."""
        if self._lock_fd is not None:
            fcntl.flock(self._lock_fd, fcntl.LOCK_UN)

    def make(self) -> None:
        """Create the folder, mode 0700, if it is missing."""
        make_folder(self._path)

    def stamp(self, name: str) -> Stamp | None:
        """Return inode, size and times of the file `name`, or None if it is missing."""
        try:
            found = os.lstat(self._name(name))
        except FileNotFoundError:
            return None
        return Stamp(found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    def read(self, name: str) -> bytes | None:
        """Return the content of the file `name`; None if it is missing; OSError if over 16 MiB."""
        path = self._name(name)
        try:
            data = read_regular(path, MAX_FILE_SIZE + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _with_path(error, path) from error
        if len(data) > MAX_FILE_SIZE:
            raise OSError(errno.EFBIG, f"more than {MAX_FILE_SIZE} bytes", path)
        return data

    def check(self, name: str) -> None:
        """Raise OSError if `append` would reject the file `name`; a missing file is accepted."""
        with contextlib.suppress(FileNotFoundError):
            os.close(self._open(name, os.O_WRONLY | os.O_APPEND))

    def _open(self, name: str, flags: int) -> int:
        """Open the file `name` for writing with flags of open(2), and return its descriptor.

        A file with a second hard link is refused; the error names that link.
        """
        path = self._name(name)
        try:
            return open_regular(path, flags)
        except OSError as error:
            if error.errno != errno.EMLINK:
                raise
            message = f"{error.strerror}; remove {self._second_name(path)}"
            raise OSError(errno.EMLINK, message, path) from error

    def _second_name(self, path: str) -> str:
        try:
            status = os.lstat(path)
            with os.scandir(self._path) as entries:
                for entry in itertools.islice(entries, _MAX_NAMES):
                    if entry.path != path and os.path.samestat(
                        status, entry.stat(follow_symlinks=False)
                    ):
                        return entry.path
        except OSError:  # the name is optional help
            pass
        return "its other name (find / -xdev -samefile FILE)"

    def write(self, name: str, data: bytes) -> None:
        """Create or truncate the file `name`, mode 0600, and write `data`."""
        self._put(name, data, os.O_TRUNC)

    def append(self, name: str, data: bytes) -> None:
        """Append `data` to the file `name`; create it, mode 0600, if it is missing."""
        self._put(name, data, os.O_APPEND)

    def _put(self, name: str, data: bytes, flag: int) -> None:
        with _closing(self._open(name, os.O_WRONLY | os.O_CREAT | flag), self._name(name)) as fd:
            while data:  # a write may be partial
                data = data[os.write(fd, data) :]

    def cut(self, name: str, size: int) -> None:
        """Truncate the file `name` to `size` bytes."""
        with _closing(self._open(name, os.O_WRONLY), self._name(name)) as fd:
            os.ftruncate(fd, size)

    def sync(self, name: str) -> None:
        """Wait until the content of the file `name` is on disk."""
        with _closing(self._open(name, os.O_RDWR), self._name(name)) as fd:
            os.fsync(fd)

    def sync_folder(self) -> None:
        """Wait until the names in the folder are on disk."""
        fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        with _closing(fd, self._path):
            os.fsync(fd)

    def rename(self, old: str, new: str) -> None:
        """Rename the file `old` to `new` atomically, replacing a file with that name."""
        Path(self._name(old)).replace(self._name(new))

    def remove(self, name: str) -> None:
        """Remove the file `name`, if it exists."""
        Path(self._name(name)).unlink(missing_ok=True)

    def close(self) -> None:
        """Close the lock file, which releases the lock."""
        self._queue.close()
        self._close_lock()

    def _close_lock(self) -> None:
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None


@contextlib.contextmanager
def _closing(fd: int, path: str) -> Iterator[int]:
    """Context manager: yield descriptor `fd`, and close it on exit; OSErrors get `path`."""
    try:
        yield fd
    except OSError as error:
        raise _with_path(error, path) from error
    finally:
        os.close(fd)


def _with_path(error: OSError, path: str) -> OSError:
    """Return an OSError with errno and text of `error`, and the path of the file."""
    return OSError(error.errno, error.strerror, path)


def damaged(path: str, problem: str, reason: JournalReason = "damaged") -> JournalError:
    """Return the error for a damaged file of the log, with its remedy.

    Args:
        path: Path of the file.
        problem: What is wrong with it.
        reason: Reason of the error.
    """
    text = f"runtime log {path}: damaged: {problem}; restore the file, or reboot"
    return JournalError(text, reason=reason)


class LogFile:
    """The log file as last read or written. The caller holds the lock of the folder.

    Methods raise OSError if a file cannot be read or written.

    `events` and `replay` (48 bytes) are those of the complete lines, `tail` is an incomplete last
    line, and `stamp` the state of the file (None: missing).
    """

    def __init__(self, folder: OsFolder) -> None:
        self.folder = folder
        self.reset()

    def reset(self) -> None:
        """Forget what was read: treat the file as missing."""
        self.stamp: Stamp | None = None
        self.events: tuple[Event, ...] = ()
        self.replay: bytes = ZERO
        self.tail: bytes = b""  # an incomplete last line
        self._size = 0  # of the complete lines, in bytes

    @property
    def path(self) -> str:
        """Path of the file."""
        return self.folder.path_of(LOG)

    def load(self) -> None:
        """Read the file if it has changed since it was read.

        Raises:
            JournalError: If it is over 16 MiB, or a complete line is malformed.
            OSError: If it cannot be read.
        """
        stamp = self.folder.stamp(LOG)
        if stamp == self.stamp:
            return
        if stamp is not None and stamp.size > MAX_FILE_SIZE:
            raise damaged(self.path, f"{stamp.size} bytes, at most {MAX_FILE_SIZE}", "too_large")
        data = self.folder.read(LOG) or b""
        size = data.rfind(b"\n") + 1
        try:
            events = parse_runtime_lines(data[:size])
        except FormatError as error:
            raise damaged(self.path, str(error)) from error
        replay = replay_from(ZERO, events)
        self.reset()
        self.events, self.replay, self._size, self.tail = events, replay, size, data[size:]
        self.stamp = stamp  # last: after an interrupt before this line the log is read again

    def damaged_tail(self) -> JournalError:
        """Return the error for an incomplete last line that is not the start of a pending event."""
        problem = f"the last line (byte {self._size}) is truncated, and not of a pending event"
        return damaged(self.path, problem)

    def drop_tail(self) -> None:
        """Remove the incomplete line at the end of the file, if there is one."""
        if self.tail:
            self.folder.cut(LOG, self._size)
            self.folder.sync(LOG)
            self.tail = b""
            self.stamp = self.folder.stamp(LOG)

    def append(self, event: Event, line: bytes) -> None:
        """Append an event and its line (bytes, with newline), after the complete lines.

        It is durable when this returns. An incomplete last line is removed before.
        """
        self.drop_tail()
        new = self.stamp is None
        self.folder.append(LOG, line)
        self.folder.sync(LOG)
        if new:
            self.folder.sync_folder()
        self.events = (*self.events, event)
        self.replay = replay_from(self.replay, (event,))
        self._size += len(line)
        self.stamp = self.folder.stamp(LOG)
