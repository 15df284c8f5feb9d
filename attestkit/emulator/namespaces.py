"""Namespaces in which `attestkit run` starts a program: mounts, and a network of its own.

In the mount namespace the files of an emulator are at the kernel's own paths. The machine itself
does not change: mounts are invisible outside of the namespace, and end with its last process. New
mounts of the machine propagate into the namespace.

The network namespace has only the loopback interface, with one more address: for a metadata service
at a link-local address, which belongs to the machine's own network otherwise. The interface is
configured by ioctls (netdevice(7)).
"""

import contextlib
import fcntl
import os
import socket
import stat
import struct
from collections.abc import Iterable
from errno import EACCES, EINVAL, ENOSPC, EPERM
from pathlib import Path
from typing import Final

from attestkit.emulator import linux_calls
from attestkit.errors import BackendUnavailableError

_OURS: Final = "attestkit"  # source name of covering mounts
_ROOT: Final = 0  # user and group id of the creator in a new user namespace


def enter() -> bool:
    """Move this process into a new mount namespace; return whether a user namespace was needed.

    In a user namespace the process is root and may mount, but has the file permissions of its user.
    Must be called while the process has one thread.

    Raises:
        BackendUnavailableError: If namespaces are forbidden.
    """
    user, group, before = os.geteuid(), os.getegid(), current()
    try:
        if own_users := not _enter_as_root():
            linux_calls.unshare(linux_calls.NEW_USERS | linux_calls.NEW_MOUNTS)
            _map_ids(_ROOT, _ROOT, user, group)
        linux_calls.mount("none", "/", flags=linux_calls.MS_REC | linux_calls.MS_SLAVE)
    except OSError as error:
        raise _forbidden(error) from error
    if current() == before:  # otherwise processes of the machine would be killed
        text = "mount namespaces: not supported by this kernel, as in a sandbox; use another host"
        raise BackendUnavailableError(text, reason="unsupported_kernel")
    return own_users


def current() -> Path:
    """Return the name of this process's mount namespace, such as `mnt:[4026531841]`."""
    return Path("/proc/self/ns/mnt").readlink()


def _enter_as_root() -> bool:
    """Move this process into a new mount namespace; return False without permission."""
    try:
        linux_calls.unshare(linux_calls.NEW_MOUNTS)
    except PermissionError:
        return False
    return True


def leave_root(user: int, group: int) -> None:
    """Drop root by a nested user namespace, in which the process has its original ids.

    Args:
        user: Original user id.
        group: Original group id.

    Raises:
        BackendUnavailableError: If the user namespace cannot be created.
    """
    try:
        linux_calls.unshare(linux_calls.NEW_USERS)
        _map_ids(user, group, _ROOT, _ROOT)
    except OSError as error:
        raise _forbidden(error) from error


def _map_ids(user: int, group: int, outer_user: int, outer_group: int) -> None:
    """Map the ids of this process in its new user namespace; no other mapping is allowed.

    Args:
        user: User id in the new namespace.
        group: Group id in the new namespace.
        outer_user: User id in the parent namespace.
        outer_group: Group id in the parent namespace.
    """
    own = Path("/proc/self")
    (own / "setgroups").write_text("deny", encoding="ascii")
    (own / "uid_map").write_text(f"{user} {outer_user} 1", encoding="ascii")
    (own / "gid_map").write_text(f"{group} {outer_group} 1", encoding="ascii")


def _forbidden(error: OSError) -> BackendUnavailableError:
    return BackendUnavailableError(_explain_failure(error), reason="permission_denied")


def _explain_failure(error: OSError) -> str:
    """Return as text why a user or mount namespace cannot be created, and the remedy.

    `error` is that of the system call.
    """
    what = "user or mount namespace: cannot be created"
    if error.errno == ENOSPC:
        return f"{what}; raise the limit, sysctl -w user.max_user_namespaces=15000, or run as root"
    if error.errno in {EPERM, EACCES}:
        for name, forbidden in (
            ("kernel.unprivileged_userns_clone", "0"),
            ("kernel.apparmor_restrict_unprivileged_userns", "1"),
        ):
            if _sysctl(name) == forbidden:
                allowed = "1" if forbidden == "0" else "0"
                return f"{what}; allow it by sysctl -w {name}={allowed}, or run as root"
        return (
            f"{what} ({error.strerror}); allow it in the container (docker run --cap-add SYS_ADMIN "
            "--security-opt seccomp=unconfined --security-opt apparmor=unconfined)"
        )
    return f"{what}: {error.strerror}"


def _sysctl(name: str) -> str:
    """Return the value of the sysctl `name`, such as `kernel.osrelease`; empty if it is missing."""
    try:
        return Path("/proc/sys", *name.split(".")).read_text(encoding="ascii").strip()
    except OSError:
        return ""


def is_in_covering_tmpfs(path: Path) -> bool:
    """Return whether `path`, or its nearest existing parent, is in a tmpfs of `NamespaceMounts`.

    It would be visible only in the namespace, and deleted with it.
    """
    try:
        where = path.resolve()
        while not where.exists() and where != where.parent:
            where = where.parent
        device = where.stat().st_dev
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except (OSError, RuntimeError):  # a loop of links, or no permission: opening it will fail
        return False
    mounted = f" {os.major(device)}:{os.minor(device)} "
    return any(mounted in line and f" - tmpfs {_OURS} " in line for line in mounts.splitlines())


class NamespaceMounts:
    """Mounts of files and folders in this namespace; methods raise OSError.

    An existing file is covered by a mount. A missing file cannot be created, because its folder
    belongs to the machine. So the folder is covered by a tmpfs, into which all its entries are
    bind-mounted. Files created in the folder later are visible only on one side.

    Args:
        paths: All paths that will be shown, linked, hidden or created.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = frozenset(paths)
        self._writable: set[Path] = set()  # folders in which entries can be created
        self._shown: set[Path] = set()
        self._covered: dict[Path, os.stat_result] = {}  # status of the covered folders

    def show(self, source: Path, path: Path) -> None:
        """Bind-mount the file or folder `source` at `path`."""
        folder = source.is_dir()
        if _file_type(path) != ("folder" if folder else "file"):
            self._make_room(path.parent)
            if folder:
                path.mkdir()
            else:
                path.touch()
        linux_calls.mount(str(source), str(path), flags=linux_calls.MS_BIND)
        self._shown.add(path)

    def link(self, target: str, path: Path) -> None:
        """Create a symbolic link to `target` at `path`."""
        self._make_room(path.parent)
        path.symlink_to(target)

    def hide(self, path: Path) -> None:
        """Hide the file at `path`."""
        if _file_type(path):
            self._make_room(path.parent)

    def folder(self, path: Path, mode: int = 0o755) -> None:
        """Create a folder at `path` with the permissions `mode`."""
        self._make_room(path.parent)
        path.mkdir()
        path.chmod(mode)  # whatever the umask
        self._writable.add(path)

    def restore_modes(self) -> None:
        """Give the covering folders the owner and mode of the covered ones, where possible."""
        for path, was in self._covered.items():
            mode = stat.S_IMODE(was.st_mode)
            try:
                os.chown(path, was.st_uid, was.st_gid)
            except OSError:  # the owner is not mapped in this user namespace
                mode &= ~0o222
            path.chmod(mode)

    def _make_room(self, path: Path) -> None:
        """Make `path` a folder in which entries can be created."""
        if path in self._writable:
            return
        if path.is_dir():
            self._cover(path)
            self._writable.add(path)
        else:
            self.folder(path)

    def _cover(self, path: Path) -> None:
        try:
            names = [entry.name for entry in path.iterdir()]
        except PermissionError:  # entries of an unreadable folder are dropped
            names = []
        self._covered[path] = path.stat()
        real = os.open(path, os.O_PATH | os.O_DIRECTORY)
        try:
            linux_calls.mount(
                _OURS, str(path), kind="tmpfs", flags=linux_calls.MS_NOSUID, options="mode=755"
            )
            for name in names:
                if path / name not in self._paths or path / name in self._shown:
                    _copy_entry(Path(f"/proc/self/fd/{real}/{name}"), path / name)
        finally:
            os.close(real)


def _file_type(path: Path) -> str:
    """Return the type of a file: `folder`, `link` or `file`; empty if it is not visible."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return ""
    return {stat.S_IFDIR: "folder", stat.S_IFLNK: "link"}.get(stat.S_IFMT(mode), "file")


def _copy_entry(source: Path, path: Path) -> None:
    """Show the file, folder or link `source` of a covered folder at `path`, in the covering one.

    An inaccessible entry is left out.
    """
    with contextlib.suppress(FileNotFoundError, PermissionError):
        kind = _file_type(source)
        if kind == "link":
            path.symlink_to(source.readlink())
            return
        if kind == "folder":
            path.mkdir()
        elif kind:
            path.touch()
        else:
            return
        linux_calls.mount(str(source), str(path), flags=linux_calls.MS_BIND | linux_calls.MS_REC)


_GET_FLAGS, _SET_FLAGS = 0x8913, 0x8914  # SIOCGIFFLAGS, SIOCSIFFLAGS
_SET_ADDRESS, _SET_MASK = 0x8916, 0x891C  # SIOCSIFADDR, SIOCSIFNETMASK
_UP: Final = 1
_LOOPBACK: Final = b"lo"
_ALIAS: Final = b"lo:0"  # the interface with a second address


def enter_own_network(address: str) -> None:
    """Move this process into a new network namespace, in which loopback has `address`, too.

    `address` is an IPv4 address as text.

    Raises:
        BackendUnavailableError: If the namespace cannot be created or configured.
    """
    try:
        linux_calls.unshare(linux_calls.NEW_NETWORK)
    except OSError as error:
        raise _refused("cannot be created", error) from error
    try:
        _configure(address)
    except OSError as error:
        raise _refused("loopback cannot be configured", error) from error


def _configure(address: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16s24x", _LOOPBACK)
        flags = struct.unpack_from("16xH", fcntl.ioctl(any_socket, _GET_FLAGS, request))[0]
        fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sH22x", _LOOPBACK, flags | _UP))
        fcntl.ioctl(any_socket, _SET_ADDRESS, _address_request(address))
        fcntl.ioctl(any_socket, _SET_MASK, _address_request("255.255.255.255"))


def _address_request(address: str) -> bytes:
    """Return `struct ifreq` (40 bytes) with an IPv4 address as `struct sockaddr_in`."""
    return struct.pack("16sH2x4s16x", _ALIAS, socket.AF_INET, socket.inet_aton(address))


def _refused(what: str, error: OSError) -> BackendUnavailableError:
    text = f"network namespace: {what}: {os.strerror(error.errno or 0)}"
    if error.errno == ENOSPC:
        remedy = "raise the limit, sysctl -w user.max_net_namespaces=15000"
    elif error.errno == EINVAL:
        remedy = "the kernel needs CONFIG_NET_NS"
    else:
        remedy = "in a container add docker run --cap-add SYS_ADMIN --cap-add NET_ADMIN"
    text = f"{text}; Azure's metadata service needs it: {remedy}"
    return BackendUnavailableError(text, reason="permission_denied")
