"""A folder and a register that can be stopped after any step, and what is left of them then."""

import hashlib
from collections.abc import Callable

from attestkit.event_log.journal import Journal, RegisterAccess
from attestkit.event_log.journal_files import Stamp

ZERO = bytes(48)


class Killed(BaseException):
    """The program ends here; not an Exception, since nothing may handle it."""


class Inode:
    """A file's content, and as much of it as is on the disk."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.content = b""
        self.on_disk = b""


class World:
    """The machine below a journal: files in memory, RTMR3, and a moment at which it all stops.

    Every change is a step. At step `stop`, counted from 0, `Killed` is raised (or whatever `how`
    raises): before the change, after half of it where it has halves, or behind it.
    """

    def __init__(self) -> None:
        self.names: dict[str, Inode] = {}
        self.names_on_disk: dict[str, Inode] = {}
        self.removed: set[str] = set()  # since the names were synced
        self.exists = False
        self.locked = False
        self.register = ZERO
        self.step = 0
        self.stop: int | None = None
        self.when = "before"
        self.how: Callable[[], BaseException] = Killed
        self.syncs = True
        self.looks = 0  # at files
        self._inodes = 0

    def journal(self, boot_id: str = "boot-1", version: int | None = None) -> Journal:
        """Return the journal of a program that starts now."""
        self.locked = False  # the lock of a dead program is nobody's
        self.step = 0
        access = RegisterAccess(lambda: self.register, self.extend)
        return Journal(self, access, boot_id=boot_id, version=version)

    def lose_power(self, *, removals: bool = False) -> None:
        """Forget whatever was not synced; the register is kept elsewhere.

        With `removals` those reached the disk all the same: nobody promised that they would wait.
        """
        gone = self.removed if removals else set()
        self.names = {name: of for name, of in self.names_on_disk.items() if name not in gone}
        for inode in self.names.values():
            inode.content = inode.on_disk

    def change(self, whole: Callable[[], None], half: Callable[[], None] | None = None) -> None:
        """Do one step, or a part of it, or nothing."""
        self.step += 1
        if self.stop is None or self.step - 1 != self.stop:
            whole()
            return
        if self.when == "half" and half is not None:
            half()
        elif self.when == "after":
            whole()
        raise self.how()

    # -- the register --------------------------------------------------------------------------

    def extend(self, digest: bytes) -> None:
        """Extend RTMR3."""

        def whole() -> None:
            self.register = hashlib.sha384(self.register + digest).digest()

        self.change(whole)

    # -- the folder ----------------------------------------------------------------------------

    def enter_queue(self) -> None:
        """Nobody else is there."""

    def leave_queue(self) -> None:
        """Nobody else is there."""

    def lock(self) -> bool:
        """Lock; the rig has one program at a time."""
        assert not self.locked
        self.locked = self.exists
        return self.exists

    def unlock(self) -> None:
        """Unlock, locked or not."""
        self.locked = False

    def make(self) -> None:
        """Make the folder, which is on the disk at once."""

        def whole() -> None:
            self.exists = True

        self.change(whole)

    def place(self, name: str) -> str:
        """Return a path."""
        return f"rig/{name}"

    def stamp(self, name: str) -> Stamp | None:
        """Tell one content of a file from another."""
        self.looks += 1
        inode = self.names.get(name)
        return None if inode is None else Stamp(inode.number, len(inode.content), 0)

    def read(self, name: str) -> bytes | None:
        """Return a file."""
        self.looks += 1
        inode = self.names.get(name)
        return None if inode is None else inode.content

    def check(self, name: str) -> None:
        """Every file here may be written."""

    def _open(self, name: str) -> Inode:
        assert self.exists
        assert self.locked
        if name not in self.names:
            self._inodes += 1
            self.names[name] = Inode(self._inodes)
        return self.names[name]

    def write(self, name: str, data: bytes) -> None:
        """Write a file anew."""

        def put(data: bytes) -> None:
            self._open(name).content = data

        self.change(lambda: put(data), lambda: put(data[: len(data) // 2]))

    def append(self, name: str, data: bytes) -> None:
        """Write behind."""

        def put(data: bytes) -> None:
            self._open(name).content += data

        self.change(lambda: put(data), lambda: put(data[: len(data) // 2]))

    def cut(self, name: str, size: int) -> None:
        """Shorten."""

        def whole() -> None:
            self.names[name].content = self.names[name].content[:size]

        self.change(whole)

    def sync(self, name: str) -> None:
        """Put a file's content on the disk."""

        def whole() -> None:
            if self.syncs:
                self.names[name].on_disk = self.names[name].content

        self.change(whole)

    def sync_folder(self) -> None:
        """Put the names on the disk."""

        def whole() -> None:
            if self.syncs:
                self.names_on_disk = dict(self.names)
                self.removed.clear()

        self.change(whole)

    def rename(self, old: str, new: str) -> None:
        """Rename."""

        def whole() -> None:
            self.names[new] = self.names.pop(old)

        self.change(whole)

    def remove(self, name: str) -> None:
        """Remove."""

        def whole() -> None:
            self.names.pop(name, None)
            self.removed.add(name)

        self.change(whole)

    def close(self) -> None:
        """Nothing is open."""


class Register:
    """RTMR3 of a test."""

    def __init__(self) -> None:
        self.value = ZERO

    @property
    def access(self) -> RegisterAccess:
        """Reach it."""
        return RegisterAccess(lambda: self.value, self._extend)

    def _extend(self, digest: bytes) -> None:
        self.value = hashlib.sha384(self.value + digest).digest()
