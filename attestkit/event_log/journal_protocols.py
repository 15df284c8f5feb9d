"""What a log of runtime events is, what one may hold, and the one that is kept in memory."""

import hashlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Final, NamedTuple, Protocol

from attestkit._system.fifo_lock import Turns
from attestkit.errors import JournalError, UsageError
from attestkit.event_log.event import Event, json_string

__all__ = [
    "ZERO",
    "MemoryJournal",
    "RegisterAccess",
    "RuntimeLog",
    "check_version",
    "cure",
    "disagree",
    "replay_from",
    "size_in_evidence",
]

ZERO: Final = bytes(48)
"""What RTMR3 holds as long as nobody has extended it."""


class RegisterAccess(NamedTuple):
    """How to reach RTMR3: both fresh from the hardware, nothing cached."""

    read: Callable[[], bytes]
    extend: Callable[[bytes], None]  # by a digest of 48 bytes


class RuntimeLog(Protocol):
    """The runtime events of one boot, and the only way to add one."""

    @property
    def version(self) -> int:
        """Digest version of this boot's events, 1 or 2."""
        ...

    @property
    def place(self) -> str:
        """Path of the file that it is in, for errors; empty where there is none."""
        ...

    def locked(self) -> AbstractContextManager[None]:
        """Keep everybody else from emitting, as a context manager; re-entrant within a thread.

        Those who want it get it in the order they came.
        """
        ...

    def events(self) -> tuple[Event, ...]:
        """Return the events so far; the same tuple as long as nothing was added."""
        ...

    def emit(self, event: Event) -> None:
        """Extend RTMR3 by the event and log it, or neither."""
        ...

    def close(self) -> None:
        """Let go of what is held open."""
        ...


def replay_from(start: bytes, events: Iterable[Event]) -> bytes:
    """Return the register after `events`, from the 48 bytes of `start`."""
    value = start
    for event in events:
        value = hashlib.sha384(value + event.digest).digest()
    return value


def size_in_evidence(event: Event) -> int:
    """Return the bytes that a runtime event takes in evidence, or in JSON, at most.

    Evidence has its name and payload twice, and JSON has the payload in hex; with version 2 there
    is the preimage, itself hex in JSON, in hex once more.
    """
    name = len(json_string(event.name).encode())
    if event.version == 1:
        return 256 + 2 * name + 2 * len(event.payload)
    return 384 + 4 * name + 6 * len(event.payload)


def cure(place: str = "") -> str:
    """Return what helps where the log does not explain the register.

    `place` is the path of a log that is on a disk, where somebody else may have changed it.
    """
    helps = "only a reboot starts both anew"
    if place:
        helps = f"unless the log can be put back as it was, {helps}"
    return f"attestkit doctor says what may have happened, and {helps}"


def disagree(register: bytes, replay: bytes, place: str = "") -> JournalError:
    """Return the error for a register that the log does not explain, with both values."""
    log = f"the runtime log {place}".rstrip()
    return JournalError(
        f"RTMR3 and {log} disagree: the register is {register.hex()}, the log replays to "
        f"{replay.hex()}; {cure(place)}"
    )


def check_version(event: Event, version: int) -> None:
    """Raise UsageError unless the event is of the digest version of this boot's events."""
    if event.version != version:
        raise UsageError(f"this boot's events are of version {version}, not {event.version}")


class MemoryJournal:
    """The runtime log of a TD that ends with this process: nothing on disk."""

    place = ""

    def __init__(self, register: RegisterAccess, *, version: int = 1) -> None:
        self.version = version
        self._register = register
        self._turns = Turns()
        self._events: tuple[Event, ...] = ()
        self._replay = ZERO

    def locked(self) -> Turns:
        """Keep other threads from emitting, as a context manager; re-entrant within a thread."""
        return self._turns

    def events(self) -> tuple[Event, ...]:
        """Return the events so far; the same tuple as long as nothing was added."""
        return self._events

    def emit(self, event: Event) -> None:
        """Extend RTMR3 by the event and log it, or neither.

        Raises:
            UsageError: The event is of another digest version.
            JournalError: The register was not what the log replays to.
            BackendError: The register refused; nothing was changed.
        """
        with nullcontext() if self._turns.mine else self._turns:
            check_version(event, self.version)
            if (register := self._register.read()) != self._replay:
                raise disagree(register, self._replay)
            replay, events = replay_from(self._replay, (event,)), (*self._events, event)
            try:
                self._register.extend(event.digest)
            except BaseException as error:  # the register counts, whatever was said
                if not (self._take(replay, events) and isinstance(error, Exception)):
                    raise
            else:
                self._take(replay, events)

    def _take(self, replay: bytes, events: tuple[Event, ...]) -> bool:
        """Have the log be `events` if the register holds their replay; tell whether it does."""
        if done := self._register.read() == replay:
            self._replay, self._events = replay, events
        return done

    def begin(self, boot_id: str, events: Iterable[Event] = ()) -> None:
        """Forget everything and start with `events`, which the register already holds."""
        del boot_id  # nothing here outlives a boot
        with self._turns:
            self._events = tuple(events)
            self._replay = replay_from(ZERO, self._events)

    def close(self) -> None:
        """Nothing is held open."""
