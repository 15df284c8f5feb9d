"""Files in folders that others may write, too: what is there need not be what it should be.

Somebody else may have put a link to a file of ours or of root's there, a pipe whose other end
never comes, or a device. What is opened here is a regular file, found out from the open file and
not from its name, and nothing has happened to it before that is known. What is made is its owner's
alone, whatever the umask.
"""

import contextlib
import errno
import os
import select
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TypeAlias

from attestkit.errors import UnsupportedError

__all__ = [
    "change_group",
    "change_mode",
    "close_folder",
    "is_there",
    "make_folder",
    "open_regular",
    "path_flag",
    "read_regular",
]

AnyPath: TypeAlias = str | os.PathLike[str]

_OURS: Final = 0o600
_PATIENCE: Final = 1000  # milliseconds that a pipe is waited for without a word
# A pipe is not waited for, a terminal not taken on.
_CAUTIOUSLY: Final = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
# Descriptors that whoever started us handed over, as a shell does with `<(...)`: no stranger's.
_HANDED_OVER: Final = ("/dev/fd/", "/proc/self/fd/", "/dev/stdin")


def is_there(path: Path) -> bool:
    """Tell whether something is at a path; False where nobody can tell, as in closed folders."""
    try:
        path.stat()
    except (OSError, ValueError):
        return False
    return True


def open_regular(path: AnyPath, flags: int, *, follow: bool = False) -> int:
    """Open a regular file and return its descriptor; a file that is made has mode 0600.

    Args:
        path: Where.
        flags: Those of open(2). O_TRUNC is done when the file is known to be one.
        follow: Whether the last part of the path may be a link, as in what a user has named.

    Raises:
        OSError: It cannot be opened, is a link or no regular file; or it is to be written, and
            belongs to somebody who is neither we nor root nor the folder's owner, or has a second
            name (a hard link).
    """
    emptied, flags = flags & os.O_TRUNC, flags & ~os.O_TRUNC
    fd, made = _open(path, flags | _CAUTIOUSLY | (0 if follow else os.O_NOFOLLOW))
    try:
        found = os.fstat(fd)
        _check_kind(found, path)
        if flags & (os.O_WRONLY | os.O_RDWR):
            _check_owner(found, path, made=made)
        if flags & os.O_CREAT and not found.st_size and found.st_mode & _OURS != _OURS:
            os.fchmod(fd, _OURS)  # the umask took our own rights away
        if emptied:
            os.ftruncate(fd, 0)
    except BaseException as error:
        os.close(fd)
        if isinstance(error, OSError) and error.filename is None:  # of a call with a descriptor
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        raise
    return fd


def _open(path: AnyPath, flags: int) -> tuple[int, bool]:
    """Open a file; tell whether we have just made it."""
    try:
        if flags & os.O_CREAT:
            with contextlib.suppress(FileExistsError):
                return os.open(path, flags | os.O_EXCL, _OURS), True
        return os.open(path, flags, _OURS), False
    except OSError as error:
        if error.errno == errno.ELOOP and flags & os.O_NOFOLLOW:
            raise _refusal(errno.ELOOP, "a link, which is not followed here", path) from error
        raise


def _check_kind(found: os.stat_result, path: AnyPath) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise _refusal(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(found.st_mode):
        raise _refusal(errno.EINVAL, "not a regular file", path)


def _check_owner(found: os.stat_result, path: AnyPath, *, made: bool) -> None:
    """Refuse to write what is somebody else's.

    What we have just made is ours, though a server of files may call its owner otherwise (NFS with
    root_squash).
    """
    if not made and found.st_uid not in {os.geteuid(), 0, Path(path).parent.stat().st_uid}:
        raise _refusal(errno.EPERM, f"belongs to user {found.st_uid}, not to us", path)
    if found.st_nlink > 1:
        raise _refusal(errno.EMLINK, "has a second name (a hard link)", path)


def read_regular(path: AnyPath, most: int, *, follow: bool = False) -> bytes:
    """Return what a regular file holds, at most so many bytes; the object is the caller's alone.

    With `follow`, which is for what a user has named, it may also be a named pipe, and is waited
    for; or a descriptor that was handed over, as `/dev/fd/3` or `/dev/stdin`.

    Raises:
        OSError: As `open_regular`.
    """
    if follow and os.fspath(path).startswith(_HANDED_OVER):
        with Path(path).open("rb") as file:
            return file.read(most)
    fd = _open_named(path) if follow else open_regular(path, os.O_RDONLY)
    with os.fdopen(fd, "rb", buffering=0) as file:
        buffer = bytearray(min(most, os.fstat(file.fileno()).st_size + 1))
        size = 0
        while got := file.readinto(memoryview(buffer)[size:]):
            size += got
            if size == len(buffer) < most:  # it has grown, or does not tell its size
                buffer.extend(bytes(min(most - size, max(size, 4096))))
        data = bytes(memoryview(buffer)[:size])
        buffer[:] = bytes(len(buffer))
        return data


def _open_named(path: AnyPath) -> int:
    """Open what a user has named to read it: a regular file, or a pipe once somebody writes to it.

    No device: some are read for ever, or do something when they are opened.
    """
    fd, _ = _open(path, os.O_RDONLY | _CAUTIOUSLY)
    try:
        found = os.fstat(fd)
        if stat.S_ISFIFO(found.st_mode):
            _wait_for_writer(fd, path)
            os.set_blocking(fd, True)
        else:
            _check_kind(found, path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _wait_for_writer(fd: int, path: AnyPath) -> None:
    """Wait until there is something in a pipe, or its writer is gone; say so if that takes long."""
    waiting = select.poll()
    waiting.register(fd, select.POLLIN)  # the end, POLLHUP, is told in any case
    if not waiting.poll(_PATIENCE):
        import logging  # late: few wait

        logging.getLogger("attestkit").warning("%s: a pipe: waiting for who writes to it", path)
        waiting.poll()


def make_folder(path: AnyPath) -> bool:
    """Make a folder, and those above it, mode 0700 whatever the umask; tell whether it is new.

    Raises:
        OSError: One of them cannot be made, or what is there is no folder.
        UnsupportedError: This is no Linux.
    """
    path = Path(path)
    if path.is_dir():
        return False
    if path.parent != path:
        make_folder(path.parent)
    flags = path_flag() | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        if path.is_dir():  # somebody was quicker
            return False
        raise
    fd = os.open(path, flags)
    try:
        change_mode(fd, 0o700)  # else the umask could take our own rights away
    finally:
        os.close(fd)
    return True


def path_flag() -> int:
    """Return O_PATH, with which a descriptor stands for a file or folder that it does not read.

    Raises:
        UnsupportedError: This is no Linux, which alone has it.
    """
    flag: int | None = getattr(os, "O_PATH", None)
    if flag is None:
        raise UnsupportedError(
            "this needs O_PATH, by which nobody puts another file in the place of ours, and which "
            f"{sys.platform} has not: use Linux"
        )
    return flag


def change_mode(fd: int, mode: int) -> None:
    """Change the mode of what a descriptor of O_PATH stands for, which fchmod does not take.

    Raises:
        OSError: It cannot be changed; where there is no /proc, that says so.
    """
    if stat.S_IMODE(os.fstat(fd).st_mode) != mode:
        with _by_proc(f"mode {mode:o}"):
            Path(f"/proc/self/fd/{fd}").chmod(mode)


def change_group(fd: int, group: int) -> None:
    """Change the group (its number) of what a descriptor of O_PATH stands for, as `change_mode`."""
    if os.fstat(fd).st_gid != group:
        with _by_proc(f"group {group}"):
            os.chown(f"/proc/self/fd/{fd}", -1, group)


@contextlib.contextmanager
def _by_proc(what: str) -> Iterator[None]:
    """Say what is missing where there is no /proc."""
    try:
        yield
    except FileNotFoundError as error:  # the descriptor is open
        reason = f"cannot be given {what}, for /proc is not mounted: mount it"
        raise OSError(errno.ENOENT, reason) from error


def close_folder(path: AnyPath) -> None:
    """Close a folder of ours to others.

    A link to it is followed where we or root have made that.

    Raises:
        OSError: It is somebody else's, or a link that is.
    """
    link = os.lstat(path)
    if stat.S_ISLNK(link.st_mode) and link.st_uid not in {os.geteuid(), 0}:
        raise _refusal(errno.ELOOP, f"a link of user {link.st_uid}'s, which is not followed", path)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if found.st_uid != os.geteuid():
            raise _refusal(errno.EPERM, f"belongs to user {found.st_uid}, not to us", path)
        if stat.S_IMODE(found.st_mode) & 0o077:
            os.fchmod(fd, 0o700)
    finally:
        os.close(fd)


def _refusal(number: int, reason: str, path: AnyPath) -> OSError:
    return OSError(number, reason, os.fspath(path))
