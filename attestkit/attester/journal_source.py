"""Evidence of a machine whose runtime events extend a register, and are logged in a journal."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Final, NamedTuple

from attestkit.attestation import MAX_SIZE
from attestkit.attestation.wire.scale import MAX_ITEMS
from attestkit.attester.evidence_source import EvidenceSource, HostApp, SourceContext, check_name
from attestkit.errors import AttestKitError, JournalError, UnsupportedError, UsageError
from attestkit.event_log import Event
from attestkit.event_log.journal_protocols import RuntimeLog, size_in_evidence
from attestkit.event_log.runtime_events import runtime_event

# Bytes of evidence reserved for the quote or the document, which some encodings write as decimal
# numbers.
_SIGNED_RESERVE: Final = 1 << 18


class EventRegister(NamedTuple):
    """The register of SHA-384 that runtime events extend, and their journal."""

    name: str
    read: Callable[[], bytes]
    open_journal: Callable[[int | None], RuntimeLog]  # argument: the version of digests


class LoggedSize(NamedTuple):
    """Contents of evidence without a further event: bytes of firmware and runtime events."""

    firmware: int
    events: int
    total: int  # number of all events


class JournalSource(EvidenceSource):
    """A source whose backend has a register for runtime events; None: it has no registers."""

    def __init__(
        self, context: SourceContext, app: HostApp, register: EventRegister | None
    ) -> None:
        super().__init__(context, app)
        self._register = register
        self._journal: RuntimeLog | None = None

    def emit_event(self, name: str, payload: bytes) -> Event:
        """Extend the register by an event and append it to the log, atomically."""
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
        """Measure the app as a dstack guest does at boot, unless that has been done."""
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
        """Emit those of the first events of this boot that the log does not have yet."""
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
        """Raise JournalError if events cannot be emitted after those of this boot."""

    def _logged_size(self, events: tuple[Event, ...]) -> LoggedSize:
        """Return the size of the log; its runtime events are `events`."""
        return LoggedSize(0, sum(map(size_in_evidence, events)), len(events))

    def _check_room(self, event: Event, before: tuple[Event, ...]) -> None:
        """Raise an error if the event would make evidence exceed its limits."""
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
        """Return the journal, with its lock and that of the device held."""
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
        """Wait for calls in progress and block further ones."""
        with ExitStack() as stack:
            if self._journal is not None:
                with suppress(AttestKitError):  # close even if the log cannot be locked
                    stack.enter_context(self._journal.locked())
            stack.enter_context(self._device)
            yield
