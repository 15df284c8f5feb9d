"""Base classes of the sources of an Attester's evidence, and evidence of GPUs.

Runtime events extend a register of the machine, and are logged in a journal.
"""

import hmac
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeVar, runtime_checkable

from attestkit._system.fifo_lock import FifoLock
from attestkit.attestation import MAX_SIZE, AppInfo, Attestation
from attestkit.attestation.wire.evidence_parts import SevSnp
from attestkit.attestation.wire.scale import MAX_ITEMS
from attestkit.backends.base import AppHost, Backend, GpuCollector
from attestkit.dstack.app_compose import AppCompose
from attestkit.errors import (
    AttestKitError,
    BackendError,
    ConfigError,
    FormatError,
    JournalError,
    UnsupportedError,
    UsageError,
)
from attestkit.event_log import Event, EventLog, Rtmrs
from attestkit.event_log.journal_protocols import RuntimeLog, size_in_evidence
from attestkit.event_log.runtime_events import RESERVED_NAMES, runtime_event
from attestkit.keys import AppKeys, KeyDeriver, LocalKeys
from attestkit.quote import Quote
from attestkit.report_data import ReportData

if TYPE_CHECKING:
    from attestkit.gpu.evidence import GpuEvidence

T = TypeVar("T")

NO_REGISTERS: Final = "this platform has no run-time registers that a program can extend"
NO_APP: Final = "this backend has no app: neither an app-compose nor keys"


class SourceContext(NamedTuple):
    """Lock and state check that a source shares with its Attester."""

    device: FifoLock  # held during every call of the backend; lock order: the journal's lock first
    check_usable: Callable[[], None]  # raises UsageError; called again with the lock held


class App(Protocol):
    """Description and keys of the app; a property raises UnsupportedError if they are unknown."""

    @property
    def app_compose(self) -> AppCompose:
        """The app's compose file."""
        ...

    @property
    def vm_config(self) -> str:
        """The configuration of the VM as JSON; empty if unknown."""
        ...

    @property
    def keys(self) -> KeyDeriver:
        """Source of the app's keys, as in `Attester.keys`."""
        ...


class EvidenceSource:
    """A thread-safe source of evidence from one backend; it raises the errors of `Attester`.

    Methods that a subclass does not define raise UnsupportedError.
    """

    has_quotes = False  # whether evidence contains a TDX quote
    no_quote = "evidence of this platform is more than a TDX quote; use attest()"
    no_registers = NO_REGISTERS

    def __init__(self, context: SourceContext, app: "HostApp") -> None:
        self._app = app
        self._device, self._check_usable = context

    @property
    def app(self) -> App:
        """Source of the app's description and keys."""
        return self._app

    def get_quote(self, report_data: bytes) -> Quote:
        """Return a quote over 64 bytes of report data."""
        return self.quote_and_log(report_data)[0]

    def quote_and_log(self, report_data: bytes) -> tuple[Quote, EventLog]:
        """Return a quote over 64 bytes of report data, and the event log that replays to it."""
        del report_data
        raise UnsupportedError(self.no_quote, reason="no_quote")

    def evidence(self, report_data: bytes) -> Attestation:
        """Return evidence over 64 bytes of report data, whose parts are checked for consistency."""
        raise NotImplementedError  # each platform has its own

    def bind_nonce(self, nonce: bytes) -> bytes:
        """Return the report data, 64 bytes, for a nonce of 8 to 64 bytes."""
        return ReportData.for_nonce(nonce)

    def bind_gpu(self, bound: bytes) -> bytes:
        """Return the report data for evidence with GPUs, 64 bytes.

        `bound` is the result of `ReportData.for_nonce_and_gpu`. A subclass for a TPM returns a hash
        of `bound` and the TPM's key.
        """
        return bound

    def event_log(self) -> EventLog:
        """Return the current event log; empty if the platform has none."""
        return EventLog()

    def registers(self) -> Rtmrs:
        """Return RTMR0 to RTMR3."""
        raise UnsupportedError(self.no_registers, reason="no_registers")

    def emit_event(self, name: str, payload: bytes) -> Event:
        """Extend RTMR3 by an event of this name and payload, and log it, atomically."""
        del name, payload
        raise UnsupportedError(self.no_registers, reason="no_registers")

    def measure_app(self, app_id: bytes | None) -> tuple[Event, ...]:
        """Measure the app as a dstack guest at boot, unless that was done; return the events.

        `app_id` has 20 bytes; None takes the first 20 bytes of the compose hash.
        """
        del app_id
        raise UnsupportedError(self.no_registers, reason="no_registers")

    def exclusive(self) -> AbstractContextManager[None]:
        """Context manager: wait for calls in progress, and block further ones until exit."""
        return self._device


@runtime_checkable
class BootSource(Protocol):
    """A source whose guest can be booted in two phases; see `attestkit.kms.boot`."""

    def runtime_events(self) -> tuple[Event, ...]:
        """Return the runtime events of this boot.

        Raises:
            UnsupportedError: If the platform has no run-time registers.
            JournalError: If the log cannot be read.
        """
        ...

    def continue_boot(self, events: tuple[Event, ...]) -> None:
        """Emit those of `events`, the first ones of this boot, that the log lacks, under its lock.

        Raises:
            UnsupportedError: If the platform has no run-time registers.
            JournalError: If the log has events other than these, or does not match the register.
            BackendError: If the platform rejects an extend; earlier events remain.
        """


class HostApp:
    """Description and keys of the app from an `AppHost`; unknown if `host` is None."""

    def __init__(self, host: AppHost | None) -> None:
        self.host = host
        self._keys: KeyDeriver | None = None
        self._app_keys: AppKeys | None = None  # those of `_keys`

    def _require_host(self) -> AppHost:
        if self.host is None:
            raise UnsupportedError(NO_APP, reason="no_app")
        return self.host

    @property
    def app_compose(self) -> AppCompose:
        """The app's compose file."""
        return self._require_host().app_compose

    @property
    def vm_config(self) -> str:
        """The configuration of the VM as JSON; empty if unknown."""
        return "" if self.host is None else self.host.vm_config

    @property
    def keys(self) -> KeyDeriver:
        """The app's keys."""
        found = self._require_host().app_keys
        if self._keys is None or self._app_keys is not found:  # a reboot with a KMS replaces them
            self._app_keys, self._keys = found, LocalKeys(found)
        return self._keys

    @property
    def event_version(self) -> int | None:
        """Version of the event digests, 1 or 2, from the app-compose; None without app-compose.

        Raises ConfigError if the app-compose is invalid.
        """
        try:
            return self._require_host().app_compose.event_log_version
        except UnsupportedError:
            return None


def app_info(evidence: Attestation) -> AppInfo:
    """Return the identity of the app in `evidence`, not verified.

    Raises:
        UnsupportedError: If evidence of an SEV-SNP guest has no mr_config document.
        FormatError: If a part of the evidence is malformed.
        ReplayError: If HOST_DATA is not the hash of the mr_config document, or the events do not
            replay to PCR 14 of a NitroTPM.
    """
    platform = evidence.evidence.platform
    if isinstance(platform, SevSnp) and not platform.mr_config:
        raise UnsupportedError(
            "no mr_config document, which identifies the app on SEV-SNP; the host has to put it "
            "into .sys-config.json in the folder that it shares",
            reason="no_app",
        )
    return evidence.app_info


def parse_response(problem: str, parse: Callable[..., T], *data: bytes) -> T:
    """Return `parse(*data)`, the parsed response of a platform.

    Args:
        problem: Beginning of the error's text; a colon and the text of the parser's error follow.
        parse: Parser; called with `data` as positional arguments.
        data: Parts of the response.

    Raises:
        BackendError: If `parse` raises FormatError, ConfigError or UsageError.
    """
    try:
        return parse(*data)
    except (FormatError, ConfigError, UsageError) as error:
        raise BackendError(f"{problem}: {error}", reason="malformed_response") from error


def check_report_data(found: bytes, requested: bytes, problem: str) -> None:
    """Raise BackendError with text `problem` unless report data `found` are those `requested`."""
    if not hmac.compare_digest(found, requested):
        raise BackendError(problem, reason="wrong_report_data")


def check_name(name: object) -> None:
    """Raise UsageError if the event name is empty or one of `RESERVED_NAMES`.

    Another type than `str` is not an error here.
    """
    if name == "":
        raise UsageError("event name: must not be empty", reason="missing")
    if isinstance(name, str) and name in RESERVED_NAMES:
        raise UsageError(f"event name: {name!r} is reserved for boot events", reason="reserved")


def collect_gpu_evidence(backend: Backend, nonce: bytes) -> "GpuEvidence":
    """Return evidence of all GPUs and switches over a nonce of 32 bytes.

    It is requested from the backend if that is a `GpuCollector`, else from NVIDIA's driver. A
    `GpuModeWarning` is issued if the driver's GPUs are in DevTools mode, without protection.

    Raises:
        UnsupportedError: If the backend is a simulator without GPUs.
        BackendError: If the driver is missing, or returns an error or malformed evidence.
    """
    if isinstance(backend, GpuCollector):
        return backend.gpu_evidence(nonce)
    if backend.simulated:
        message = f"GPUs: the backend {backend.name} has none; open the simulator with gpus=1"
        raise UnsupportedError(message, reason="feature")
    from attestkit.gpu import collect  # lazy: loads NVIDIA's library

    return collect(nonce)


# Bytes of evidence reserved for the quote or the document, which some encodings write as decimal
# numbers.
_SIGNED_RESERVE: Final = 1 << 18


class EventRegister(NamedTuple):
    """The register (48 bytes, SHA-384) that runtime events extend: name, reader and journal."""

    name: str  # such as "RTMR3"
    read: Callable[[], bytes]  # returns its value, 48 bytes
    open_journal: Callable[[int | None], RuntimeLog]  # argument: version of the event digests


class LoggedSize(NamedTuple):
    """Size of the event log in evidence before an event is added: bytes, and number of events."""

    firmware: int  # bytes of the firmware's events
    events: int  # bytes of the runtime events
    total: int  # number of all events


class JournalSource(EvidenceSource):
    """A source with a journal of runtime events; if `register` is None, it has no events."""

    def __init__(
        self, context: SourceContext, app: HostApp, register: EventRegister | None
    ) -> None:
        super().__init__(context, app)
        self._register = register
        self._journal: RuntimeLog | None = None

    def emit_event(self, name: str, payload: bytes) -> Event:
        """Extend the register by an event with this name and payload, and log it, atomically."""
        self._require_register()
        check_name(name)
        with self._locked_journal() as journal:
            before = journal.events()
            self._check_start(before)
            event = runtime_event(name, payload, journal.version)
            self._check_room(event, before)
            journal.emit(event)
            return event

    def measure_app(self, app_id: bytes | None) -> tuple[Event, ...]:
        """Measure the app as a dstack guest at boot, unless that was done; return the events.

        `app_id` has 20 bytes; None takes the first 20 bytes of the compose hash.
        """
        from attestkit.dstack.boot_sequence import measure_app  # lazy: rarely needed
        from attestkit.dstack.host_shared_folder import HostShared

        register, host = self._require_register(), self._app.host
        if not isinstance(host, HostShared):
            raise UnsupportedError(
                "measure_app: not available with this backend, which measures the app at boot",
                reason="feature",
            )
        events = host.boot_events(app_id)
        with self._locked_journal() as journal:
            self._check_start(journal.events())
            measure_app(journal, register.read, events, register.name)
        return events

    def runtime_events(self) -> tuple[Event, ...]:
        """Return the runtime events of this boot."""
        self._require_register()
        with self._locked_journal() as journal:
            return journal.events()

    def continue_boot(self, events: tuple[Event, ...]) -> None:
        """Extend the register by those of `events` that the log lacks, and log them.

        The log must begin with the first of them, in their order; errors as in `BootSource`.
        """
        from attestkit.dstack.boot_sequence import continue_boot  # lazy: rarely needed

        register = self._require_register()
        with self._locked_journal() as journal:
            self._check_start(journal.events())
            continue_boot(journal, register.read, events, register.name)

    def _require_register(self) -> EventRegister:
        if self._register is None:
            raise UnsupportedError(self.no_registers, reason="no_registers")
        return self._register

    def _check_start(self, events: tuple[Event, ...]) -> None:
        """Raise JournalError if no event may follow `events`, those of this boot."""

    def _logged_size(self, events: tuple[Event, ...]) -> LoggedSize:
        """Return the size that the event log takes in evidence with the runtime events `events`."""
        return LoggedSize(0, sum(map(size_in_evidence, events)), len(events))

    def _check_room(self, event: Event, before: tuple[Event, ...]) -> None:
        """Raise an error if `event`, after the events `before`, makes evidence exceed its limits.

        Raises:
            UsageError: If the event alone is too large.
            JournalError: If the log is full.
        """
        logged = self._logged_size(before)
        config = len(self._app.vm_config.encode(errors="surrogatepass"))
        room = MAX_SIZE - _SIGNED_RESERVE - config - logged.firmware
        size = size_in_evidence(event)
        if size > room:
            raise UsageError(
                f"event: too large, its payload of {len(event.payload)} bytes takes {size} bytes "
                f"of evidence, which is limited to {MAX_SIZE}",
                reason="too_large",
            )
        if logged.events + size > room or logged.total >= MAX_ITEMS:
            raise JournalError(
                f"the runtime log is full: evidence is limited to {MAX_SIZE} bytes and "
                f"{MAX_ITEMS} events; reboot to empty the log",
                reason="too_large",
            )

    @contextmanager
    def _locked_journal(self) -> Iterator[RuntimeLog]:
        """Context manager: yield the journal, with its lock and the device lock held."""
        with self._open_journal().locked(), self._device:
            self._check_usable()  # again, with the locks held
            yield self._open_journal()

    def _open_journal(self) -> RuntimeLog:
        if self._journal is None:
            version = self._app.event_version
            with self._device:
                self._check_usable()
                self._journal = self._require_register().open_journal(version)
        return self._journal

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Context manager: wait for calls in progress, and block further ones until exit."""
        with ExitStack() as stack:
            if self._journal is not None:
                with suppress(AttestKitError):  # close even if the log cannot be locked
                    stack.enter_context(self._journal.locked())
            stack.enter_context(self._device)
            yield
