"""Simulated storage and RTMR that fail or lose power after any step of the journal."""

import hashlib
from collections.abc import Callable

from attestkit.event_log.journal import Journal, RegisterAccess
from attestkit.event_log.journal_files import Stamp

ZERO = bytes(48)


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

    def journal(self, boot_id: str = "boot-1", version: int | None = None) -> Journal:
        """Return the journal of a new process."""
        self.locked = False  # the kernel releases the lock of a killed process
        self.step = 0
        access = RegisterAccess(lambda: self.register, self.extend)
        return Journal(self, access, boot_id=boot_id, version=version)

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
