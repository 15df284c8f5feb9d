"""Runtime events of this boot: each is in RTMR3 and in the log, or in neither, also across a crash.

The log is the dstack guest agent's: a folder with `runtime_events.log` (one JSON object a line),
`runtime_event_version` and `runtime_event.lock`. Three files are attestkit's own:
`runtime_event.pending` holds the one event on its way, `runtime_event.boot_id` the boot that the
log belongs to, and in `runtime_event.queue` attestkit's programs line up for the lock. To emit,
under the lock:

1. a leftover pending event is decided first;
2. the register must equal the replay of the log, whose file must be ours to write;
3. the pending file is written and synced, and so is the folder;
4. the register is extended;
5. the event is appended to the log, which is synced;
6. the pending file is removed.

To decide: if the register equals the replay, the event never happened; if it equals the replay plus
the event, the event is appended; anything else is a JournalError with both values. A kill at any
moment thus costs at most a pending event whose fate the register tells. A log of another boot is
put aside while the register is zero; with a register that is not zero, nothing explains it.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Final

from attestkit._system.fifo_lock import SteppedTurns
from attestkit.errors import AttestKitError, BackendError, FormatError, JournalError
from attestkit.event_log.event import Event
from attestkit.event_log.journal_files import LONGEST, Folder, Stamp, WatchedFolder
from attestkit.event_log.journal_protocols import (
    ZERO,
    MemoryJournal,
    RegisterAccess,
    RuntimeLog,
    check_version,
    disagree,
    replay_from,
)
from attestkit.event_log.runtime_events import parse_runtime_lines, runtime_line

__all__ = [
    "BOOT_ID",
    "LOCK",
    "LOG",
    "PENDING",
    "VERSION",
    "ZERO",
    "Journal",
    "MemoryJournal",
    "RegisterAccess",
    "RuntimeLog",
    "replay_from",
]

LOG: Final = "runtime_events.log"
PENDING: Final = "runtime_event.pending"
VERSION: Final = "runtime_event_version"
LOCK: Final = "runtime_event.lock"
BOOT_ID: Final = "runtime_event.boot_id"


class _SharedTurns:
    """A journal's turns where other programs take turns as well: first in their queue, then ours.

    The queue comes first, so that whoever waits in it has none of the other locks.
    """

    def __init__(self, folder: Folder, turns: SteppedTurns) -> None:
        self._folder = folder
        self._turns = turns

    def __enter__(self) -> None:
        if self._turns.mine:
            self._turns.__enter__()
            return
        try:
            self._folder.enter_queue()
            self._turns.__enter__()
        except BaseException:
            self._folder.leave_queue()
            raise

    def __exit__(self, *_: object) -> None:
        try:
            self._turns.__exit__()
        finally:
            if not self._turns.mine:
                self._folder.leave_queue()


class Journal:
    """The runtime log on disk; the module's text says how it stays true.

    Args:
        folder: The log's folder, with its lock.
        register: RTMR3.
        boot_id: A text that changes with every boot, Linux' `boot_id` for one.
        version: The digest version the app asks for; None for whatever this boot has, else 1.
        exclusive: Nobody else is to use the folder: the lock is kept until `close`.
    """

    def __init__(
        self,
        folder: Folder,
        register: RegisterAccess,
        *,
        boot_id: str,
        version: int | None = None,
        exclusive: bool = False,
    ) -> None:
        self._folder = folder
        self._register = register
        self._boot_id = boot_id
        self._wanted_version = version
        turns = SteppedTurns(self._enter, self._leave)
        self._turn = turns if exclusive else _SharedTurns(folder, turns)
        self._exclusive = exclusive
        self._closed = False
        self._locked = False  # False inside the turn only while the folder cannot be made
        self._fresh = False  # nothing can have changed since the events were read
        self._ours = False  # the boot id beside the log is this boot's
        self._owed = False  # RTMR3 has an event that the log has not yet
        self._forget()

    def _forget(self) -> None:
        self._stamp: Stamp | None = None
        self._events: tuple[Event, ...] = ()
        self._replay = ZERO
        self._size = 0  # of the whole lines, in bytes
        self._tail = b""  # a torn last line

    # -- the lock ------------------------------------------------------------------------------

    def _enter(self) -> None:
        if self._closed:
            raise JournalError("the runtime log is closed")
        if not self._locked:
            try:
                self._locked = self._folder.lock() or self._make_and_lock()
            except OSError as error:
                raise JournalError(f"cannot lock the runtime log: {error}") from error
            except BaseException:  # an interrupt, before or after it was ours
                self._folder.unlock()
                raise

    def _make_and_lock(self) -> bool:
        """Make the folder, without which nobody could be kept from emitting the first event."""
        try:
            self._folder.make()
        except OSError:
            return False  # where nothing can be written nothing is emitted; who tries is told why
        return self._folder.lock()

    def _leave(self) -> None:
        if self._locked and not self._exclusive:
            self._locked = self._fresh = False
            self._folder.unlock()

    def locked(self) -> AbstractContextManager[None]:
        """Keep every other thread and process from emitting; re-entrant within a thread.

        A context manager; those who want it get it in the order they came. Raises JournalError if
        the lock's file cannot be used.
        """
        return self._turn

    # -- reading -------------------------------------------------------------------------------

    def events(self) -> tuple[Event, ...]:
        """Return the events of this boot; the same tuple as long as nothing was added.

        A pending event that the register decides is decided here too. One that it does not decide
        is left out: the log then disagrees with the register, as a comparison will show.

        Raises:
            JournalError: The log cannot be read, or lacks an event that cannot be added to it.
            BackendError: An event is pending, and the register cannot be read.
        """
        with self._turn:
            if self._fresh:
                return self._events
            try:
                self._load()
                if not self._is_ours():
                    return ()
            except OSError as error:
                raise JournalError(f"cannot read the runtime log: {error}") from error
            # Without the lock, as there was no folder, what is pending is another program's to end.
            if self._locked:
                try:
                    self._settle()
                    self._fresh = self._agrees()
                except JournalError:
                    pass
                except OSError as error:  # where nothing is owed, the log is true as it is
                    if self._owed:
                        raise JournalError(
                            "an earlier event is in RTMR3 and cannot be added to the runtime log: "
                            f"{error}; the next use of the log tries again"
                        ) from error
            return self._events

    def _agrees(self) -> bool:
        """Tell whether what was read may be kept beyond this turn, by a journal nobody else uses.

        A log that somebody has damaged all the same may be put back, and is then to be read again.
        """
        if not self._exclusive:
            return True
        try:
            return self._register.read() == self._replay
        except BackendError:
            return False

    def _is_ours(self) -> bool:
        """Tell whether the log is of this boot; one without a boot id is taken to be."""
        if not self._ours:
            stored = self._stored_boot()
            self._ours = stored == self._boot_id
            return stored is None or self._ours
        return True

    def _load(self) -> None:
        """Read the log if it is not the one that was read last."""
        stamp = self._folder.stamp(LOG)
        if stamp == self._stamp:
            return
        if stamp is not None and stamp.size > LONGEST:
            raise self._damaged(LOG, f"it has {stamp.size} bytes, more than {LONGEST}")
        data = self._folder.read(LOG) or b""
        size = data.rfind(b"\n") + 1
        try:
            events = parse_runtime_lines(data[:size])
        except FormatError as error:
            raise self._damaged(LOG, str(error)) from error
        replay = replay_from(ZERO, events)
        self._forget()
        self._events, self._replay, self._size, self._tail = events, replay, size, data[size:]
        self._stamp = stamp  # last: an interrupt before has it read again

    @property
    def place(self) -> str:
        """Path of the log."""
        return self._folder.place(LOG)

    @property
    def version(self) -> int:
        """Digest version of this boot's events: what was written at the first, else as asked."""
        try:
            return self._stored_version() or self._wanted_version or 1
        except OSError as error:
            raise JournalError(f"cannot read the event version: {error}") from error

    def _stored_version(self) -> int | None:
        """Return what this boot's first event has decided; None if nothing has yet."""
        text = self._folder.read(VERSION)
        if text is None or not self._is_ours():
            return None
        if text.strip() not in (b"1", b"2"):
            raise self._damaged(VERSION, f"it holds {text[:16]!r}, neither 1 nor 2")
        return int(text)

    def _stored_boot(self) -> str | None:
        text = self._folder.read(BOOT_ID)
        return None if text is None else text.decode(errors="replace").strip()

    def _torn(self) -> str:
        return f"its last line, at offset {self._size}, is torn"

    def _damaged(self, name: str, what: str) -> JournalError:
        """Return the error for a file that is not what was written, which says what helps."""
        return JournalError(
            f"the runtime log is damaged: {self._folder.place(name)}: {what}; put back what was "
            "there, for nothing else explains RTMR3 until the next boot"
        )

    def _disagree(self, register: bytes, replay: bytes) -> JournalError:
        there = "" if self._stamp else ", which is not there,"
        return disagree(register, replay, self.place + there)

    # -- deciding ------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Make sure that no event is half done."""
        if self._folder.stamp(PENDING) is not None:
            self._decide(self._folder.read(PENDING) or b"")
        elif self._tail:
            raise self._damaged(LOG, f"{self._torn()}, and nothing is pending")

    def _archive(self, boot: str) -> None:
        """Put the log of an earlier boot aside; a repetition after a crash does no harm."""
        label = "".join(c for c in boot if c.isalnum() or c == "-")[:36] or "unknown"
        for name in (LOG, PENDING):
            if self._folder.stamp(name) is not None:
                self._folder.rename(name, f"{name}.{label}")
        self._folder.remove(VERSION)
        self._folder.sync_folder()
        self._forget()

    def _decide(self, pending: bytes) -> None:
        """Let the register say whether the pending event happened."""
        line, event = _whole_line(pending)
        self._owed = False
        register = self._register.read()
        if not line.startswith(self._tail):
            raise self._damaged(LOG, f"{self._torn()}, and is not what is pending")
        if register == self._replay:
            if self._tail:
                self._cut_tail()
        elif event is not None and register == replay_from(self._replay, (event,)):
            self._owed = True
            self._append(event, line)
            self._owed = False
        else:
            raise self._disagree(register, self._replay)
        self._folder.remove(PENDING)

    def _cut_tail(self) -> None:
        self._folder.cut(LOG, self._size)
        self._folder.sync(LOG)
        self._tail = b""
        self._stamp = self._folder.stamp(LOG)

    def _append(self, event: Event, line: bytes) -> None:
        """Put a whole line behind the whole lines, and remember the event."""
        if self._tail:
            self._cut_tail()
        new = self._stamp is None
        self._folder.append(LOG, line)
        self._folder.sync(LOG)
        if new:
            self._folder.sync_folder()
        self._events = (*self._events, event)
        self._replay = replay_from(self._replay, (event,))
        self._size += len(line)
        self._stamp = self._folder.stamp(LOG)

    # -- writing -------------------------------------------------------------------------------

    def _put(self, name: str, data: bytes) -> None:
        """Write a small file so that it is there whole or not at all."""
        self._folder.write(f"{name}.new", data)
        self._folder.sync(f"{name}.new")
        self._folder.rename(f"{name}.new", name)
        self._folder.sync_folder()

    def emit(self, event: Event) -> None:
        """Extend RTMR3 by the event and log it, or neither.

        Raises:
            UsageError: The event is of another digest version than this boot's.
            JournalError: Log and register disagree, or the disk refused. If the register was
                extended already, the event is pending and the next use of the log completes it.
            BackendError: The register refused; nothing was changed.
        """
        fate = "nothing was changed"
        with self._turn:
            try:
                self._fresh = False
                self._ready(event)
                line = runtime_line(event)
                self._announce(line)
                self._extend(event)
                fate = "RTMR3 was extended, and the next use of the log completes it: do not repeat"
                if self._folder.stamp(LOG) != self._stamp:  # ours behind it could spoil both
                    raise JournalError(f"somebody wrote to the locked runtime log; {fate}")
                self._append(event, line)
                self._folder.remove(PENDING)
                self._fresh = True
            except OSError as error:
                raise JournalError(f"cannot write the runtime log: {error}; {fate}") from error

    def _ready(self, event: Event) -> None:
        """Do all that can be refused before something is changed."""
        if not self._locked:
            self._folder.make()
            self._locked = self._folder.lock()
            if not self._locked:
                raise JournalError("the runtime log's folder was removed while it was locked")
        self._load()
        stored, wanted = self._stored_version(), self._wanted_version
        if stored and wanted and stored != wanted:
            raise JournalError(
                f"this boot's events are of version {stored}, the app asks {wanted}: "
                f"{self._folder.place(VERSION)} says so since the first of them"
            )
        check_version(event, stored or wanted or 1)
        if not self._is_ours():
            if (register := self._register.read()) != ZERO:
                raise self._disagree(register, ZERO)
            self._archive(self._stored_boot() or "")
        self._settle()
        if (register := self._register.read()) != self._replay:
            raise self._disagree(register, self._replay)
        self._folder.check(LOG)
        if not self._ours:
            self._put(BOOT_ID, self._boot_id.encode() + b"\n")
            self._ours = True
        if stored is None:
            self._put(VERSION, b"%d" % event.version)

    def _announce(self, line: bytes) -> None:
        """Write down, durably, what is going to happen."""
        try:
            self._folder.write(PENDING, line)
            self._folder.sync(PENDING)
            self._folder.sync_folder()
        except OSError:
            self._folder.remove(PENDING)
            raise

    def _extend(self, event: Event) -> None:
        """Extend, and believe the register rather than the call."""
        after = replay_from(self._replay, (event,))
        failure: Exception | None = None
        try:
            self._register.extend(event.digest)
        except Exception as error:  # noqa: BLE001 - raised below, once the register has been asked
            failure = error
        try:
            register = self._register.read()
        except AttestKitError as error:
            raise JournalError(
                f"whether RTMR3 was extended is not known, for it cannot be read: {error}; "
                "the event is pending, and the next use of the log decides"
            ) from (failure or error)
        if register == self._replay:
            self._folder.remove(PENDING)
            raise failure or BackendError("RTMR3 did not change when it was extended")
        if register != after:
            raise self._disagree(register, after) from failure

    def begin(self, boot_id: str, events: Iterable[Event] = ()) -> None:
        """Start the log of a new boot with `events`, which its register already holds.

        What an earlier boot left is put aside.
        """
        with self._turn:
            try:
                self._fresh = False
                self._folder.make()
                self._locked = self._locked or self._folder.lock()
                self._archive(self._stored_boot() or "")
                self._boot_id, self._ours = boot_id, True
                self._put(BOOT_ID, boot_id.encode() + b"\n")
                if events := tuple(events):
                    self._put(VERSION, b"%d" % events[0].version)
                    self._put(LOG, b"".join(map(runtime_line, events)))
                self._load()
            except OSError as error:
                raise JournalError(f"cannot start the runtime log: {error}") from error

    def watch(self, step: Callable[[str], None]) -> None:
        """Call `step` between each two steps, with the name of what was done or comes next.

        For tests that end the program there. A file is written in two halves then.
        """
        self._folder = WatchedFolder(self._folder, step)
        read, extend = self._register

        def watched(digest: bytes) -> None:
            step("before extend")
            extend(digest)
            step("after extend")

        self._register = RegisterAccess(read, watched)

    def close(self) -> None:
        """Close the lock's file, which lets the lock go."""
        self._closed = True
        self._locked = self._fresh = False
        self._folder.close()


def _whole_line(pending: bytes) -> tuple[bytes, Event | None]:
    """Return the line and its event; no event if its writing was cut short."""
    if pending.endswith(b"\n"):
        try:
            (event,) = parse_runtime_lines(pending)
        except (FormatError, ValueError):
            return pending, None
        return pending, event
    return pending, None
