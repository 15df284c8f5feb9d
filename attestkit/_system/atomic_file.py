"""Atomic replacement of files, also across a crash; bounded reads of documents in files.

Errors of `load_document` and `save_document` name the file.
"""

import fcntl
import os
import re
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from attestkit._system.untrusted_files import read_regular
from attestkit.errors import AttestKitError, CollateralError, FormatError

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
        OSError: If the file cannot be written; its old content is then unchanged. If only the
            folder cannot be flushed to disk, the file has the new content.
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
    """Create a locked temporary file beside `path`; return its descriptor and its path."""
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


_Document = TypeVar("_Document")


def load_document(
    path: str | os.PathLike[str],
    limit: int,
    decode: Callable[[bytes], _Document],
    kind: Callable[..., AttestKitError],
    reason: str = "unreadable",
) -> _Document:
    """Read a file and return its document.

    Args:
        path: Path of a regular file, or of an inherited descriptor such as `/dev/stdin`. Named
            pipes and devices are refused: they may block or have no end.
        limit: Maximum size in bytes. Of a larger file, `limit` + 1 bytes are read.
        decode: Called with the content; returns the document. It must refuse content over the
            limit.
        kind: Class of the error for a file that cannot be read; called with the text and the
            keyword argument `reason`.
        reason: Reason of that error.

    Raises:
        AttestKitError: That of `kind`; a CollateralError or FormatError of `decode` with the path
            before its text; or another error of `decode`, unchanged.
    """
    name = os.fspath(path)
    try:
        content = read_regular(path, limit + 1, follow=True, wait=False)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        problem = getattr(error, "strerror", None) or error
        raise kind(f"{name}: cannot be read: {problem}", reason=reason) from error
    try:
        return decode(content)
    except CollateralError as error:
        raise CollateralError(f"{name}: {error}", reason=error.reason) from error
    except FormatError as error:
        raise FormatError(f"{name}: {error}", reason=error.reason) from error


def save_document(
    path: str | os.PathLike[str],
    content: bytes,
    kind: Callable[..., AttestKitError],
    reason: str = "unwritable",
    *,
    mode: int,
) -> None:
    """Write `content` to a file, replacing an existing one atomically; see `replace_file`.

    Args:
        path: Path of the file, in an existing folder.
        content: New content of the file.
        kind: Class of the error; called with the text and the keyword argument `reason`.
        reason: Reason of the error.
        mode: Permission bits of the new file.

    Raises:
        AttestKitError: One of `kind` with `reason`, if the file cannot be written.
    """
    try:
        replace_file(Path(path), content, mode=mode)
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or error  # without the temporary file's name
        message = f"{os.fspath(path)}: cannot be written: {problem}"
        raise kind(message, reason=reason) from error
