"""Methods of a recording for each protocol of the recorded backend (`ABILITIES`).

The description of the app comes from the recorded backend, or from the folder that its host shares.
It does not change, so it is in the header of the file. Keys are never written, because recordings
are meant to be shared.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, closing
from threading import Lock
from typing import Any, Final, NamedTuple, NoReturn, TypeVar, cast

from attestkit._argument_checks import wrong_type
from attestkit._system.fifo_lock import FifoLock
from attestkit.backends import base
from attestkit.backends.environment import find_host_shared_folder
from attestkit.backends.recording import call_codec
from attestkit.backends.recording.recorder import Recorder, Replayer
from attestkit.backends.recording.recording_file import result_from_json
from attestkit.dstack.app_compose import AppCompose
from attestkit.errors import AttestKitError, ConfigError, FormatError, UnsupportedError, UsageError
from attestkit.event_log import Event
from attestkit.event_log.journal import RuntimeLog
from attestkit.keys import KeyDeriver
from attestkit.tpm.pcrs import EVENT_PCR

NO_KEYS: Final = "keys: never recorded, so a replay has none"


class UnavailableKeys:
    """The keys of a replayed agent: every method raises UnsupportedError."""

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise UnsupportedError(NO_KEYS, reason="no_keys")

    derive: Callable[..., NoReturn] = _refuse
    derive_compat: Callable[..., NoReturn] = _refuse
    derive_v1: Callable[..., NoReturn] = _refuse
    sign: Callable[..., NoReturn] = _refuse


class RecordedHost:
    """An `AppHost` from a recording; also a `LaunchRecord` if `mr_config` was recorded."""

    mr_config: str

    def __init__(
        self, app_compose: call_codec.RecordedResult, vm_config: call_codec.RecordedResult
    ) -> None:
        self._app_compose = app_compose
        self._vm_config = vm_config

    @property
    def app_compose(self) -> AppCompose:
        """The parsed app-compose.json; raises the recorded error if it could not be read."""
        return cast("AppCompose", self._app_compose.get())

    @property
    def vm_config(self) -> str:
        """The configuration of the VM, JSON; raises the recorded error if it could not be read."""
        return cast("str", self._vm_config.get())

    @property
    def app_keys(self) -> NoReturn:
        """Raise UnsupportedError: keys are never recorded."""
        raise UnsupportedError(NO_KEYS, reason="no_keys")


def host_to_json(backend: base.Backend) -> dict[str, object]:
    """Return the header fields that describe the app of `backend`; empty if it has none.

    For hardware, the app's files are read from the folder that the host shares. A missing file is
    recorded as the error of reading it.

    Raises:
        UsageError: If `$DSTACK_HOST_SHARED_DIR` is not an absolute path.
    """
    if base.hosts_app(backend):
        return {"host": _app_to_json(backend)}
    if backend.simulated or isinstance(backend, base.GuestAgent):
        return {}
    from attestkit.dstack.host_shared_folder import HostShared  # lazy: only needed on hardware

    with closing(HostShared(find_host_shared_folder())) as shared:
        return {"host": _app_to_json(shared)}


def _app_to_json(host: base.AppHost) -> dict[str, dict[str, object]]:
    app = {
        "app_compose": _outcome(lambda: str(host.app_compose.raw, "utf-8")),
        "vm_config": _outcome(lambda: host.vm_config),
    }
    if isinstance(host, base.LaunchRecord):
        app["mr_config"] = _outcome(lambda: host.mr_config)
    return app


def _outcome(read: Callable[[], str]) -> dict[str, object]:
    try:
        return {"answer": read()}
    except AttestKitError as error:
        return call_codec.error_to_json(error)


def host_from_json(header: Mapping[str, Any]) -> RecordedHost | None:
    """Return the description of the app in a recording's header, or None if it has none.

    Raises:
        FormatError: If the description of the app is malformed.
    """
    app = header.get("host")
    if app is None:
        return None
    if not isinstance(app, dict) or not {"app_compose", "vm_config"} <= app.keys():
        text = "host: must be an object with app_compose and vm_config"
        raise FormatError(text, reason="wrong_type")
    found = {name: _result(name, app[name]) for name in app}
    compose = found["app_compose"]
    if compose.failure is None:
        try:
            parsed = AppCompose.parse(str(compose.value).encode())
        except (ConfigError, UnicodeError) as error:
            raise FormatError(f"host: app_compose: {error}", reason="wrong_value") from error
        compose = call_codec.RecordedResult(parsed)
    host = RecordedHost(compose, found["vm_config"])
    if (document := found.get("mr_config")) is not None and isinstance(document.value, str):
        host.mr_config = document.value
    return host


def _result(name: str, fields: object) -> call_codec.RecordedResult:
    if not isinstance(fields, dict):
        raise FormatError(f"host: {name}: must be an object", reason="wrong_type")
    return result_from_json(fields, call_codec.TEXT, call_codec.CodecState())


T = TypeVar("T")


class RecordedCalls:
    """Base class of a recording: the state that its methods share."""

    _handler: Recorder | Replayer
    _backend: Any  # the recorded backend; None in a replay, which never calls it
    _host: Any  # source of the app's description, or None
    _opening: Lock  # held while the journal is opened
    _journal: "RecordedLog | None" = None

    def _call(self, name: str, *values: object) -> object:
        """Check the arguments of the method `name`, a key of `CALLS`; record or replay the call.

        `values` are all arguments, in the order of the method's parameters.

        Raises:
            UsageError: If an argument is invalid.
            BackendError: If the call was not recorded.
            AttestKitError: If the recorded backend fails; a replay raises the recorded error.
        """
        arguments: dict[str, call_codec.Scalar] = {}
        for parameter, value in zip(call_codec.CALLS[name].parameters, values, strict=True):
            _CHECKS[parameter](value)
            arguments[parameter] = value.hex() if isinstance(value, bytes) else cast("Any", value)
        return self._handler.call(name, arguments, lambda: getattr(self._backend, name)(*values))


def _forwarded(name: str) -> Callable[..., Any]:
    """Return the method `name` of a recording; its arguments are passed by position or name."""
    parameters = call_codec.CALLS[name].parameters

    def method(self: RecordedCalls, *values: object, **named: object) -> object:
        rest = [named.pop(parameter) for parameter in parameters[len(values) :]]
        if named:
            raise TypeError(f"{name}: unexpected arguments: {', '.join(named)}")
        return self._call(name, *values, *rest)

    return method


def _check_register(register: object) -> None:
    if type(register) is not int or not 0 <= register <= 3:
        raise UsageError(f"register: must be 0 to 3, not {register!r}", reason="out_of_range")


def _check_type(kind: type) -> Callable[[object], None]:
    def check(value: object) -> None:
        if not isinstance(value, kind):
            text = "event: must have a str as its name and bytes as its payload"
            raise UsageError(text, reason="wrong_type")

    return check


_CHECKS: Final[dict[str, Callable[[object], None]]] = {
    "report_data": lambda value: base.check_bytes("report_data", value, 64),
    "digest": lambda value: base.check_bytes("digest", value, 48),
    "register": _check_register,
    "name": _check_type(str),
    "payload": _check_type(bytes),
}


# -- the journal -------------------------------------------------------------------------------


def _open_journal(self: RecordedCalls, version: int | None = None) -> RuntimeLog:
    """Return the log of runtime events; every call returns the same object.

    `version` is how event digests are computed, 1 or 2; None: as the backend chooses. Only the
    first call uses it.
    """
    with self._opening:
        if self._journal is None:
            log = self._handler.call(
                "open_journal", {"version": version}, lambda: self._backend.open_journal(version)
            )
            self._journal = RecordedLog(self._handler, log)
        return self._journal


def _reset(self: RecordedCalls) -> None:
    """Reboot; in a replay, BackendError unless a reboot is the next recorded state change."""
    with self._opening:
        if self._journal is None:  # and `_opening` is held, so it stays closed
            self._call("reset")
            return
    # The backend takes the journal's lock, which comes before the handler's lock.
    with self._journal.locked():
        self._call("reset")


class RecordedLog:
    """A `RuntimeLog` whose calls are recorded or, if `log` is None, replayed.

    A thread takes the lock of the journal before the lock of the handler.
    """

    path = ""  # the texts of recorded errors must not depend on the path of the log

    def __init__(self, handler: Recorder | Replayer, log: RuntimeLog | None) -> None:
        self._handler = handler
        self._log: Any = log
        self._turns = FifoLock()  # the lock of a replayed log

    @property
    def version(self) -> int:
        """How digests of this boot's events are computed: 1 or 2, see `runtime_preimage`."""
        return self._handler.call("journal_version", {}, lambda: cast("int", self._log.version))

    def locked(self) -> AbstractContextManager[None]:
        """Lock the journal. A context manager, re-entrant within a thread."""
        lock = self._turns if self._log is None else self._log.locked()
        return cast("AbstractContextManager[None]", _Locked(self._handler, lock))

    def events(self) -> tuple[Event, ...]:
        """Return the events of this boot; the same tuple until an event is added.

        Raises:
            BackendError: If a replay has no such call.
            AttestKitError: As for the recorded log.
        """
        with self.locked():
            return self._handler.call("journal_events", {}, self._read_events)

    def _read_events(self) -> tuple[Event, ...]:
        return cast("tuple[Event, ...]", self._log.events())

    def emit(self, event: Event) -> None:
        """Extend the log's register by the event and append it to the log, atomically.

        Raises:
            UsageError: If `event` is not an Event.
            BackendError: If this event is not the next state change of a replay.
            AttestKitError: As for the recorded log.
        """
        if not isinstance(event, Event):
            raise wrong_type("event", "an Event, such as of runtime_event", event)
        with self.locked():
            self._handler.call(
                "journal_emit", call_codec.event_to_json(event), lambda: self._log.emit(event)
            )

    def close(self) -> None:
        """Close the log of the recorded backend; no effect in a replay."""
        if self._log is not None:
            self._log.close()


class _LockExit:
    """Descriptor by which `_Locked.__exit__` is the `__exit__` of its lock.

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
        self, handler: Recorder | Replayer, lock: "AbstractContextManager[object, bool | None]"
    ) -> None:
        self._handler = handler
        self.lock = lock

    def __enter__(self) -> None:
        self._handler.lock_journal(self.lock.__enter__)


# -- the abilities -----------------------------------------------------------------------------


def _keys(self: RecordedCalls) -> KeyDeriver:
    """Return the agent's keys, which are not recorded; in a replay they raise UnsupportedError."""
    return UnavailableKeys() if self._backend is None else cast("KeyDeriver", self._backend.keys)


def _of_host(name: str) -> property:
    """Return a property that has the value of the attribute `name` of the recorded host."""
    return property(lambda self: getattr(self._host, name))


class Ability(NamedTuple):
    """A protocol of backends: how to detect it, and the members that give it to a recording.

    `members` has methods and properties by name.
    """

    detect: Callable[[base.Backend], bool]
    members: Mapping[str, object]


def _forward(*names: str) -> dict[str, object]:
    return {name: _forwarded(name) for name in names}


ABILITIES: Final = {
    "registers": Ability(
        lambda backend: isinstance(backend, base.RegisterExtender),
        {**_forward("read_rtmr", "extend_rtmr"), "open_journal": _open_journal},
    ),
    "snp": Ability(
        lambda backend: isinstance(backend, base.SnpReporter), _forward("get_snp_report")
    ),
    "collector": Ability(
        lambda backend: isinstance(backend, base.EvidenceCollector),
        _forward("collect_evidence", "read_attestation_key"),
    ),
    "event_pcr": Ability(
        lambda backend: isinstance(backend, base.EventPcr),
        {**_forward("read_event_pcr"), "open_journal": _open_journal, "event_pcr": EVENT_PCR},
    ),
    "agent": Ability(
        lambda backend: isinstance(backend, base.GuestAgent),
        {
            **_forward("get_quote_response", "emit_event", "read_app_compose"),
            "keys": property(_keys),
        },
    ),
    "host": Ability(
        base.hosts_app, {name: _of_host(name) for name in ("app_compose", "vm_config", "app_keys")}
    ),
    "reset": Ability(lambda backend: hasattr(backend, "reset"), {"reset": _reset}),
}
