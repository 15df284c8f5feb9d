"""The crash-safe runtime event log on disk: each event is in register and log, or in neither.

The register is RTMR3 of a TD, or PCR 14 of a NitroTPM.

The log has the format of the dstack guest agent: a folder with `runtime_events.log` (one JSON
object per line), `runtime_event_version` and `runtime_event.lock`. attestkit adds three files:
`runtime_event.pending` has the event that is being emitted, `runtime_event.boot_id` the boot that
the log belongs to, and `runtime_event.queue` orders the programs that wait for the lock. To emit an
event, the journal does the following under the lock:

1. Resolve a pending event that an earlier program left.
2. Check that the register equals the replay of the log, and that the log file can be written.
3. Write and sync the pending file and the folder.
4. Extend the register.
5. Append the event to the log and sync it.
6. Remove the pending file.

A pending event is resolved by the register: if it equals the replay of the log, the register was
not extended by the event, and the event is dropped; if it equals the replay plus the event, the
event is appended; otherwise a JournalError gives both values. So a crash at any point leaves at
most one pending event. A log of another boot is archived if the register is zero; otherwise log and
register do not match.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager

from attestkit._outcomes.reasons import JournalReason
from attestkit._system.fifo_lock import HookedFifoLock
from attestkit.errors import AttestKitError, BackendError, FormatError, JournalError
from attestkit.event_log.event import Event
from attestkit.event_log.journal_files import (
    BOOT_ID,
    LOCK,
    LOG,
    PENDING,
    VERSION,
    LogFile,
    OsFolder,
    damaged,
)
from attestkit.event_log.journal_protocols import (
    ZERO,
    MemoryJournal,
    RegisterAccess,
    RuntimeLog,
    check_version,
    mismatch_error,
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


class _QueuedLock:
    """The lock of a journal whose folder other programs use, too.

    A thread first waits in the queue of all programs, then for the lock of this object. In this
    order, it holds no other lock while it waits in the queue.
    """

    def __init__(self, folder: OsFolder, turns: HookedFifoLock) -> None:
        self._folder = folder
        self._turns = turns

    def __enter__(self) -> None:
        if self._turns.held:
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
            if not self._turns.held:
                self._folder.leave_queue()


class Journal:
    """The runtime log on disk; the module docstring describes the protocol.

    Args:
        folder: The folder of the log, with its lock.
        register: Access to the register.
        boot_id: Text that is different for every boot, such as `boot_id` of Linux.
        version: Digest version of the app's events, 1 or 2. None uses the version of this boot's
            events, or 1 if there are none.
        exclusive: Hold the lock until `close`, because no other program uses the folder.
    """

    def __init__(
        self,
        folder: OsFolder,
        register: RegisterAccess,
        *,
        boot_id: str,
        version: int | None = None,
        exclusive: bool = False,
    ) -> None:
        self._folder = folder
        self._register = register
        self._boot_id = boot_id
        self._configured_version = version
        turns = HookedFifoLock(self._enter, self._leave)
        self._lock = turns if exclusive else _QueuedLock(folder, turns)
        self._exclusive = exclusive
        self._closed = False
        self._has_lock = False  # in `_lock`, False only while the folder cannot be created
        self._is_current = False  # the file cannot have changed since the events were read
        self._boot_confirmed = False  # the stored boot ID is that of this boot
        self._log = LogFile(folder)

    # -- the lock ------------------------------------------------------------------------------

    def _enter(self) -> None:
        if self._closed:
            raise JournalError("runtime log: is closed; open it again", reason="closed")
        if not self._has_lock:
            try:
                self._has_lock = self._folder.lock() or self._create_and_lock()
            except OSError as error:
                raise _failure("lock", error, "unwritable") from error
            except BaseException:  # an interrupt, before or after the lock was acquired
                self._folder.unlock()
                raise

    def _create_and_lock(self) -> bool:
        """Create the folder and lock it; return False if it cannot be created."""
        try:
            self._folder.make()
        except OSError:
            return False  # reading works without a folder; emitting reports the error
        return self._folder.lock()

    def _leave(self) -> None:
        if self._has_lock and not self._exclusive:
            self._has_lock = self._is_current = False
            self._folder.unlock()

    def locked(self) -> AbstractContextManager[None]:
        """Return a context manager that holds the log's lock, for threads and processes.

        The lock is re-entrant within a thread, and granted in the order of the requests. Entering
        raises JournalError if the lock file cannot be used.
        """
        return self._lock

    # -- reading -------------------------------------------------------------------------------

    def events(self) -> tuple[Event, ...]:
        """Return the events of this boot; the same tuple until an event is added.

        A pending event is resolved first. If it cannot be resolved, it is not included, and the
        log does not match the register.

        Raises:
            JournalError: If the log cannot be read, or an event that extended the register cannot
                be appended to it.
            BackendError: If an event is pending and the register cannot be read.
        """
        with self._lock:
            if self._is_current:
                return self._log.events
            try:
                self._log.load()
                if not self._is_this_boot():
                    return ()
            except OSError as error:
                raise _failure("read", error, "unreadable") from error
            # Without the lock (there was no folder), a pending event is left to the program that
            # wrote it.
            if self._has_lock:
                try:
                    self._resolve()
                    self._is_current = self._may_cache()
                except JournalError:
                    pass
                except OSError as error:
                    if self._register.read() != self._log.replay:
                        raise JournalError(
                            "runtime log: cannot append an earlier event, which is in "
                            f"{self._register.name}: {error}; the next use of the log tries again",
                            reason="not_recorded",
                        ) from error
            return self._log.events

    def _may_cache(self) -> bool:
        """Return whether the events may be cached.

        An exclusive journal does not cache a log that does not match the register: the file may
        have been replaced despite the lock, and may be restored.
        """
        if not self._exclusive:
            return True
        try:
            return self._register.read() == self._log.replay
        except BackendError:
            return False

    def _is_this_boot(self) -> bool:
        """Return whether the log is of this boot, or has no boot ID."""
        if not self._boot_confirmed:
            stored = self._stored_boot()
            self._boot_confirmed = stored == self._boot_id
            return stored is None or self._boot_confirmed
        return True

    @property
    def path(self) -> str:
        """Path of the log."""
        return self._log.path

    @property
    def version(self) -> int:
        """Digest version, 1 or 2, of this boot's events; without events the configured one, or 1.

        Raises:
            JournalError: If the file with the version cannot be read or is damaged.
        """
        try:
            return self._stored_version() or self._configured_version or 1
        except OSError as error:
            raise _failure("read the event version", error, "unreadable") from error

    def _stored_version(self) -> int | None:
        """Return the digest version of this boot's first event; None before the first event."""
        text = self._folder.read(VERSION)
        if text is None or not self._is_this_boot():
            return None
        if text.strip() not in (b"1", b"2"):
            raise damaged(self._folder.path_of(VERSION), f"must be 1 or 2, not {text[:16]!r}")
        return int(text)

    def _stored_boot(self) -> str | None:
        text = self._folder.read(BOOT_ID)
        return None if text is None else text.decode(errors="replace").strip()

    def _mismatch(self, register: bytes, replay: bytes) -> JournalError:
        there = "" if self._log.stamp else " (missing)"
        return mismatch_error(register, replay, self.path + there, self._register.name)

    # -- pending events ------------------------------------------------------------------------

    def _resolve(self) -> None:
        """Resolve a pending event, or raise JournalError if the log has an incomplete line."""
        if self._folder.stamp(PENDING) is not None:
            self._resolve_pending(self._folder.read(PENDING) or b"")
        elif self._log.tail:
            raise self._log.damaged_tail()

    def _archive(self, boot: str) -> None:
        """Rename the log of the boot with the boot ID `boot`; a crash in between does no harm."""
        label = "".join(c for c in boot if c.isalnum() or c == "-")[:36] or "unknown"
        for name in (LOG, PENDING):
            if self._folder.stamp(name) is not None:
                self._folder.rename(name, f"{name}.{label}")
        self._folder.remove(VERSION)
        self._folder.sync_folder()
        self._log.reset()

    def _resolve_pending(self, pending: bytes) -> None:
        """Append the event in the content of the pending file, or drop the event.

        It is appended if the register includes it, and dropped if it does not.
        """
        line, event = _interpret_pending(pending)
        register = self._register.read()
        if not line.startswith(self._log.tail):
            raise self._log.damaged_tail()
        if register == self._log.replay:
            self._log.drop_tail()
        elif event is not None and register == replay_from(self._log.replay, (event,)):
            self._log.append(event, line)
        else:
            raise self._mismatch(register, self._log.replay)
        self._folder.remove(PENDING)

    # -- writing -------------------------------------------------------------------------------

    def _replace_file(self, name: str, data: bytes) -> None:
        """Create or replace the file `name` of the folder with `data`, atomically and durably."""
        self._folder.write(f"{name}.new", data)
        self._folder.sync(f"{name}.new")
        self._folder.rename(f"{name}.new", name)
        self._folder.sync_folder()

    def emit(self, event: Event) -> None:
        """Extend the register by the event and log it, or neither.

        Raises:
            UsageError: If the event has another digest version than this boot's events, or is not a
                runtime event.
            JournalError: If log and register do not match, or a file cannot be written. If the
                reason is `not_recorded`, the register was extended, and the next use of the log
                appends the event. If it is `outcome_unknown`, the register cannot be read after the
                extend, and the next use of the log appends or drops the event.
            BackendError: If extending the register fails; nothing was changed.
        """
        fate = "nothing was changed"
        reason: JournalReason = "unwritable"
        with self._lock:
            try:
                self._is_current = False
                self._prepare(event)
                line = runtime_line(event)
                self._write_pending(line)
                self._extend(event)
                reason = "not_recorded"
                fate = (
                    f"{self._register.name} was extended, and the next use of the log records the "
                    "event; do not repeat the call"
                )
                if self._folder.stamp(LOG) != self._log.stamp:  # appending could damage the log
                    message = f"runtime log: another process wrote to the locked log; {fate}"
                    raise JournalError(message, reason=reason)
                self._log.append(event, line)
                self._folder.remove(PENDING)
                self._is_current = True
            except OSError as error:
                message = f"runtime log: cannot write: {error}; {fate}"
                raise JournalError(message, reason=reason) from error

    def _prepare(self, event: Event) -> None:
        """Check everything that could fail later, then write boot ID and version if missing.

        The event must have the digest version of this boot's events.
        """
        if not self._has_lock:
            self._folder.make()
            self._has_lock = self._folder.lock()
            if not self._has_lock:
                message = "runtime log: the folder was removed while it was locked"
                raise JournalError(message, reason="unwritable")
        self._log.load()
        stored, configured = self._stored_version(), self._configured_version
        if stored and configured and stored != configured:
            raise JournalError(
                f"runtime log: this boot's events have version {stored}, not the configured "
                f"{configured}: {self._folder.path_of(VERSION)}",
                reason="event_version",
            )
        check_version(event, stored or configured or 1)
        if not self._is_this_boot():
            if (register := self._register.read()) != ZERO:
                raise self._mismatch(register, ZERO)
            self._archive(self._stored_boot() or "")
        self._resolve()
        if (register := self._register.read()) != self._log.replay:
            raise self._mismatch(register, self._log.replay)
        self._folder.check(LOG)
        if not self._boot_confirmed:
            self._replace_file(BOOT_ID, self._boot_id.encode() + b"\n")
            self._boot_confirmed = True
        if stored is None:
            self._replace_file(VERSION, b"%d" % event.version)

    def _write_pending(self, line: bytes) -> None:
        """Write the pending file with `line`, the event of `runtime_line`, durably."""
        try:
            self._folder.write(PENDING, line)
            self._folder.sync(PENDING)
            self._folder.sync_folder()
        except OSError:
            self._folder.remove(PENDING)
            raise

    def _extend(self, event: Event) -> None:
        """Extend the register by the event, and read it to determine whether it was extended.

        Raises:
            BackendError: If it was not.
            JournalError: If the register cannot be read, or has another value.
        """
        try:
            self._register.extend(event.digest)
        except Exception as failure:
            if not self._is_extended(event, failure):
                raise
        else:
            if not self._is_extended(event, None):
                message = f"{self._register.name}: the value did not change when it was extended"
                raise BackendError(message, reason="register_unchanged")

    def _is_extended(self, event: Event, failure: Exception | None) -> bool:
        """Return whether the register was extended by the event; if not, drop the pending event.

        `failure` is the error of the extend, which becomes the cause of errors here; None: it
        succeeded.

        Raises:
            JournalError: If the register cannot be read, or has another value.
        """
        after = replay_from(self._log.replay, (event,))
        try:
            register = self._register.read()
        except AttestKitError as error:
            raise JournalError(
                f"runtime log: {self._register.name} cannot be read, so it is unknown whether it "
                f"was extended: {error}; the event is pending, and the next use of the log decides",
                reason="outcome_unknown",
            ) from (failure or error)
        if register == self._log.replay:
            self._folder.remove(PENDING)
            return False
        if register != after:
            raise self._mismatch(register, after) from failure
        return True

    def begin(self, boot_id: str, events: Iterable[Event] = ()) -> None:
        """Start the log of a new boot with `events`, by which the register is already extended.

        The log of an earlier boot is archived. `boot_id` is as for `Journal`.

        Raises:
            JournalError: If a file cannot be written.
        """
        with self._lock:
            try:
                self._is_current = False
                self._folder.make()
                self._has_lock = self._has_lock or self._folder.lock()
                self._archive(self._stored_boot() or "")
                self._boot_id, self._boot_confirmed = boot_id, True
                self._replace_file(BOOT_ID, boot_id.encode() + b"\n")
                if events := tuple(events):
                    self._replace_file(VERSION, b"%d" % events[0].version)
                    self._replace_file(LOG, b"".join(map(runtime_line, events)))
                self._log.load()
            except OSError as error:
                raise _failure("start", error, "unwritable") from error

    def close(self) -> None:
        """Close the lock file, which releases it; `events` and `emit` then raise JournalError."""
        self._closed = True
        self._has_lock = self._is_current = False
        self._folder.close()


def _failure(action: str, error: OSError, reason: JournalReason) -> JournalError:
    return JournalError(f"runtime log: cannot {action}: {error}", reason=reason)


def _interpret_pending(pending: bytes) -> tuple[bytes, Event | None]:
    """Return the content of the pending file unchanged, and the event in its line.

    The event is None if the line is incomplete or malformed.
    """
    if pending.endswith(b"\n"):
        try:
            (event,) = parse_runtime_lines(pending)
        except (FormatError, ValueError):
            return pending, None
        return pending, event
    return pending, None
