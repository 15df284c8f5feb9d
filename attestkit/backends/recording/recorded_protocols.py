"""Protocols of `backends.base` that a recording implements, one class for each."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from threading import Lock
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

from attestkit._system.fifo_lock import FifoLock
from attestkit.backends.base import AppHost, SnpEvidence
from attestkit.backends.recording.call_codec import Scalar, event_to_json
from attestkit.backends.recording.recorded_host import UnavailableKeys
from attestkit.backends.recording.recorder import CallHandler
from attestkit.dstack.app_compose import AppCompose
from attestkit.errors import UsageError
from attestkit.event_log import Event
from attestkit.event_log.journal import RuntimeLog
from attestkit.keys import AppKeys, KeyDeriver

__all__ = [
    "AgentAbility",
    "HostAbility",
    "ProxyState",
    "RegisterAbility",
    "ResetAbility",
    "Resettable",
    "SnpAbility",
]


class ProxyState(NamedTuple):
    """State of a recording that its protocol classes share."""

    handler: CallHandler
    backend: Any  # the recorded backend; None in a replay, which never calls it
    host: Any  # source of the app's description, or None
    opening: Lock  # held while the journal is opened

    def call_with_report_data(self, name: str, report_data: bytes) -> object:
        """Return the result of a method whose argument is report data, exactly 64 bytes."""
        _check_size("report_data", report_data, 64)
        arguments = {"report_data": report_data.hex()}
        return self.handler.call(name, arguments, lambda: getattr(self.backend, name)(report_data))


@runtime_checkable
class Resettable(Protocol):
    """A simulated TEE that can be rebooted."""

    def reset(self) -> None:
        """Reboot."""


class RegisterAbility:
    """A `RegisterExtender`."""

    _state: ProxyState
    _journal: "RecordedLog | None" = None

    def read_rtmr(self, register: int) -> bytes:
        """Return RTMR0 to RTMR3, 48 bytes; BackendError if the call was not recorded."""
        _check_register(register)
        handler, backend = self._state[:2]
        return handler.call(
            "read_rtmr", {"register": register}, lambda: cast("bytes", backend.read_rtmr(register))
        )

    def extend_rtmr(self, register: int, digest: bytes) -> None:
        """Extend a register by a digest; BackendError unless recorded as the next change."""
        _check_register(register)
        _check_size("digest", digest, 48)
        handler, backend = self._state[:2]
        arguments: dict[str, Scalar] = {"register": register, "digest": digest.hex()}
        handler.call("extend_rtmr", arguments, lambda: backend.extend_rtmr(register, digest))

    def open_journal(self, version: int | None = None) -> RuntimeLog:
        """Return the journal of runtime events; later calls return the object of the first.

        Raises:
            BackendError: If the call was not recorded with this version.
            AttestKitError: If the backend fails or, in a replay, has failed.
        """
        handler, backend = self._state[:2]
        with self._state.opening:
            if self._journal is None:
                log = handler.call(
                    "open_journal", {"version": version}, lambda: backend.open_journal(version)
                )
                self._journal = RecordedLog(handler, log)
            return self._journal


def _check_size(what: str, value: object, size: int) -> None:
    if not isinstance(value, bytes) or len(value) != size:
        raise UsageError(
            f"{what}: must be {size} bytes",
            reason="wrong_size" if isinstance(value, bytes) else "wrong_type",
        )


def _check_event(name: object, payload: object) -> None:
    if not isinstance(name, str) or not isinstance(payload, bytes):
        raise UsageError("event: the name must be str and the payload bytes", reason="wrong_type")


def _check_register(register: object) -> None:
    if type(register) is not int or not 0 <= register <= 3:
        raise UsageError(f"register {register}: must be 0 to 3", reason="out_of_range")


class RecordedLog:
    """A recorded `RuntimeLog`, or without `log` a replayed one.

    Lock order: the lock of the journal before that of the handler.
    """

    def __init__(self, handler: CallHandler, log: RuntimeLog | None) -> None:
        self._handler = handler
        self._log: Any = log
        self._turns = FifoLock()  # the lock of a replayed log

    @property
    def path(self) -> str:
        """Empty, because the texts of recorded errors must not depend on the path of the log."""
        return ""

    @property
    def version(self) -> int:
        """Digest version of this boot's events, 1 or 2."""
        return self._handler.call("journal_version", {}, lambda: cast("int", self._log.version))

    def locked(self) -> AbstractContextManager[None]:
        """Lock the journal. A context manager, re-entrant within a thread."""
        lock = self._turns if self._log is None else self._log.locked()
        return cast("AbstractContextManager[None]", _Locked(self._handler, lock))

    def events(self) -> tuple[Event, ...]:
        """Return all events; the same tuple until an event is added."""
        with self.locked():
            return self._handler.call(
                "journal_events", {}, lambda: cast("tuple[Event, ...]", self._log.events())
            )

    def emit(self, event: Event) -> None:
        """Extend RTMR3 by the event and append it to the log, atomically."""
        if not isinstance(event, Event):
            raise UsageError("event: must be an Event", reason="wrong_type")
        with self.locked():
            self._handler.call("journal_emit", event_to_json(event), lambda: self._log.emit(event))

    def close(self) -> None:
        """Close the recorded journal."""
        if self._log is not None:
            self._log.close()


class _LockExit:
    """Descriptor that makes the lock's `__exit__` that of a `_Locked`.

    So a `with` statement calls the lock's own `__exit__`, which may be in C. An interrupt at the
    start of a Python `__exit__` would leave the lock held for ever, see
    `attestkit._system.fifo_lock`.
    """

    def __get__(self, locked: "_Locked | None", _: object = None) -> Callable[..., bool | None]:
        return _leave if locked is None else locked.lock.__exit__


def _leave(locked: "_Locked", *raised: Any) -> bool | None:
    """Exit the lock for callers that look up `__exit__` on the class, such as `ExitStack`."""
    return locked.lock.__exit__(*raised)


class _Locked:
    """A journal's lock, whose failures are recorded and replayed."""

    __exit__ = _LockExit()

    def __init__(
        self, handler: CallHandler, lock: "AbstractContextManager[object, bool | None]"
    ) -> None:
        self._handler = handler
        self.lock = lock

    def __enter__(self) -> None:
        self._handler.lock_journal(self.lock.__enter__)


class SnpAbility:
    """An `SnpReporter`."""

    _state: ProxyState

    def get_snp_report(self, report_data: bytes) -> SnpEvidence:
        """Return report and certificates over exactly 64 bytes; raises what `get_quote` does."""
        return cast("SnpEvidence", self._state.call_with_report_data("get_snp_report", report_data))


class AgentAbility:
    """A `GuestAgent`."""

    _state: ProxyState

    def get_quote_response(self, report_data: bytes) -> str:
        """Return the agent's response over exactly 64 bytes; raises what `get_quote` does."""
        return cast("str", self._state.call_with_report_data("get_quote_response", report_data))

    def emit_event(self, name: str, payload: bytes) -> None:
        """Emit an event; BackendError unless it was recorded as the next change."""
        _check_event(name, payload)
        handler, backend = self._state[:2]
        arguments = {"name": name, "payload": payload.hex()}
        handler.call("emit_event", arguments, lambda: backend.emit_event(name, payload))

    def read_app_compose(self) -> bytes:
        """Return the app's compose file; BackendError if the call was not recorded."""
        handler, backend = self._state[:2]
        return handler.call(
            "read_app_compose", {}, lambda: cast("bytes", backend.read_app_compose())
        )

    @property
    def keys(self) -> KeyDeriver:
        """The agent's keys, which are not recorded; in a replay they raise UnsupportedError."""
        backend = self._state.backend
        return UnavailableKeys() if backend is None else cast("KeyDeriver", backend.keys)


class HostAbility:
    """An `AppHost`."""

    _state: ProxyState

    @property
    def _host(self) -> AppHost:
        return cast("AppHost", self._state.host)

    @property
    def app_compose(self) -> AppCompose:
        """The app's compose file."""
        return self._host.app_compose

    @property
    def vm_config(self) -> str:
        """The configuration of the VM as JSON."""
        return self._host.vm_config

    @property
    def app_keys(self) -> AppKeys:
        """The app's keys, which are not recorded; UnsupportedError in a replay."""
        return self._host.app_keys


class ResetAbility:
    """A `Resettable` TEE."""

    _state: ProxyState
    _journal: RecordedLog | None = None

    def reset(self) -> None:
        """Reboot; BackendError unless it was recorded as the next change."""
        with self._state.opening:
            if self._journal is None:  # and `opening` is held, so it stays closed
                self._reset()
                return
        # The backend takes the journal's lock, which comes before the handler's lock.
        with self._journal.locked():
            self._reset()

    def _reset(self) -> None:
        handler, backend = self._state[:2]
        handler.call("reset", {}, lambda: cast("None", backend.reset()))
