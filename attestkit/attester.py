"""Attester: the TEE that this program runs in, making evidence about itself.

It owns one backend and takes turns on it. What a quote says and what the event log says always
agree: both are read under one lock, and compared before they leave.
"""

import os
import threading
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Final, NoReturn, cast, final

from attestkit import backends
from attestkit.app_compose import AppCompose
from attestkit.attestation import AppInfo, Attestation
from attestkit.backends.base import AppHost, Backend, RegisterExtender
from attestkit.errors import BackendError, FormatError, UnsupportedError, UsageError
from attestkit.event_log import Event, EventLog, Rtmrs
from attestkit.event_log.journal import RuntimeLog
from attestkit.event_log.runtime import RESERVED_NAMES, runtime_event
from attestkit.keys import KeyDeriver, LocalKeys
from attestkit.quote import Quote
from attestkit.report_data import ReportData

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Attester", "make_backend", "open"]

_NO_REGISTERS: Final = "this platform has no run-time registers that a program can extend"
_NO_APP: Final = "this backend knows no app: it has neither its description nor its keys"


def open(backend: str | Backend | None = None, **options: object) -> "Attester":
    """Open the TEE that this program runs in.

    Args:
        backend: The name of a backend, an object that is one, or None: then what
            `$ATTESTKIT_BACKEND` names, else the first that can run here, never the simulator.
        options: What the backend takes; for the simulator `seed`, `quote_version`, `state_dir`,
            `app_compose`, `app_keys`, `vm_config` and `app_id`, see its class.

    Raises:
        BackendUnavailableError: It cannot run here; or none can, and the text lists what was seen.
        BackendBusyError: Somebody else has the device or the state folder.
        UsageError: No backend is called so, or it does not take these options.
        BackendError: Anything else that went wrong.
    """
    if backend is None or isinstance(backend, str):
        return Attester(make_backend(backend, options))
    if options:
        raise UsageError("a backend that is an object already takes no options")
    return Attester(backend)


def make_backend(name: str | None, options: dict[str, object]) -> Backend:
    """Return the backend called `name`, or what `open` takes for None."""
    name = name or backends.named_by_environment()
    cls = backends.detect() if name is None else backends.load(name)
    if name is not None:
        cls.probe()  # what was detected has been asked already
    if options:
        from inspect import signature  # slow to import, so only whoever has options pays

        try:
            signature(cls).bind(**options)
        except TypeError as error:
            raise UsageError(f"backend {cls.name}: {error}") from error
    return cast("Callable[..., Backend]", cls)(**options)


@final
class Attester:
    """One TEE, open. A context manager; it survives neither a fork nor pickling.

    Threads may share it. Every method that asks the platform can raise BackendError, and UsageError
    once it is closed.
    """

    def __init__(self, backend: Backend) -> None:
        """Take `backend` over; `close` closes it.

        Raises:
            UsageError: It is no backend.
        """
        if isinstance(backend, type) or not isinstance(backend, Backend):
            raise UsageError(f"{backend!r} is no backend: see attestkit.backends.base")
        self._backend = backend
        self._extender = backend if isinstance(backend, RegisterExtender) else None
        self._host = backend if isinstance(backend, AppHost) else None
        self._device = threading.RLock()  # always taken inside the journal's lock, never outside
        self._journal: RuntimeLog | None = None
        self._keys: KeyDeriver | None = None
        self._process = os.getpid()
        self._closed = False
        # What depends on the log alone is kept until the log grows.
        self._area: bytes | None = None
        self._firmware = EventLog()
        self._events: tuple[Event, ...] = ()
        self._log = self._firmware
        self._agreed: Rtmrs | None = None  # registers that `_log` was found to replay to

    # -- what it is ----------------------------------------------------------------------------

    @property
    def backend(self) -> Backend:
        """The backend, for what only it can do; take care not to disturb this object's turn."""
        return self._backend

    @property
    def simulated(self) -> bool:
        """True if nothing that this TEE says is backed by hardware."""
        return self._backend.simulated

    @property
    def blocking(self) -> bool:
        """True if calls wait for a device, so that an event loop should make them in a thread."""
        return self._backend.blocking

    @property
    def app_compose(self) -> AppCompose:
        """What the app was deployed from; UnsupportedError if the backend does not know."""
        return self._app().app_compose

    @property
    def vm_config(self) -> str:
        """The machine's configuration, JSON text; empty if the backend does not know."""
        return "" if self._host is None else self._host.vm_config

    @property
    def keys(self) -> KeyDeriver:
        """The app's keys; UnsupportedError if the backend has none."""
        self._check_usable()
        if self._keys is None:
            self._keys = LocalKeys(self._app().app_keys)
        return self._keys

    def _app(self) -> AppHost:
        if self._host is None:
            raise UnsupportedError(_NO_APP)
        return self._host

    # -- evidence ------------------------------------------------------------------------------

    def get_quote(self, report_data: bytes) -> Quote:
        """Return a quote over `report_data`, 0 to 64 bytes, filled up with zeros.

        Raises:
            UsageError: There are more than 64 bytes.
            BackendError: The platform gave no quote, or one that is malformed or over other bytes.
        """
        padded = ReportData.pad(report_data)
        self._check_usable()
        with self._device:
            return self._quote(padded)

    def attest(self, report_data: bytes) -> Attestation:
        """Return evidence over `report_data`, 0 to 64 bytes, filled up with zeros.

        Raises:
            UsageError: There are more than 64 bytes.
            ReplayError: The event log does not explain the registers in the quote.
            JournalError: The log of runtime events cannot be read.
            BackendError: As `get_quote`.
        """
        return self.evidence(ReportData.pad(report_data))

    def evidence(self, report_data: bytes) -> Attestation:
        """Return evidence over `report_data`, exactly 64 bytes that are meant as they are."""
        quote, log = self.quote_and_log(report_data)
        return Attestation.for_tdx(quote, log, config=self.vm_config)

    def quote_and_log(self, report_data: bytes) -> tuple[Quote, EventLog]:
        """Return a quote over `report_data`, exactly 64 bytes, and the log that replays to it.

        As long as no event is added, it is the same log object.

        Raises:
            UsageError: `report_data` is not 64 bytes.
            ReplayError: The log does not explain the registers in the quote.
            JournalError: The log of runtime events cannot be read.
            BackendError: As `get_quote`.
        """
        _check_whole(report_data)
        with self._history(), self._device:
            quote = self._quote(report_data)
            log = self._read_log()
            if quote.rtmrs != self._agreed:
                log.check(quote)
                self._agreed = quote.rtmrs
            return quote, log

    def event_log(self) -> EventLog:
        """Return the firmware's log with the runtime events behind it.

        Raises:
            JournalError: The log of runtime events cannot be read.
            BackendError: The firmware's log cannot be read, or is malformed.
        """
        with self._history(), self._device:
            return self._read_log()

    def info(self) -> AppInfo:
        """Return who the app is, as evidence made now would say; raises what `attest` does."""
        return self.evidence(bytes(64)).app_info()

    # -- registers -----------------------------------------------------------------------------

    def registers(self) -> Rtmrs:
        """Return RTMR0 to RTMR3, 48 bytes each; UnsupportedError where there are none."""
        self._check_usable()
        if self._extender is None:
            raise UnsupportedError(_NO_REGISTERS)
        with self._device:
            zero, one, two, three = map(self._extender.read_rtmr, range(4))
        return zero, one, two, three

    def emit_event(self, name: str, payload: bytes) -> Event:
        """Extend RTMR3 by an event and log it, or neither; it is in all later evidence.

        Args:
            name: Any text but none, and none of an agent's boot events. Where this boot's events
                are of version 1, whose digest joins name and payload by a colon, without a colon.
            payload: Any bytes.

        Raises:
            UsageError: The name or the payload cannot be.
            UnsupportedError: This platform has no such register.
            JournalError: The register and the log of runtime events disagree, or the log cannot be
                written.
            BackendError: The platform refused; nothing was changed.
        """
        if self._extender is None:
            self._check_usable()
            raise UnsupportedError(_NO_REGISTERS)
        _check_name(name)
        with self._history(), self._device:
            self._check_usable()
            journal = self._open_journal()
            event = runtime_event(name, payload, journal.version)
            journal.emit(event)
            return event

    # -- turns ---------------------------------------------------------------------------------

    def _history(self) -> AbstractContextManager[object]:
        """Keep the history as it is: nobody emits meanwhile, in this process or another."""
        self._check_usable()
        return self._device if self._extender is None else self._open_journal().locked()

    def _open_journal(self) -> RuntimeLog:
        if self._journal is None:
            with self._device:
                assert self._extender is not None
                self._journal = self._extender.open_journal()
        return self._journal

    def _quote(self, report_data: bytes) -> Quote:
        """Return a quote that is well formed and over what was asked."""
        self._check_usable()  # again, now that nobody can close it
        raw = self._backend.get_quote(report_data)
        try:
            quote = Quote.parse(raw)
        except (FormatError, UsageError) as error:
            raise BackendError(f"the platform gave a malformed quote: {error}") from error
        if quote.report_data != report_data:
            raise BackendError("the platform gave a quote over other report data than asked")
        return quote

    def _read_log(self) -> EventLog:
        """Return the log as it is now, the same object as long as it is the same log."""
        self._check_usable()  # again, now that nobody can close it
        area = self._backend.read_event_log()
        events = () if self._extender is None else self._open_journal().events()
        if area is not self._area and area != self._area:
            try:
                self._firmware = EventLog.from_ccel(area) if area else EventLog()
            except (FormatError, UsageError) as error:
                raise BackendError(f"the firmware's log is malformed: {error}") from error
            self._area, self._events, self._log = area, (), self._firmware
            self._agreed = None
        if events is not self._events:
            known = len(self._events)
            if events[:known] == self._events:
                self._log = self._log.with_runtime(events[known:])
            else:  # it was booted again
                self._log = self._firmware.with_runtime(events)
            self._events = events
            self._agreed = None
        return self._log

    def _check_usable(self) -> None:
        if self._process != os.getpid():
            raise UsageError("an Attester does not survive a fork: open another in this process")
        if self._closed:
            raise UsageError("this Attester is closed")

    # -- the end -------------------------------------------------------------------------------

    def close(self) -> None:
        """Let go of the backend. A second call does nothing."""
        if self._closed or self._process != os.getpid():
            return  # what a fork inherited is its parent's to close
        with self._device:
            self._closed = True
            self._backend.close()

    def __enter__(self) -> "Attester":
        self._check_usable()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Refuse: the other process would have to open the device itself."""
        raise UsageError("an Attester does not pickle: open another where it is needed")

    def __repr__(self) -> str:
        simulated = ", simulated" if self.simulated else ""
        return f"<Attester on {self._backend.name}{simulated}>"


def _check_name(name: object) -> None:
    if name == "":
        raise UsageError("event name cannot be empty")
    if isinstance(name, str) and name in RESERVED_NAMES:
        raise UsageError(f"event name {name!r} is reserved: only a boot measures it")


def _check_whole(report_data: object) -> None:
    if not isinstance(report_data, bytes) or len(report_data) != ReportData.SIZE:
        raise UsageError("report data is 64 bytes here")
