"""What the server owns on the machine: its folders, the lock that says who is live, its sockets.

A unix socket gets its mode and group after bind and before listen: until listen nobody can connect,
so there is no moment at which it is open to more people than it should be.
"""

import contextlib
import errno
import fcntl
import os
import socket
import stat
from pathlib import Path
from typing import TypeAlias

from attestkit._crypto.pem import armour
from attestkit._system.atomic_file import replace_file
from attestkit._system.untrusted_files import (
    change_group,
    change_mode,
    close_folder,
    open_regular,
    path_flag,
)
from attestkit._system.untrusted_files import make_folder as make_folder_at
from attestkit.errors import BackendBusyError, ConfigError, UsageError
from attestkit.serve.config.option_values import Address

__all__ = ["BACKLOG", "Lock", "UnixListener", "bind_tcp", "make_folder", "write_trust_anchor"]

BACKLOG = 1024
_MAX_PATH = 107  # bytes of sockaddr_un.sun_path without the final zero
_NO_GROUP = 2**32 - 1  # to the kernel: leave the group as it is
_FileId: TypeAlias = tuple[int, int]


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def make_folder(folder: Path, *, private: bool, ignored: bool = False) -> None:
    """Make `folder` unless it is there; a new one is for its owner only.

    Args:
        folder: Where.
        private: An old one must be ours too, and is closed to others.
        ignored: git is told to leave its content alone; a new one is always.

    Raises:
        ConfigError: It cannot be made, or is somebody else's.
    """
    try:
        new = make_folder_at(folder)
        if private:
            close_folder(folder)
        ignore = folder / ".gitignore"
        if (new or ignored) and not ignore.exists():
            replace_file(ignore, b"*\n", mode=0o600)
    except OSError as error:
        raise ConfigError(f"{folder}: {_reason(error)}") from error


def write_trust_anchor(folder: Path, root: bytes) -> Path:
    """Write a root certificate (DER) as `trust-anchor.pem`, for all to read; return its path.

    It stays when the server ends: evidence may be verified later.

    Raises:
        ConfigError: It cannot be written.
    """
    path = folder / "trust-anchor.pem"
    try:
        replace_file(path, armour("CERTIFICATE", root).encode("ascii"), mode=0o644)
    except OSError as error:
        raise ConfigError(f"{path}: {_reason(error)}") from error
    return path


class Lock:
    """The lock of a folder: whoever holds it is the live server there.

    The kernel drops it with the process, however that ends; the file stays, for a lock file that
    is removed is no lock. Its text is the process id, for people.
    """

    def __init__(self, folder: Path) -> None:
        """Take the lock of `folder`.

        Raises:
            BackendBusyError: Another server has it.
            ConfigError: The file cannot be opened.
        """
        path = folder / "lock"
        if path.is_dir():  # /var/run has a folder of that name on many distributions
            path = folder / "attestkit.lock"
        try:
            self._handle = open_regular(path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise ConfigError(f"{path}: {_reason(error)}") from error
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.read(self._handle, 20).decode("ascii", "replace").strip()
            os.close(self._handle)
            raise BackendBusyError(
                f"another server is live in {folder} (process {owner or 'unknown'}); "
                "stop it, or choose another --dir"
            ) from error
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, b"%d\n" % os.getpid(), 0)

    def close(self) -> None:
        """Let the next server in."""
        os.close(self._handle)


class UnixListener:
    """A unix socket that listens at `path`, and is removed by us alone."""

    def __init__(self, path: Path, mode: int, group: str | None = None) -> None:
        """Bind and listen.

        Args:
            path: Absolute; a dead socket there is replaced, anything else is not.
            mode: Permission bits.
            group: Its group, by name or number.

        Raises:
            UsageError: The path is too long, or there is no such group.
            BackendBusyError: Somebody else answers at this path.
            ConfigError: Something else is in the way.
        """
        if len(os.fsencode(path)) > _MAX_PATH:
            raise UsageError(f"{path}: longer than the {_MAX_PATH} bytes a socket's path may have")
        group_id = -1 if group is None else _group_id(group)
        self.path = path
        self.socket: socket.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._process = os.getpid()
        self._file: _FileId | None = None
        try:
            _remove_stale(path)
            os.fchmod(self.socket.fileno(), 0o600)  # with which bind makes the file
            self.socket.bind(os.fspath(path))
            self._file = _admit(path, mode, group_id)
            self.socket.listen(BACKLOG)
        except OSError as error:
            self.close()
            raise ConfigError(f"{path}: {_reason(error)}") from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop listening, and remove the path."""
        self.socket.close()
        self.unlink()

    def unlink(self) -> None:
        """Remove the path while it still leads to this socket; who is connected stays so.

        A fork removes none: the socket is its parent's.
        """
        if self._process != os.getpid():
            return
        with contextlib.suppress(OSError):  # gone already, or no longer ours to remove
            if self._file is not None and _file_id(self.path) == self._file:
                self.path.unlink()
        self._file = None


def _admit(path: Path, mode: int, group_id: int) -> _FileId:
    """Give a socket that we have just made its group and mode; return which file it is.

    By one descriptor: whoever else may write the folder may have put a link in its place.
    """
    fd = os.open(path, path_flag() | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid():
            raise ConfigError(f"{path}: somebody has put something else in its place")
        if group_id != -1:
            change_group(fd, group_id)
        change_mode(fd, mode)
    finally:
        os.close(fd)
    return found.st_dev, found.st_ino


def _file_id(path: Path) -> _FileId:
    found = path.lstat()
    return found.st_dev, found.st_ino


def _group_id(group: str) -> int:
    import grp  # only where a group is named

    if group.isascii() and group.isdigit() and int(group) < _NO_GROUP:
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except (KeyError, ValueError) as error:
        raise UsageError(f"--socket-group {group}: there is no such group") from error


def _remove_stale(path: Path) -> None:
    """Remove a socket at `path` on which nobody listens."""
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise ConfigError(f"{path}: in the way, and not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(0)  # a full backlog would make us wait, and means that somebody is there
        result = probe.connect_ex(os.fspath(path))
    if result not in {errno.ECONNREFUSED, errno.ENOENT}:
        raise BackendBusyError(f"{path}: somebody else listens there")
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def bind_tcp(option: str, address: Address) -> socket.socket:
    """Return a TCP socket that listens at `address`; errors name `option`.

    Raises:
        UsageError: The host is unknown.
        BackendBusyError: The port is taken.
        ConfigError: It cannot be bound for another reason.
    """
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise UsageError(f"{option} {address}: {_reason(error)}") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(where)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise BackendBusyError(
                f"{option} {address}: the port is taken; port 0 takes any free one, "
                f"`{option} none` does without"
            ) from error
        raise ConfigError(f"{option} {address}: {_reason(error)}") from error
    return listener
