"""What a recorded backend may be able to do, one class for each protocol of `backends.base`."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from threading import Lock
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

from attestkit._system.fifo_lock import Turns
from attestkit.backends.base import AppHost, SnpEvidence
from attestkit.backends.recording.call_codec import Scalar, event_to_json
from attestkit.backends.recording.recorded_host import NoKeys
from attestkit.backends.recording.recorder import Tape
from attestkit.dstack.app_compose import AppCompose
from attestkit.errors import UsageError
from attestkit.event_log import Event
from attestkit.event_log.journal import RuntimeLog
from attestkit.keys import AppKeys, KeyDeriver

__all__ = [
    "AgentAbility",
    "HostAbility",
    "Inside",
    "RegisterAbility",
    "ResetAbility",
    "Resettable",
    "SnpAbility",
]


class Inside(NamedTuple):
    """Where the answers come from."""

    tape: Tape
    backend: Any  # that is recorded, with whatever abilities; in a replay None, and never asked
    host: Any  # who knows the app
    opening: Lock  # taken to open the journal

    def over(self, name: str, report_data: bytes) -> object:
        """Return the answer to a call over `report_data`, exactly 64 bytes."""
        _check_size("report_data", report_data, 64)
        arguments = {"report_data": report_data.hex()}
        return self.tape.answer(name, arguments, lambda: getattr(self.backend, name)(report_data))


@runtime_checkable
class Resettable(Protocol):
    """A simulated TEE that can be booted again."""

    def reset(self) -> None:
        """Reboot."""


class RegisterAbility:
    """A `RegisterExtender`."""

    _inside: Inside
    _journal: "RecordedLog | None" = None

    def read_rtmr(self, register: int) -> bytes:
        """Return what a register, 0 to 3, holds: 48 bytes; BackendError if it was not recorded."""
        _check_register(register)
        tape, backend = self._inside[:2]
        return tape.answer(
            "read_rtmr", {"register": register}, lambda: cast("bytes", backend.read_rtmr(register))
        )

    def extend_rtmr(self, register: int, digest: bytes) -> None:
        """Extend a register by a digest of 48 bytes; BackendError if that was not recorded next."""
        _check_register(register)
        _check_size("a digest", digest, 48)
        tape, backend = self._inside[:2]
        arguments: dict[str, Scalar] = {"register": register, "digest": digest.hex()}
        tape.answer("extend_rtmr", arguments, lambda: backend.extend_rtmr(register, digest))

    def open_journal(self, version: int | None = None) -> RuntimeLog:
        """Return the runtime events; every call the same object, the first call's version counts.

        Raises:
            BackendError: It was not recorded with this version.
            AttestKitError: What the backend raises or raised.
        """
        tape, backend = self._inside[:2]
        with self._inside.opening:
            if self._journal is None:
                log = tape.answer(
                    "open_journal", {"version": version}, lambda: backend.open_journal(version)
                )
                self._journal = RecordedLog(tape, log)
            return self._journal


def _check_size(what: str, value: object, size: int) -> None:
    if not isinstance(value, bytes) or len(value) != size:
        raise UsageError(f"{what} is {size} bytes")


def _check_event(name: object, payload: object) -> None:
    if not isinstance(name, str) or not isinstance(payload, bytes):
        raise UsageError("an event has a text as its name and bytes as its payload")


def _check_register(register: object) -> None:
    if type(register) is not int or not 0 <= register <= 3:
        raise UsageError(f"there is no RTMR{register}")


class RecordedLog:
    """A `RuntimeLog`; without `log` one that a tape plays.

    Whoever asks it has its lock before the tape's, as whoever locks it and then asks the backend.
    """

    def __init__(self, tape: Tape, log: RuntimeLog | None) -> None:
        self._tape = tape
        self._log: Any = log
        self._turns = Turns()  # of a log that is played

    @property
    def place(self) -> str:
        """Empty: a tape has no file, and what is recorded is told as it will be played."""
        return ""

    @property
    def version(self) -> int:
        """Digest version of this boot's events, 1 or 2."""
        return self._tape.answer("journal_version", {}, lambda: cast("int", self._log.version))

    def locked(self) -> AbstractContextManager[None]:
        """Keep everybody else from emitting, as a context manager; re-entrant within a thread."""
        lock = self._turns if self._log is None else self._log.locked()
        return cast("AbstractContextManager[None]", _Locked(self._tape, lock))

    def events(self) -> tuple[Event, ...]:
        """Return the events so far; the same tuple as long as nothing was added."""
        with self.locked():
            return self._tape.answer(
                "journal_events", {}, lambda: cast("tuple[Event, ...]", self._log.events())
            )

    def emit(self, event: Event) -> None:
        """Extend RTMR3 by the event and log it, or neither."""
        if not isinstance(event, Event):
            raise UsageError("a journal has Events")
        with self.locked():
            self._tape.answer("journal_emit", event_to_json(event), lambda: self._log.emit(event))

    def close(self) -> None:
        """Let go of what is held open."""
        if self._log is not None:
            self._log.close()


class _EndOfLock:
    """The `__exit__` of a `_Locked`: that of its lock.

    A `with` looks it up as it begins and then calls the lock's own, which may be in C: an interrupt
    where an `__exit__` of ours began would keep the lock for ever, see
    `attestkit._system.fifo_lock`.
    """

    def __get__(self, locked: "_Locked | None", _: object = None) -> Callable[..., bool | None]:
        return _leave if locked is None else locked.lock.__exit__


def _leave(locked: "_Locked", *raised: Any) -> bool | None:
    """Leave, where the class was asked: by an `ExitStack`, which ends in Python itself."""
    return locked.lock.__exit__(*raised)


class _Locked:
    """A journal's lock, taken by way of the tape."""

    __exit__ = _EndOfLock()

    def __init__(self, tape: Tape, lock: "AbstractContextManager[object, bool | None]") -> None:
        self._tape = tape
        self.lock = lock

    def __enter__(self) -> None:
        self._tape.enter(self.lock.__enter__)


class SnpAbility:
    """An `SnpReporter`."""

    _inside: Inside

    def get_snp_report(self, report_data: bytes) -> SnpEvidence:
        """Return the report over `report_data`, exactly 64 bytes; errors as `get_quote`."""
        return cast("SnpEvidence", self._inside.over("get_snp_report", report_data))


class AgentAbility:
    """A `GuestAgent`."""

    _inside: Inside

    def get_quote_response(self, report_data: bytes) -> str:
        """Return the agent's whole answer over `report_data`; errors as `get_quote`."""
        return cast("str", self._inside.over("get_quote_response", report_data))

    def emit_event(self, name: str, payload: bytes) -> None:
        """Have RTMR3 extended by an event; BackendError if that was not recorded next."""
        _check_event(name, payload)
        tape, backend = self._inside[:2]
        arguments = {"name": name, "payload": payload.hex()}
        tape.answer("emit_event", arguments, lambda: backend.emit_event(name, payload))

    def read_app_compose(self) -> bytes:
        """Return what the app was deployed from; BackendError if it was not recorded."""
        tape, backend = self._inside[:2]
        return tape.answer(
            "read_app_compose", {}, lambda: cast("bytes", backend.read_app_compose())
        )

    @property
    def keys(self) -> KeyDeriver:
        """The agent's keys, past the recording; in a replay they refuse with UnsupportedError."""
        backend = self._inside.backend
        return NoKeys() if backend is None else cast("KeyDeriver", backend.keys)


class HostAbility:
    """An `AppHost`."""

    _inside: Inside

    @property
    def _host(self) -> AppHost:
        return cast("AppHost", self._inside.host)

    @property
    def app_compose(self) -> AppCompose:
        """What the app was deployed from."""
        return self._host.app_compose

    @property
    def vm_config(self) -> str:
        """The machine's configuration, JSON text."""
        return self._host.vm_config

    @property
    def app_keys(self) -> AppKeys:
        """The app's keys, past the recording; UnsupportedError in a replay."""
        return self._host.app_keys


class ResetAbility:
    """A TEE that can be booted again."""

    _inside: Inside
    _journal: RecordedLog | None = None

    def reset(self) -> None:
        """Reboot; BackendError if that was not recorded next."""
        with self._inside.opening:
            if self._journal is None:  # and nobody opens it, who might wait in its lock
                self._reset()
                return
        # The backend takes the journal's lock: before the tape's turn, as whoever asks the journal.
        with self._journal.locked():
            self._reset()

    def _reset(self) -> None:
        tape, backend = self._inside[:2]
        tape.answer("reset", {}, lambda: cast("None", backend.reset()))
