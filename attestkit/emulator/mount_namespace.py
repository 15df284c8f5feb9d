"""A mount namespace of this process, in which files of an emulator are at the kernel's own paths.

Nothing of the real machine is changed: what is mounted here nobody outside sees, and it ends with
the last process inside. What is mounted outside meanwhile appears here too.
"""

import contextlib
import os
import stat
from collections.abc import Iterable
from errno import EACCES, ENOSPC, EPERM
from pathlib import Path
from typing import Final

from attestkit.emulator.linux_calls import (
    MS_BIND,
    MS_NOSUID,
    MS_REC,
    MS_SLAVE,
    NEW_MOUNTS,
    NEW_USERS,
    mount,
    unshare,
)
from attestkit.errors import BackendUnavailableError

__all__ = ["Places", "current", "enter", "is_passing", "leave_root"]

_OURS: Final = "attestkit"  # what a covering file system says that it is made of
_ROOT: Final = 0  # user and group in a user namespace of ours: whoever made it


def enter() -> bool:
    """Give this process a mount namespace; return whether that took a user namespace.

    In a user namespace the process is root, which there means that it may mount; for files it is
    who it was. To be called with no other thread.

    Raises:
        BackendUnavailableError: That is forbidden here; the text says by what.
    """
    user, group, before = os.geteuid(), os.getegid(), current()
    try:
        if own_users := not _enter_as_root():
            unshare(NEW_USERS | NEW_MOUNTS)
            _map_to(_ROOT, _ROOT, user, group)
        mount("none", "/", flags=MS_REC | MS_SLAVE)
    except OSError as error:
        raise BackendUnavailableError(_why_not(error)) from error
    if current() == before:  # whose processes we would end
        raise BackendUnavailableError("this machine has no mount namespaces")
    return own_users


def current() -> Path:
    """Return what names the mount namespace of this process, in `/proc/PID/ns/mnt` too."""
    return Path("/proc/self/ns/mnt").readlink()


def _enter_as_root() -> bool:
    """Make a mount namespace with the rights there are; False if they do not do."""
    try:
        unshare(NEW_MOUNTS)
    except PermissionError:
        return False
    return True


def leave_root(user: int, group: int) -> None:
    """Be this user and group again, in one more user namespace: no longer root, no longer able to.

    Raises:
        BackendUnavailableError: It cannot be made.
    """
    try:
        unshare(NEW_USERS)
        _map_to(user, group, _ROOT, _ROOT)
    except OSError as error:
        raise BackendUnavailableError(_why_not(error)) from error


def _map_to(user: int, group: int, outer_user: int, outer_group: int) -> None:
    """Say who this process's user is in its new namespace; the kernel allows no other mapping."""
    own = Path("/proc/self")
    (own / "setgroups").write_text("deny", encoding="ascii")
    (own / "uid_map").write_text(f"{user} {outer_user} 1", encoding="ascii")
    (own / "gid_map").write_text(f"{group} {outer_group} 1", encoding="ascii")


def _why_not(error: OSError) -> str:
    """Say what forbids a user namespace, as far as Linux tells."""
    what = "no user namespace can be made here"
    if error.errno == ENOSPC:
        return f"{what}: raise the limit, sysctl -w user.max_user_namespaces=15000, or run as root"
    if error.errno in {EPERM, EACCES}:
        for name, forbidden in (
            ("kernel.unprivileged_userns_clone", "0"),
            ("kernel.apparmor_restrict_unprivileged_userns", "1"),
        ):
            if _sysctl(name) == forbidden:
                allowed = "1" if forbidden == "0" else "0"
                return f"{what}: sysctl -w {name}={allowed} allows it, or run as root"
        return (
            f"{what} ({error.strerror}): a container must allow it (docker run --cap-add SYS_ADMIN "
            "--security-opt seccomp=unconfined --security-opt apparmor=unconfined)"
        )
    return f"{what}: {error.strerror}"


def _sysctl(name: str) -> str:
    """Return what a setting of the kernel says; nothing if there is no such setting."""
    try:
        return Path("/proc/sys", *name.split(".")).read_text(encoding="ascii").strip()
    except OSError:
        return ""


def is_passing(path: Path) -> bool:
    """Return whether `path`, or the first folder to be made for it, is in one that covers another.

    It would be seen in the namespace alone, and be gone with it.
    """
    try:
        where = path.resolve()
        while not where.exists() and where != where.parent:
            where = where.parent
        device = where.stat().st_dev
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except (OSError, RuntimeError):  # a loop of links, or not ours: whoever opens it says so
        return False
    mounted = f" {os.major(device)}:{os.minor(device)} "
    return any(mounted in line and f" - tmpfs {_OURS} " in line for line in mounts.splitlines())


class Places:
    """Puts files and folders at paths of this mount namespace; OSError where that cannot be.

    What is there is covered. Where there is nothing none can be made, for the folder is the real
    machine's; so another takes its place: a tmpfs in which all its entries are mounted, one by one.
    What is made in such a folder afterwards is seen only on the side where it was made.

    Args:
        paths: All that will be shown, linked, hidden or made.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = frozenset(paths)
        self._ours: set[Path] = set()  # folders in which we can make entries
        self._were: dict[Path, os.stat_result] = {}  # the real folders that are covered

    def show(self, source: Path, path: Path) -> None:
        """Let what is at `source` appear at `path` too."""
        folder = source.is_dir()
        if _kind(path) != ("folder" if folder else "file"):
            self._make_room(path.parent)
            if folder:
                path.mkdir()
            else:
                path.touch()
        mount(str(source), str(path), flags=MS_BIND)

    def link(self, target: str, path: Path) -> None:
        """Let `path` be a symbolic link."""
        self._make_room(path.parent)
        path.symlink_to(target)

    def hide(self, path: Path) -> None:
        """Let there be nothing at `path`."""
        if _kind(path):
            self._make_room(path.parent)

    def folder(self, path: Path, mode: int = 0o755) -> None:
        """Let there be a new folder at `path`."""
        self._make_room(path.parent)
        path.mkdir()
        path.chmod(mode)  # whatever the umask
        self._ours.add(path)

    def done(self) -> None:
        """Give the covering folders owner and permissions of the real ones, as far as possible."""
        for path, was in self._were.items():
            mode = stat.S_IMODE(was.st_mode)
            try:
                os.chown(path, was.st_uid, was.st_gid)
            except OSError:  # the owner is unknown in this user namespace; so the folder stays ours
                mode &= ~0o222
            path.chmod(mode)

    def _make_room(self, path: Path) -> None:
        """See to it that there is such a folder, and that entries can be made in it."""
        if path in self._ours:
            return
        if path.is_dir():
            self._cover(path)
            self._ours.add(path)
        else:
            self.folder(path)

    def _cover(self, path: Path) -> None:
        try:
            names = [entry.name for entry in path.iterdir()]
        except PermissionError:  # what cannot be listed is not missed
            names = []
        self._were[path] = path.stat()
        real = os.open(path, os.O_PATH | os.O_DIRECTORY)
        try:
            mount(_OURS, str(path), kind="tmpfs", flags=MS_NOSUID, options="mode=755")
            for name in names:
                if path / name not in self._paths:
                    _keep(Path(f"/proc/self/fd/{real}/{name}"), path / name)
        finally:
            os.close(real)


def _kind(path: Path) -> str:
    """Say what is at a path; nothing if nothing can be seen there."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return ""
    return {stat.S_IFDIR: "folder", stat.S_IFLNK: "link"}.get(stat.S_IFMT(mode), "file")


def _keep(source: Path, path: Path) -> None:
    """Let an entry of a covered folder be in the covering one; not if nobody here could use it."""
    with contextlib.suppress(FileNotFoundError, PermissionError):
        kind = _kind(source)
        if kind == "link":
            path.symlink_to(source.readlink())
            return
        if kind == "folder":
            path.mkdir()
        elif kind:
            path.touch()
        else:
            return
        mount(str(source), str(path), flags=MS_BIND | MS_REC)
