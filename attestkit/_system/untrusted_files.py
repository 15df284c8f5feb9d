"""Access to files in directories that other users can write to.

Another user may have created a link to a file of this user or of root there, a pipe without a
writer, or a device. `open_regular` checks the type on the open descriptor, not on the path, and
changes nothing before that check. New files and directories are private to their owner, whatever
the umask.

`read_beneath` reads a file beneath an untrusted directory, following only symbolic links that stay
inside it.

Links are needed: in a Kubernetes ConfigMap, `app-compose.json` links to `..data/app-compose.json`,
and `..data` to the directory of the current version. A link that leaves the directory would expose
other files of the reader.

The path is resolved component by component with directory descriptors and without letting the
kernel follow links, so concurrent changes of the directory cannot redirect it. This is openat2(2)
with RESOLVE_BENEATH, which Python does not offer.
"""

import contextlib
import errno
import os
import select
import stat
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TypeAlias

from attestkit.errors import UnsupportedError

AnyPath: TypeAlias = str | os.PathLike[str]

_PRIVATE_FILE: Final = 0o600
_PIPE_WARNING_AFTER: Final = 1000  # milliseconds
# Do not block on a pipe, and do not acquire a controlling terminal.
_SAFE_FLAGS: Final = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
# Descriptors inherited from the parent process, as a shell passes them for `<(...)`.
INHERITED: Final = ("/dev/fd/", "/proc/self/fd/", "/dev/std")


def path_exists(path: Path) -> bool:
    """Return whether a path exists; False if the permissions do not allow to determine it."""
    try:
        path.stat()
    except (OSError, ValueError):
        return False
    return True


def open_regular(path: AnyPath, flags: int, *, follow: bool = False) -> int:
    """Open a regular file and return its descriptor; a created file has mode 0600.

    Args:
        path: Path of the file.
        flags: Flags of open(2). O_TRUNC takes effect after the checks.
        follow: Whether the last component may be a symbolic link, as in a path that the user gave.

    Raises:
        OSError: If the file cannot be opened, is a symbolic link or not a regular file; or if it is
            opened for writing, and is owned by neither this user, root nor the owner of the
            directory, or has more than one hard link.
    """
    truncate, flags = flags & os.O_TRUNC, flags & ~os.O_TRUNC
    fd, created = _open(path, flags | _SAFE_FLAGS | (0 if follow else os.O_NOFOLLOW))
    try:
        found = os.fstat(fd)
        _check_type(found, path)
        if flags & (os.O_WRONLY | os.O_RDWR):
            _check_owner(found, path, created=created)
        if (
            flags & os.O_CREAT
            and not found.st_size
            and found.st_mode & _PRIVATE_FILE != _PRIVATE_FILE
        ):
            os.fchmod(fd, _PRIVATE_FILE)  # the umask removed the owner's permissions
        if truncate:
            os.ftruncate(fd, 0)
    except BaseException as error:
        os.close(fd)
        if isinstance(error, OSError) and error.filename is None:  # of a call with a descriptor
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        raise
    return fd


def _open(path: AnyPath, flags: int) -> tuple[int, bool]:
    """Open a file by flags of open(2); return its descriptor, and whether this call created it."""
    try:
        if flags & os.O_CREAT:
            with contextlib.suppress(FileExistsError):
                return os.open(path, flags | os.O_EXCL, _PRIVATE_FILE), True
        return os.open(path, flags, _PRIVATE_FILE), False
    except OSError as error:
        if error.errno == errno.ELOOP and flags & os.O_NOFOLLOW:
            raise _error(errno.ELOOP, "symbolic link, not followed", path) from error
        raise


def _check_type(found: os.stat_result, path: AnyPath) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise _error(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(found.st_mode):
        raise _error(errno.EINVAL, "not a regular file", path)


def _check_owner(found: os.stat_result, path: AnyPath, *, created: bool) -> None:
    """Refuse to write to a file of another user.

    A file that this process created is accepted: a file server may report another owner for it (NFS
    with root_squash).
    """
    if not created and found.st_uid not in {os.geteuid(), 0, Path(path).parent.stat().st_uid}:
        raise _error(errno.EPERM, f"owned by user {found.st_uid}", path)
    if found.st_nlink > 1:
        raise _error(errno.EMLINK, "has more than one hard link", path)


def read_regular(path: AnyPath, most: int, *, follow: bool = False, wait: bool = True) -> bytes:
    """Return up to `most` bytes from the start of a regular file, in an object that may be wiped.

    Pass `follow=True` for a path that the user gave: it may be a symbolic link, a named pipe (the
    call waits for its writer, unless `wait` is false: then it is refused), or an inherited
    descriptor such as `/dev/fd/3` or `/dev/stdin`.

    Raises:
        OSError: As for `open_regular`.
    """
    if follow and os.fspath(path).startswith(INHERITED):
        with Path(path).open("rb") as file:
            return file.read(most)
    wait = wait and follow
    fd = _open_named(path) if wait else open_regular(path, os.O_RDONLY, follow=follow)
    with os.fdopen(fd, "rb", buffering=0) as file:
        buffer = bytearray(min(most, os.fstat(file.fileno()).st_size + 1))
        size = 0
        while got := file.readinto(memoryview(buffer)[size:]):
            size += got
            if size == len(buffer) < most:  # it has grown, or reports no size, as in /proc
                buffer.extend(bytes(min(most - size, max(size, 4096))))
        data = bytes(memoryview(buffer)[:size])
        buffer[:] = bytes(len(buffer))
        return data


def _open_named(path: AnyPath) -> int:
    """Open a path that the user gave for reading: a regular file, or a pipe once it has a writer.

    Devices are refused: reading some never ends, and opening some has side effects.
    """
    fd, _ = _open(path, os.O_RDONLY | _SAFE_FLAGS)
    try:
        found = os.fstat(fd)
        if stat.S_ISFIFO(found.st_mode):
            _wait_for_writer(fd, path)
            os.set_blocking(fd, True)
        else:
            _check_type(found, path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _wait_for_writer(fd: int, path: AnyPath) -> None:
    """Wait until the pipe `fd` has data or its writer has closed it; log a warning after a second.

    `path` names the pipe in the warning.
    """
    poll = select.poll()
    poll.register(fd, select.POLLIN)  # POLLHUP is always reported
    if not poll.poll(_PIPE_WARNING_AFTER):
        import logging  # lazy: rarely needed

        logging.getLogger("attestkit").warning("%s: pipe has no writer yet; waiting", path)
        poll.poll()


def make_folder(path: AnyPath) -> bool:
    """Create a directory and its parents with mode 0700, whatever the umask.

    Returns:
        Whether the directory is new.

    Raises:
        OSError: If a directory cannot be created, or the path is not a directory.
        UnsupportedError: If the system is not Linux.
    """
    path = Path(path)
    if path.is_dir():
        return False
    if path.parent != path:
        make_folder(path.parent)
    flags = o_path_flag() | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        if path.is_dir():  # another process created it meanwhile
            return False
        raise
    fd = os.open(path, flags)
    try:
        change_mode(fd, 0o700)  # the umask may have removed the owner's permissions
    finally:
        os.close(fd)
    return True


def o_path_flag() -> int:
    """Return the flag O_PATH of open(2): a descriptor that identifies a file without access to it.

    Raises:
        UnsupportedError: If the system is not Linux.
    """
    flag: int | None = getattr(os, "O_PATH", None)
    if flag is None:
        raise UnsupportedError(f"O_PATH: missing on {sys.platform}; use Linux", reason="feature")
    return flag


def change_mode(fd: int, mode: int) -> None:
    """Set permission bits of the file of `fd`, an O_PATH descriptor, which fchmod does not accept.

    Raises:
        OSError: If the mode cannot be changed, or /proc is not mounted.
    """
    if stat.S_IMODE(os.fstat(fd).st_mode) != mode:
        with _require_proc(f"mode {mode:o}"):
            Path(f"/proc/self/fd/{fd}").chmod(mode)


def change_group(fd: int, group: int) -> None:
    """Set the group (numeric id) of the file of `fd`, an O_PATH descriptor; see `change_mode`."""
    if os.fstat(fd).st_gid != group:
        with _require_proc(f"group {group}"):
            os.chown(f"/proc/self/fd/{fd}", -1, group)


@contextlib.contextmanager
def _require_proc(what: str) -> Iterator[None]:
    """Context manager: replace the FileNotFoundError of a missing /proc by one with a remedy.

    `what` is the change that needs /proc, such as "mode 600".
    """
    try:
        yield
    except FileNotFoundError as error:  # not the file, whose descriptor is open
        raise OSError(errno.ENOENT, f"cannot set {what}: /proc is not mounted; mount it") from error


def make_private(path: AnyPath) -> None:
    """Remove the permissions of group and others from a directory of this user.

    A symbolic link is followed if this user or root owns it.

    Raises:
        OSError: If another user owns the directory or the link, or the path is not a directory.
    """
    link = os.lstat(path)
    if stat.S_ISLNK(link.st_mode) and link.st_uid not in {os.geteuid(), 0}:
        raise _error(errno.ELOOP, f"symbolic link owned by user {link.st_uid}, not followed", path)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if found.st_uid != os.geteuid():
            raise _error(errno.EPERM, f"owned by user {found.st_uid}", path)
        if stat.S_IMODE(found.st_mode) & 0o077:
            os.fchmod(fd, 0o700)
    finally:
        os.close(fd)


def _error(number: int, problem: str, path: AnyPath) -> OSError:
    return OSError(number, problem, os.fspath(path))


_MOST_LINKS: Final = 8  # in one path; Kubernetes uses two
_DEEPEST: Final = 16  # directories in one path, each of which is kept open
_OUT: Final = "symbolic link leaves its directory"
_LONG: Final = "too many symbolic links or directories"
_FOLDER: Final = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def read_beneath(folder: Path, name: str, most: int) -> bytes:
    """Return the content of a regular file beneath a directory.

    Args:
        folder: The directory; it may be a symbolic link.
        name: The name in `folder`, without `/`, of the file, or of a symbolic link to a file
            beneath `folder`.
        most: Maximum number of bytes to read; the rest is ignored.

    Raises:
        OSError: If the file cannot be read or is not a regular file. errno is ELOOP if a link is
            absolute or leaves the directory, or the path has too many links or directories.
        UnsupportedError: If the system is not Linux.
    """
    folders = [os.open(folder, o_path_flag() | os.O_DIRECTORY | os.O_CLOEXEC)]
    try:
        last = _resolve(folders, name)
        # read_regular refuses the last component if it has become a link.
        return read_regular(f"/proc/self/fd/{folders[-1]}/{last}", most)
    finally:
        for fd in folders:
            os.close(fd)


def _resolve(folders: list[int], name: str) -> str:
    """Open the directory of the file, and return the name of the file in it.

    `folders` is a stack of descriptors; `..` pops it instead of following the file system, where a
    directory may have been moved.
    """
    links = 0
    parts = deque([name])
    while parts:
        part = parts.popleft()
        if part in {"", "."}:
            continue
        if part == "..":
            if len(folders) == 1:
                raise OSError(errno.ELOOP, _OUT)
            os.close(folders.pop())
            continue
        target = _link_target(part, folders[-1])
        if target is not None:
            links += 1
            if links > _MOST_LINKS:
                raise OSError(errno.ELOOP, _LONG)
            if target.startswith("/"):
                raise OSError(errno.ELOOP, _OUT)
            parts.extendleft(reversed(target.split("/")))
        elif not parts:
            return part
        elif len(folders) > _DEEPEST:
            raise OSError(errno.ELOOP, _LONG)
        else:
            folders.append(os.open(part, o_path_flag() | _FOLDER, dir_fd=folders[-1]))
    raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))


def _link_target(name: str, folder: int) -> str | None:
    """Return the target of the symbolic link `name` in a directory; None if it is not a link.

    `folder` is a descriptor of the directory.
    """
    try:
        return os.readlink(name, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return None
        raise
