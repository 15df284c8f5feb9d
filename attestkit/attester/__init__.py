"""Attester: the TEE that this program runs in, making evidence about itself.

It owns one backend and takes turns on it, in the order of asking. What a quote says and what the
event log says always agree: both are read under one lock, and compared before they leave.
"""

import os
from types import TracebackType
from typing import TYPE_CHECKING, Generic, NoReturn, final

from attestkit import backends
from attestkit._system.fifo_lock import Turns
from attestkit.attestation import AppInfo, Attestation
from attestkit.attester.evidence_source import HostApp, Owner, Source, app_info
from attestkit.attester.tdx_source import TdSource
from attestkit.backends.base import (
    AppHost,
    Backend,
    GuestAgent,
    RegisterExtender,
    SnpReporter,
    hosts_app,
)
from attestkit.dstack.app_compose import AppCompose
from attestkit.errors import UsageError
from attestkit.event_log import Event, EventLog, Rtmrs
from attestkit.keys import KeyDeriver
from attestkit.quote import Quote
from attestkit.report_data import ReportData

if TYPE_CHECKING:
    from typing_extensions import TypeVar  # of type checkers, which have it always

    from attestkit.dstack.host_shared_folder import HostShared

    # `Attester` alone is an Attester[Backend].
    B_co = TypeVar("B_co", bound=Backend, default=Backend, covariant=True)
    B = TypeVar("B", bound=Backend)
else:
    from typing import TypeVar

    B_co = TypeVar("B_co", bound=Backend, covariant=True)

__all__ = ["Attester", "app_info"]


@final
class Attester(Generic[B_co]):
    """One TEE, open. A context manager; it survives neither a fork nor pickling.

    Threads may share it, and are served in the order they came. Every method that asks the platform
    can raise BackendError, and UsageError once it is closed.
    """

    def __init__(self, backend: B_co, host: AppHost | None = None) -> None:
        """Take `backend` over; `close` closes it.

        Args:
            backend: The TEE.
            host: Who knows the app, which stays the caller's. None: the backend if it does; on
                hardware otherwise the folder that the host shares with its guest, see
                `attestkit.dstack.host_shared_folder`.

        Raises:
            UsageError: It is no backend; or `$DSTACK_HOST_SHARED_DIR` is not an absolute path.
        """
        if not _is_backend(backend):
            raise UsageError(f"{backend!r} is no backend: see attestkit.backends.base")
        self._backend = backend
        self._device = Turns()  # always taken inside the journal's lock, never outside
        self._process = os.getpid()
        self._closed = False
        self._shared: HostShared | None = None  # opened here
        self._host = self._find_host() if host is None else host
        self._source = self._make_source()

    def _find_host(self) -> AppHost | None:
        """Return who knows the app: the backend, or the folder that a machine's host shares."""
        backend: Backend = self._backend
        if hosts_app(backend):
            return backend
        if backend.simulated or isinstance(backend, GuestAgent):
            return None
        from attestkit.dstack.host_shared_folder import (
            HostShared,  # only hardware has such a folder
        )

        self._shared = HostShared(backends.host_shared_folder())
        return self._shared

    def _make_source(self) -> Source:
        """Return what makes evidence with such a backend."""
        backend: Backend = self._backend
        owner = Owner(self._device, self._check_usable)
        if isinstance(backend, GuestAgent):
            from attestkit.attester.agent_source import (
                AgentSource,  # only who has an agent needs it
            )

            return AgentSource(backend, backend, owner)
        app = HostApp(self._host)
        if isinstance(backend, SnpReporter) and not isinstance(backend, RegisterExtender):
            from attestkit.attester.snp_source import SnpSource  # only who has SNP needs it

            return SnpSource(backend, owner, app)
        return TdSource(backend, owner, app)

    # -- what it is ----------------------------------------------------------------------------

    @property
    def backend(self) -> B_co:
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
    def has_quotes(self) -> bool:
        """False where evidence is no TDX quote, as on SEV-SNP: then ask for evidence alone."""
        return self._source.has_quotes

    @property
    def host(self) -> AppHost | None:
        """Who knows the app and has its keys; None if nobody does, or an agent keeps them."""
        return self._host

    @property
    def app_compose(self) -> AppCompose:
        """What the app was deployed from; an agent is asked for it, once.

        Raises:
            UnsupportedError: Nobody knows; the text says what is missing.
            ConfigError: The file is wrong.
        """
        return self._source.app.app_compose

    @property
    def vm_config(self) -> str:
        """The machine's configuration, JSON text; empty if nobody knows it.

        An agent is asked for it, once. Raises ConfigError if the host's file is wrong.
        """
        return self._source.app.vm_config

    @property
    def keys(self) -> KeyDeriver:
        """The app's keys.

        Raises:
            UnsupportedError: There are none; the text says what is missing.
            ConfigError: The file of keys is wrong.
        """
        self._check_usable()
        return self._source.app.keys

    # -- evidence ------------------------------------------------------------------------------

    def get_quote(self, report_data: bytes) -> Quote:
        """Return a TDX quote over `report_data`, 0 to 64 bytes, filled up with zeros.

        Raises:
            UsageError: There are more than 64 bytes.
            UnsupportedError: This platform has no TDX quotes; `attest` works.
            BackendError: The platform gave no quote, or one that is malformed or over other bytes.
        """
        padded = ReportData.pad(report_data)
        self._check_usable()
        return self._source.get_quote(padded)

    def attest(self, report_data: bytes) -> Attestation:
        """Return evidence over `report_data`, 0 to 64 bytes, filled up with zeros.

        Raises:
            UsageError: There are more than 64 bytes.
            ReplayError: The event log does not explain the registers in the quote; or the machine
                was not launched with the configuration that its host shows.
            JournalError: The log of runtime events cannot be read.
            ConfigError: A file of the host is wrong.
            BackendError: As `get_quote`.
        """
        return self.evidence(ReportData.pad(report_data))

    def evidence(self, report_data: bytes) -> Attestation:
        """Return evidence over `report_data`, exactly 64 bytes that are meant as they are."""
        _check_whole(report_data)
        self._check_usable()
        return self._source.evidence(report_data)

    def quote_and_log(self, report_data: bytes) -> tuple[Quote, EventLog]:
        """Return a quote over exactly 64 bytes, and the log that replays to its registers.

        As long as the log does not grow it is the same log object.

        Raises:
            UsageError: `report_data` is not 64 bytes.
            UnsupportedError: This platform has no TDX quotes; `attest` works.
            ReplayError: The log does not explain the registers in the quote.
            JournalError: The log of runtime events cannot be read.
            ConfigError: The app-compose that says how events are hashed is wrong.
            BackendError: As `get_quote`.
        """
        _check_whole(report_data)
        self._check_usable()
        return self._source.quote_and_log(report_data)

    def event_log(self) -> EventLog:
        """Return the firmware's log with the runtime events behind it; empty where there is none.

        Raises:
            JournalError: The log of runtime events cannot be read.
            ConfigError: The app-compose that says how events are hashed is wrong.
            BackendError: The firmware's log cannot be read, or is malformed.
        """
        self._check_usable()
        return self._source.event_log()

    def info(self) -> AppInfo:
        """Return who the app is, as evidence made now would say; raises what `attest` does.

        Raises:
            UnsupportedError: On SEV-SNP, if the host gave no document that says so.
            FormatError: That document, or the configuration in the evidence, is malformed.
        """
        return app_info(self.evidence(bytes(64)))

    # -- registers -----------------------------------------------------------------------------

    def registers(self) -> Rtmrs:
        """Return RTMR0 to RTMR3, 48 bytes each; UnsupportedError where there are none."""
        self._check_usable()
        return self._source.registers()

    def emit_event(self, name: str, payload: bytes) -> Event:
        """Extend RTMR3 by an event and log it, or neither; it is in all later evidence.

        Args:
            name: Any text but none, and none of an agent's boot events. Where this boot's events
                are of version 1, whose digest joins name and payload by a colon, without a colon.
            payload: Any bytes that evidence of at most 10 MiB has room for: it has them twice, six
                times where this boot's events are of version 2.

        Raises:
            UsageError: The name or the payload cannot be.
            UnsupportedError: This platform has no such register.
            JournalError: The register and the log of runtime events disagree, the log cannot be
                written, or it is full.
            BackendError: The platform refused; nothing was changed.
        """
        self._check_usable()
        return self._source.emit_event(name, payload)

    def measure_app(self, app_id: bytes | None = None) -> tuple[Event, ...]:
        """Measure the app into RTMR3 as a dstack guest does while it boots, and return the events.

        For hardware whose system does not do it. It must come before anything else is emitted; if
        this boot has measured exactly this already, nothing is done. The app is what the files say
        that the host shares.

        Args:
            app_id: 20 bytes. None: the head of the compose hash.

        Raises:
            UsageError: `app_id` is something else.
            UnsupportedError: This platform has no such register, or boots by itself; or the host
                shares no app-compose.
            ConfigError: A file of the host is wrong.
            JournalError: Something was emitted before; the text says what to do.
            BackendError: The platform refused. What was emitted until then stays.
        """
        self._check_usable()
        return self._source.measure_app(app_id)

    # -- the end -------------------------------------------------------------------------------

    def _check_usable(self) -> None:
        if self._process != os.getpid():
            raise UsageError("an Attester does not survive a fork: open another in this process")
        if self._closed:
            raise UsageError("this Attester is closed")

    def close(self) -> None:
        """Let go of the backend once calls on their way are done. A second call does nothing."""
        if self._closed or self._process != os.getpid():
            return  # what a fork inherited is its parent's to close
        with self._source.alone():
            self._close_once()

    def _close_once(self) -> None:
        if self._closed:  # by another thread, while this one waited
            return
        self._closed = True
        try:
            self._backend.close()
        finally:
            if self._shared is not None:
                self._shared.close()

    def __enter__(self) -> "Attester[B_co]":
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


def _is_backend(thing: object) -> bool:
    return isinstance(thing, Backend) and not isinstance(thing, type)


def _check_whole(report_data: object) -> None:
    if not isinstance(report_data, bytes) or len(report_data) != ReportData.SIZE:
        raise UsageError("report data is 64 bytes here")
