"""Simulated storage and RTMR that fail or lose power after any step of the journal."""

import hashlib
from collections.abc import Callable
from typing import Any, cast

from attestkit.event_log.journal import Journal, RegisterAccess
from attestkit.event_log.journal_files import OsFolder, Stamp

ZERO = bytes(48)
# Operations of a folder that change it.
CHANGES = {"make", "write", "append", "cut", "sync", "sync_folder", "rename", "remove"}


class WatchedFolder:
    """A folder that calls `step` with the name of each change, before and after it.

    Files are written in two halves, with a step between them.
    """

    def __init__(self, folder: OsFolder, step: Callable[[str], None]) -> None:
        self._folder, self._step = folder, step

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._folder, name)
        if name not in CHANGES:
            return operation

        def watched(*arguments: Any) -> None:
            file = arguments[0] if arguments else "folder"
            what = f"{name.partition('_')[0]} {file}"
            self._step(f"before {what}")
            if name in {"write", "append"}:
                data = arguments[1]
                operation(file, data[: len(data) // 2])
                self._step(f"half {what}")
                self._folder.append(file, data[len(data) // 2 :])
            else:
                operation(*arguments)
            self._step(f"after {what}")

        return watched


def watch(journal: Journal, step: Callable[[str], None]) -> None:
    """Call `step` with the name of each operation of a journal, before and after it."""
    folder = cast("OsFolder", WatchedFolder(journal._folder, step))
    journal._folder = journal._log.folder = folder
    read, extend, name = journal._register

    def watched(digest: bytes) -> None:
        step("before extend")
        extend(digest)
        step("after extend")

    journal._register = RegisterAccess(read, watched, name)


class Killed(BaseException):
    """Simulated SIGKILL; a BaseException, so that no code under test handles it."""


class Inode:
    """Content of a file, and the part of it that has reached the disk."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.content = b""
        self.on_disk = b""


class World:
    """Files in memory and RTMR3, with a step at which execution stops.

    Every change is a step. At step `stop`, counted from 0, `make_error()` is raised (by default
    `Killed`): before the change, after half of it where it can be split, or after it.
    """

    def __init__(self) -> None:
        self.names: dict[str, Inode] = {}
        self.names_on_disk: dict[str, Inode] = {}
        self.removed: set[str] = set()  # since the last sync of the folder
        self.exists = False
        self.locked = False
        self.register = ZERO
        self.step = 0
        self.stop: int | None = None
        self.when = "before"
        self.make_error: Callable[[], BaseException] = Killed
        self.syncs = True
        self.accesses = 0  # reads of files
        self._inodes = 0

    def journal(
        self,
        boot_id: str = "boot-1",
        version: int | None = None,
        *,
        read: Callable[[], bytes] | None = None,
        extend: Callable[[bytes], None] | None = None,
        exclusive: bool = False,
    ) -> Journal:
        """Return the journal of a new process, by default with working access to the register."""
        self.locked = False  # the kernel releases the lock of a killed process
        self.step = 0
        access = RegisterAccess(read or (lambda: self.register), extend or self.extend)
        folder = cast("OsFolder", self)
        return Journal(folder, access, boot_id=boot_id, version=version, exclusive=exclusive)

    def lose_power(self, *, removals: bool = False) -> None:
        """Discard unsynced changes; the register keeps its value.

        With `removals`, removals reach the disk although they were not synced.
        """
        gone = self.removed if removals else set()
        self.names = {name: of for name, of in self.names_on_disk.items() if name not in gone}
        for inode in self.names.values():
            inode.content = inode.on_disk

    def change(self, apply: Callable[[], None], half: Callable[[], None] | None = None) -> None:
        """Perform one step, fully, by half or not at all."""
        self.step += 1
        if self.stop is None or self.step - 1 != self.stop:
            apply()
            return
        if self.when == "half" and half is not None:
            half()
        elif self.when == "after":
            apply()
        raise self.make_error()

    # -- the register --------------------------------------------------------------------------

    def extend(self, digest: bytes) -> None:
        """Extend RTMR3."""

        def apply() -> None:
            self.register = hashlib.sha384(self.register + digest).digest()

        self.change(apply)

    # -- the folder ----------------------------------------------------------------------------

    def enter_queue(self) -> None:
        """Do nothing: the rig runs one process at a time."""

    def leave_queue(self) -> None:
        """Do nothing."""

    def lock(self) -> bool:
        """Lock; the rig runs one process at a time."""
        assert not self.locked
        self.locked = self.exists
        return self.exists

    def unlock(self) -> None:
        """Unlock, whether locked or not."""
        self.locked = False

    def make(self) -> None:
        """Create the folder, which reaches the disk at once."""

        def apply() -> None:
            self.exists = True

        self.change(apply)

    def path_of(self, name: str) -> str:
        """Return a path."""
        return f"rig/{name}"

    def stamp(self, name: str) -> Stamp | None:
        """Return a value that changes with the file's content."""
        self.accesses += 1
        inode = self.names.get(name)
        return None if inode is None else Stamp(inode.number, len(inode.content), 0)

    def read(self, name: str) -> bytes | None:
        """Return the content of a file."""
        self.accesses += 1
        inode = self.names.get(name)
        return None if inode is None else inode.content

    def check(self, name: str) -> None:
        """Accept every file as writable."""

    def _open(self, name: str) -> Inode:
        assert self.exists
        assert self.locked
        if name not in self.names:
            self._inodes += 1
            self.names[name] = Inode(self._inodes)
        return self.names[name]

    def write(self, name: str, data: bytes) -> None:
        """Replace the content of a file."""

        def put(data: bytes) -> None:
            self._open(name).content = data

        self.change(lambda: put(data), lambda: put(data[: len(data) // 2]))

    def append(self, name: str, data: bytes) -> None:
        """Append to a file."""

        def put(data: bytes) -> None:
            self._open(name).content += data

        self.change(lambda: put(data), lambda: put(data[: len(data) // 2]))

    def cut(self, name: str, size: int) -> None:
        """Truncate a file."""

        def apply() -> None:
            self.names[name].content = self.names[name].content[:size]

        self.change(apply)

    def sync(self, name: str) -> None:
        """Write a file's content to the disk."""

        def apply() -> None:
            if self.syncs:
                self.names[name].on_disk = self.names[name].content

        self.change(apply)

    def sync_folder(self) -> None:
        """Write the names to the disk."""

        def apply() -> None:
            if self.syncs:
                self.names_on_disk = dict(self.names)
                self.removed.clear()

        self.change(apply)

    def rename(self, old: str, new: str) -> None:
        """Rename a file."""

        def apply() -> None:
            self.names[new] = self.names.pop(old)

        self.change(apply)

    def remove(self, name: str) -> None:
        """Remove a file."""

        def apply() -> None:
            self.names.pop(name, None)
            self.removed.add(name)

        self.change(apply)

    def close(self) -> None:
        """Do nothing: no descriptor is open."""


class Register:
    """RTMR3 in memory."""

    def __init__(self) -> None:
        self.value = ZERO

    @property
    def access(self) -> RegisterAccess:
        """Return access to the register."""
        return RegisterAccess(lambda: self.value, self._extend)

    def _extend(self, digest: bytes) -> None:
        self.value = hashlib.sha384(self.value + digest).digest()
