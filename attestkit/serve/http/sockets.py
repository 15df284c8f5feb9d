"""Listening sockets (unix, TCP, vsock), and the folder, lock and trust anchor beside them.

A unix socket gets its mode and group after bind() and before listen(). Until then connect() fails,
so that the socket is never open to other users than intended.
"""

import array
import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from attestkit._crypto.pem import encode_pem
from attestkit._system import untrusted_files
from attestkit._system.atomic_file import replace_file
from attestkit._system.untrusted_files import make_folder as make_folder_at
from attestkit.errors import BackendBusyError, ConfigError, UsageError
from attestkit.serve.config.option_values import Address
from attestkit.serve.endpoints import VsockAddress

BACKLOG = 1024

HANDSHAKE_SECONDS: Final = 0.02
"""Time for pending handshakes to reach the backlog at shutdown."""

_MAX_PATH = 107  # bytes of sockaddr_un.sun_path without the terminating NUL
_SO_ATTACH_FILTER: Final = 26  # asm-generic/socket.h; missing in the socket module
# Classic BPF on the TCP header: load the flags; drop the packet if SYN is set, else accept it.
_NO_SYN: Final = ((0x30, 0, 0, 13), (0x45, 1, 0, 0x02), (0x06, 0, 0, 0xFFFFFFFF), (0x06, 0, 0, 0))
_NO_GROUP = 2**32 - 1  # (gid_t)-1 of chown(2): leaves the group unchanged
_FileId: TypeAlias = tuple[int, int]


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Context manager: raise an OSError as a ConfigError about `path`."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{path}: {_reason(error)}", reason="unwritable") from error


def make_folder(folder: Path, *, private: bool, ignored: bool = False) -> None:
    """Create `folder` and its parents with mode 0700 if they do not exist.

    Args:
        folder: Path of the folder.
        private: Whether an existing folder must belong to this user, and gets mode 0700 too.
        ignored: Whether a .gitignore is added to an existing folder; a new folder always gets it.

    Raises:
        ConfigError: If the folder cannot be created, or is private and belongs to another user.
    """
    with _writing(folder):
        new = make_folder_at(folder)
        if private:
            untrusted_files.make_private(folder)
        ignore = folder / ".gitignore"
        if (new or ignored) and not ignore.exists():
            replace_file(ignore, b"*\n", mode=0o600)


def write_trust_anchor(folder: Path, root: bytes) -> Path:
    """Write a root certificate (DER) as world-readable `trust-anchor.pem`; return its path.

    The file stays when the server stops, to verify evidence later.

    Raises:
        ConfigError: If the file cannot be written.
    """
    path = folder / "trust-anchor.pem"
    with _writing(path):
        replace_file(path, encode_pem("CERTIFICATE", root).encode("ascii"), mode=0o644)
    return path


class FolderLock:
    """Lock of a folder, held by its running server.

    The kernel releases the lock when the process ends. The lock file contains the process id. It is
    not removed, because otherwise two processes could lock different files.
    """

    def __init__(self, folder: Path) -> None:
        """Acquire the lock of `folder`.

        Raises:
            BackendBusyError: If another server has locked the folder.
            ConfigError: If the lock file cannot be opened.
        """
        path = folder / "lock"
        if path.is_dir():  # many distributions have a folder /var/run/lock
            path = folder / "attestkit.lock"
        with _writing(path):
            self._handle = untrusted_files.open_regular(path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.read(self._handle, 20).decode("ascii", "replace").strip()
            os.close(self._handle)
            raise BackendBusyError(
                f"{folder}: in use by another server (process {owner or 'unknown'}); "
                "stop it, or choose another --dir",
                reason="lock",
            ) from error
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, b"%d\n" % os.getpid(), 0)

    def close(self) -> None:
        """Release the lock."""
        os.close(self._handle)


class UnixListener:
    """Listening unix socket at `path`; `close` removes the path."""

    def __init__(self, path: Path, mode: int, group: str | None = None) -> None:
        """Bind and listen.

        Args:
            path: Absolute path. A stale socket at the path is replaced; any other file is an error.
            mode: Permission bits.
            group: Name or number of the socket's group; None: the default group of this process.

        Raises:
            UsageError: If the path is too long or the group unknown.
            BackendBusyError: If another process listens at the path.
            ConfigError: If the socket cannot be created, or the path exists and is not a socket.
        """
        if len(os.fsencode(path)) > _MAX_PATH:
            text = f"{path}: must be at most {_MAX_PATH} bytes, the limit for the path of a socket"
            raise UsageError(text, reason="too_large")
        group_id = -1 if group is None else _group_id(group)
        self.path = path
        self.socket: socket.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._process = os.getpid()
        self._file: _FileId | None = None
        try:
            with _writing(path):
                _remove_stale(path)
                os.fchmod(self.socket.fileno(), 0o600)  # bind() creates the file with this mode
                self.socket.bind(os.fspath(path))
                self._file = _set_permissions(path, mode, group_id)
                self.socket.listen(BACKLOG)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop listening, and remove the path as `unlink` does."""
        self.socket.close()
        self.unlink()

    def unlink(self) -> None:
        """Remove the path if it still belongs to this socket; connections stay open.

        After a fork, only the parent process removes it.
        """
        if self._process != os.getpid():
            return
        with contextlib.suppress(OSError):  # removed or replaced by another process
            if self._file is not None and _file_id(self.path) == self._file:
                self.path.unlink()
        self._file = None


def _set_permissions(path: Path, mode: int, group_id: int) -> _FileId:
    """Set group and mode of a new socket at `path`; return the numbers of its device and inode.

    The group stays if `group_id` is -1. Uses one descriptor, because other writers of the folder
    could replace the path by a link.
    """
    fd = os.open(path, untrusted_files.o_path_flag() | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid():
            text = f"{path}: replaced by another process during startup"
            raise ConfigError(text, reason="permissions")
        if group_id != -1:
            untrusted_files.change_group(fd, group_id)
        untrusted_files.change_mode(fd, mode)
    finally:
        os.close(fd)
    return found.st_dev, found.st_ino


def _file_id(path: Path) -> _FileId:
    found = path.lstat()
    return found.st_dev, found.st_ino


def _group_id(group: str) -> int:
    import grp  # lazy: only with a group

    if group.isascii() and group.isdigit() and int(group) < _NO_GROUP:
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except (KeyError, ValueError) as error:
        text = f"--socket-group: no such group: {group}"
        raise UsageError(text, reason="unknown_name") from error


def _remove_stale(path: Path) -> None:
    """Remove a socket at `path` on which no process listens; raise for any other file."""
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise ConfigError(
            f"{path}: exists and is not a socket; use another path", reason="wrong_type"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(0)  # a full backlog also means that a server listens
        result = probe.connect_ex(os.fspath(path))
    if result not in {errno.ECONNREFUSED, errno.ENOENT}:
        raise BackendBusyError(f"{path}: another process listens there; stop it", reason="address")
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def bind_tcp(option: str, address: Address) -> socket.socket:
    """Return a TCP socket listening at `address`; errors name `option`.

    Raises:
        UsageError: If the host is unknown.
        BackendBusyError: If the port is in use.
        ConfigError: If the address cannot be bound for any other reason.
    """
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise UsageError(f"{option} {address}: {_reason(error)}", reason="unknown_name") from error
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
                f"{option} {address}: the port is in use; port 0 selects a free one, "
                f"`{option} none` turns the listener off",
                reason="address",
            ) from error
        raise ConfigError(f"{option} {address}: {_reason(error)}", reason="wrong_value") from error
    return listener


class ListeningSocket(NamedTuple):
    """A listening socket that is not (or no longer) registered with an event loop.

    `ours` is True if this process created the socket, False if it was inherited.
    """

    listening: socket.socket
    ours: bool

    def refuse_new(self) -> None:
        """Stop accepting new connections; those in the backlog or in a handshake stay.

        An inherited socket is left as it is, for the next server. close() alone would reset
        connections that arrive after the last accept().
        """
        if not self.ours:
            return
        if self.listening.family == socket.AF_UNIX:
            # connect() now fails, and accept() still returns the backlog.
            with contextlib.suppress(OSError):  # a vsock socket has no such state
                self.listening.shutdown(socket.SHUT_RD)
            return
        code = array.array("B", b"".join(struct.pack("@HBBI", *step) for step in _NO_SYN))
        program = struct.pack("@HP", len(_NO_SYN), code.buffer_info()[0])
        with contextlib.suppress(OSError):  # without kernel support, a gap of microseconds remains
            self.listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)

    def accept_queued(self, most: int = 4096) -> list[socket.socket]:
        """Return up to `most` connections from the backlog, without blocking."""
        self.listening.settimeout(0)
        accepted = []
        for _ in range(most):
            try:
                accepted.append(self.listening.accept()[0])
            except ConnectionAbortedError:  # closed by the client
                continue
            except OSError:  # empty (EAGAIN; EINVAL after shutdown), or no free descriptor
                break
        return accepted


_BACKLOG: Final = 64  # the host is the only client


def bind_vsock(option: str, address: VsockAddress) -> socket.socket:
    """Return a socket listening at a vsock address; errors name `option`.

    Its Python object has the family AF_UNIX: uvloop serves a listening socket of that family by its
    descriptor alone, and does not support vsock. The kernel's object is a vsock socket.

    Raises:
        BackendBusyError: If the port is in use.
        ConfigError: If the address cannot be bound, or the kernel has no vsock.
    """
    try:
        listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    except OSError as error:
        problem = f"{option} {address}: the kernel has no vsock: {error.strerror}"
        raise ConfigError(problem, reason="wrong_value") from error
    try:
        listener.bind((address.cid, address.port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            problem = f"{option} {address}: another process listens there; use another port"
            raise BackendBusyError(problem, reason="address") from error
        problem = f"{option} {address}: {error.strerror}"
        raise ConfigError(problem, reason="wrong_value") from error
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=listener.detach())


def is_vsock(sock: socket.socket) -> bool:
    """Return whether the kernel's object is a vsock socket, of any Python family."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) == socket.AF_VSOCK
