"""The five things that configfs-tsm is asked through, and what else a request needs of the machine.

Reading and writing are whole: a file is opened, used to its end and closed, because configfs
delivers at `close` what was written, and keeps one answer per descriptor. The calls that may wait
for a host give the interpreter to other threads, and are not repeated after a signal.
"""

import errno
import fcntl
import os
import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Final, NamedTuple, Protocol

from attestkit.backends.linux import syscalls

__all__ = ["Listed", "OsFiles", "TsmFiles", "TsmSystem"]

_CHUNK: Final = 1 << 16  # bytes of one read: more than any report of today, so that two reads do


class Listed(NamedTuple):
    """One name in a folder."""

    name: str
    made_at: float  # seconds since 1970


class TsmFiles(Protocol):
    """File operations on a report folder; every failure is an OSError."""

    def make(self, path: str) -> None:
        """Make a folder."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Write the whole of `data`, at least a byte, to a file that is there, and close it."""
        ...

    def read(self, path: str, limit: int) -> bytes:
        """Return what a file says up to its end; one byte more than `limit` if that is further."""
        ...

    def list(self, path: str) -> list[Listed]:
        """Return what is in a folder."""
        ...

    def remove(self, path: str) -> None:
        """Remove a folder, and nothing else: the kernel takes the files in it away itself."""
        ...


class OsFiles:
    """The real ones."""

    def make(self, path: str) -> None:
        """Make a folder."""
        os.mkdir(path)  # noqa: PTH102 - on the way of every quote, a Path costs more than the call

    def write(self, path: str, data: bytes) -> None:
        """Write the whole of `data`, at least a byte, to a file that is there, and close it."""
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            while data:
                written = syscalls.write(fd, data)
                if not 0 < written <= len(data):
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                data = data[written:]
        finally:
            os.close(fd)

    def read(self, path: str, limit: int) -> bytes:
        """Return what a file says up to its end; one byte more than `limit` if that is further."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            found = syscalls.read(fd, min(limit + 1, _CHUNK))
            more = found
            while more and len(found) <= limit:
                more = syscalls.read(fd, min(limit + 1 - len(found), _CHUNK))
                found += more
            return found
        finally:
            os.close(fd)

    def list(self, path: str) -> list[Listed]:
        """Return what is in a folder."""
        found = []
        with os.scandir(path) as entries:
            for entry in entries:
                try:
                    made_at = entry.stat(follow_symlinks=False).st_mtime
                except FileNotFoundError:  # removed in between
                    continue
                found.append(Listed(entry.name, made_at))
        return found

    def remove(self, path: str) -> None:
        """Remove a folder, and nothing else: the kernel takes the files in it away itself."""
        os.rmdir(path)  # noqa: PTH106 - as `make`


def _now() -> float:
    return datetime.now(timezone.utc).timestamp()


def _alive(pid: int) -> bool:
    """Whether this PID namespace has such a process; in doubt it has."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is somebody else's
        return True
    return True


def _try_lock(path: str) -> Callable[[], None] | None:
    """Lock a file as Intel's library does; return what unlocks it, None if somebody has it."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except BaseException:
        os.close(fd)
        raise
    return lambda: os.close(fd)  # nothing was written through it, so closing delivers nothing


class TsmSystem(NamedTuple):
    """What a request needs of the machine."""

    files: TsmFiles = OsFiles()
    clock: Callable[[], float] = time.monotonic  # seconds, for waiting
    sleep: Callable[[float], None] = time.sleep
    now: Callable[[], float] = _now  # seconds since 1970, for the age of an entry
    random: Callable[[int], bytes] = os.urandom
    pid: Callable[[], int] = os.getpid  # asked at every request, so that a fork has its own
    alive: Callable[[int], bool] = _alive
    permissions: Callable[[str], str] = syscalls.permissions  # of a path, and who we are
    try_lock: Callable[[str], Callable[[], None] | None] = _try_lock
