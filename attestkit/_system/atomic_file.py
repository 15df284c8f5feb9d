"""Atomic replacement of files, also across a crash."""

import fcntl
import os
import re
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

_RANDOM_PART: Final = re.compile("[a-z0-9_]{8}")  # of a name by tempfile


def replace_file(path: Path, content: bytes, *, mode: int) -> None:
    """Write `content` to a temporary file, flush it to disk, and rename it to `path`.

    A killed process may leave a temporary file `.NAME.*` in the same folder, which
    `remove_abandoned` deletes.

    Args:
        path: File in an existing folder.
        content: New content of the file.
        mode: Permission bits of the new file.

    Raises:
        OSError: If the file cannot be written; its old content is then unchanged.
    """
    handle, name = _make_locked(path)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)  # mkstemp makes files for one user
            os.fsync(file.fileno())
            Path(name).replace(path)  # before the lock ends
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def remove_abandoned(path: Path) -> None:
    """Delete the temporary files that killed processes left in writing `path`, as far as possible.

    A file that a process is writing is locked and remains, as do files of other users.
    """
    prefix = f".{path.name}."
    with suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith(prefix) and _RANDOM_PART.fullmatch(name, len(prefix)):
                with suppress(OSError):
                    _remove_unlocked(entry.path)


def _make_locked(path: Path) -> tuple[int, str]:
    """Make a temporary file with a lock, which ends when the file is closed."""
    while True:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(handle, fcntl.LOCK_EX)
            if os.fstat(handle).st_nlink:
                return handle, name
        except BaseException:
            os.close(handle)
            Path(name).unlink(missing_ok=True)
            raise
        os.close(handle)  # another process removed it before it was locked


def _remove_unlocked(path: str) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(handle)
        if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid():
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            Path(path).unlink()
    finally:
        os.close(handle)
