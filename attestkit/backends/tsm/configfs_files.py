"""File operations of configfs-tsm, and the rest of the system interface of a request.

A read or write opens the file, transfers it completely and closes it: configfs commits a write at
`close`, and caches a read per descriptor. Calls that may wait for the host release the GIL and are
not retried after a signal.
"""

import errno
import fcntl
import os
import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Final, NamedTuple

from attestkit.backends.linux import device_errors, syscalls

_CHUNK: Final = 1 << 16  # bytes per read: larger than current reports, so two reads suffice


class DirectoryEntry(NamedTuple):
    """An entry of a directory."""

    name: str
    made_at: float  # seconds since 1970


class OsFiles:
    """File operations on the report directory; failures are OSErrors. Tests replace them."""

    def make(self, path: str) -> None:
        """Create a directory."""
        os.mkdir(path)  # noqa: PTH102 - called for every quote; Path is slower than mkdir

    def write(self, path: str, data: bytes) -> None:
        """Write `data`, at least one byte, to an existing file."""
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
        """Return at most the first `limit` + 1 bytes of a file.

        A result of `limit` + 1 bytes means that the file is longer than `limit`.
        """
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

    def list(self, path: str) -> list[DirectoryEntry]:
        """List a directory."""
        found = []
        with os.scandir(path) as entries:
            for entry in entries:
                try:
                    made_at = entry.stat(follow_symlinks=False).st_mtime
                except FileNotFoundError:  # removed since scandir
                    continue
                found.append(DirectoryEntry(entry.name, made_at))
        return found

    def remove(self, path: str) -> None:
        """Remove an entry directory; the kernel removes the files in it."""
        os.rmdir(path)  # noqa: PTH106 - as `make`


def _now() -> float:
    return datetime.now(timezone.utc).timestamp()


def _alive(pid: int) -> bool:
    """Return whether the process exists in this PID namespace; True if unknown."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # EPERM: the process of another user
        return True
    return True


def _try_lock(path: str) -> Callable[[], None] | None:
    """Lock a file as Intel's library does; return the unlock function, None if it is locked."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except BaseException:
        os.close(fd)
        raise
    return lambda: os.close(fd)  # without a write, closing does not commit anything


class TsmSystem(NamedTuple):
    """The system interface of a request."""

    files: OsFiles = OsFiles()
    clock: Callable[[], float] = time.monotonic  # seconds, for timeouts
    sleep: Callable[[float], None] = time.sleep
    now: Callable[[], float] = _now  # seconds since 1970, for the age of an entry
    random: Callable[[int], bytes] = os.urandom
    pid: Callable[[], int] = os.getpid  # called for every request, because of forks
    alive: Callable[[int], bool] = _alive
    permissions: Callable[[str], str] = device_errors.permissions
    try_lock: Callable[[str], Callable[[], None] | None] = _try_lock
