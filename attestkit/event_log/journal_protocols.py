"""The protocol of runtime logs, their checks, and a runtime log in memory."""

import hashlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Final, NamedTuple, Protocol

from attestkit._system.fifo_lock import FifoLock
from attestkit.errors import JournalError, UsageError
from attestkit.event_log.event import Event, json_string

ZERO: Final = bytes(48)
"""The value of the register after boot."""


class RegisterAccess(NamedTuple):
    """Functions that read and extend a register of SHA-384 in hardware, without a cache.

    It is RTMR3 of a TD, or a PCR of a TPM's SHA-384 bank.

    Attributes:
        read: Returns the value, 48 bytes.
        extend: Extends the register by a digest of 48 bytes.
        name: Name of the register, for errors.
    """

    read: Callable[[], bytes]
    extend: Callable[[bytes], None]  # argument: a digest of 48 bytes
    name: str = "RTMR3"  # for errors


class RuntimeLog(Protocol):
    """The log of the runtime events of one boot."""

    @property
    def version(self) -> int:
        """Digest version of this boot's events, 1 or 2."""
        ...

    @property
    def path(self) -> str:
        """Path of the log file, for errors; empty for a log in memory."""
        ...

    def locked(self) -> AbstractContextManager[None]:
        """Return a context manager that holds the log's lock.

        The lock is re-entrant within a thread, and granted in the order of the requests.
        """
        ...

    def events(self) -> tuple[Event, ...]:
        """Return the events so far; the same tuple until an event is added."""
        ...

    def emit(self, event: Event) -> None:
        """Extend the register by the event and log it, or neither.

        Raises:
            UsageError: If the event has another digest version than the log.
            JournalError: If the register does not match the log, or the log cannot be written.
            BackendError: If extending the register fails; nothing was changed.
        """

    def close(self) -> None:
        """Close open files."""


def replay_from(start: bytes, events: Iterable[Event]) -> bytes:
    """Return the value of a register after `events`, starting from `start`; 48 bytes each."""
    value = start
    for event in events:
        value = hashlib.sha384(value + event.digest).digest()
    return value


def size_in_evidence(event: Event) -> int:
    """Return the maximum size of a runtime event in evidence or in JSON, in bytes.

    Evidence contains name and payload twice; JSON contains the payload in hex. An event of version
    2 also has a preimage, which takes four bytes for each byte of the payload.
    """
    name = len(json_string(event.name).encode())
    if event.version == 1:
        return 256 + 2 * name + 2 * len(event.payload)
    return 384 + 4 * name + 6 * len(event.payload)


def mismatch_remedy(path: str = "") -> str:
    """Return the remedy for a log that does not match the register.

    Args:
        path: Path of a log on disk, which another process may have changed; empty for a log in
            memory.
    """
    remedy = "restore the log as it was, or reboot" if path else "reboot"
    return f"run `attestkit doctor` for possible causes, then {remedy}"


def mismatch_error(
    register: bytes, replay: bytes, path: str = "", name: str = "RTMR3"
) -> JournalError:
    """Return the error for a log whose replay does not match the register `name`.

    Args:
        register: Value of the register, 48 bytes.
        replay: Replay of the log, 48 bytes.
        path: Path of a log on disk; empty for a log in memory.
        name: Name of the register, for the text.
    """
    return JournalError(
        f"runtime log{f' {path}' if path else ''}: does not match {name}: the register is "
        f"{register.hex()}, the log replays to {replay.hex()}; {mismatch_remedy(path)}",
        reason="mismatch",
        expected=replay,
        actual=register,
    )


def check_version(event: Event, version: int) -> None:
    """Raise UsageError if the event does not have the digest version `version` (1 or 2)."""
    if event.version != version:
        message = f"event version: this boot's events have version {version}, not {event.version}"
        raise UsageError(message, reason="conflict")


class MemoryJournal:
    """A runtime log in memory, for a guest that is simulated in this process.

    `version` is the digest version of its events, 1 or 2.
    """

    path = ""

    def __init__(self, register: RegisterAccess, *, version: int = 1) -> None:
        self.version = version
        self._register = register
        self._turns = FifoLock()
        self._events: tuple[Event, ...] = ()
        self._replay = ZERO

    def locked(self) -> FifoLock:
        """Return the log's lock, a context manager; re-entrant within a thread."""
        return self._turns

    def events(self) -> tuple[Event, ...]:
        """Return the events so far; the same tuple until an event is added."""
        return self._events

    def emit(self, event: Event) -> None:
        """Extend the register by the event and log it, or neither.

        Raises:
            UsageError: If the event has another digest version than the log.
            JournalError: If the register does not match the replay of the log.
            BackendError: If extending the register fails; nothing was changed.
        """
        with nullcontext() if self._turns.held else self._turns:
            check_version(event, self.version)
            if (register := self._register.read()) != self._replay:
                raise mismatch_error(register, self._replay, name=self._register.name)
            replay, events = replay_from(self._replay, (event,)), (*self._events, event)
            try:
                self._register.extend(event.digest)
            except BaseException as error:  # the register decides whether the event took effect
                if not (self._commit(replay, events) and isinstance(error, Exception)):
                    raise
            else:
                self._commit(replay, events)

    def _commit(self, replay: bytes, events: tuple[Event, ...]) -> bool:
        """Set the log to `events` if the register has the value `replay`, 48 bytes.

        Returns:
            Whether it has.
        """
        if done := self._register.read() == replay:
            self._replay, self._events = replay, events
        return done

    def begin(self, boot_id: str, events: Iterable[Event] = ()) -> None:
        """Start a new boot with `events`, by which the register is already extended.

        `boot_id` is ignored: only logs on disk need it.
        """
        del boot_id  # needed by logs on disk only
        with self._turns:
            self._events = tuple(events)
            self._replay = replay_from(ZERO, self._events)

    def close(self) -> None:
        """Do nothing: no file is open."""
