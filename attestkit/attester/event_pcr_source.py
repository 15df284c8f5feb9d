"""Evidence of a machine whose runtime events are measured in a PCR of its TPM (AWS NitroTPM)."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import Final, Protocol

from attestkit.attestation import MAX_SIZE, Attestation
from attestkit.attestation.wire.evidence_parts import Evidence, RuntimeEvent, Stack
from attestkit.attestation.wire.scale import MAX_ITEMS
from attestkit.attester.evidence_source import (
    HostApp,
    SourceContext,
    check_name,
    parse_response,
)
from attestkit.attester.vtpm_source import VtpmSource
from attestkit.backends.base import Backend, EventPcr, EvidenceCollector
from attestkit.errors import (
    AttestKitError,
    BackendError,
    JournalError,
    ReplayError,
    UnsupportedError,
    UsageError,
)
from attestkit.event_log import Event, EventLog
from attestkit.event_log.journal_protocols import (
    ZERO,
    RuntimeLog,
    mismatch_remedy,
    replay_from,
    size_in_evidence,
)
from attestkit.event_log.runtime_events import runtime_event

# Bytes of evidence reserved for the document, which some encodings write as decimal numbers.
_DOCUMENT_RESERVE: Final = 1 << 18


class EventPcrBackend(Backend, EvidenceCollector, EventPcr, Protocol):
    """A Backend that is an EvidenceCollector with a PCR for runtime events."""


class EventPcrSource(VtpmSource):
    """Evidence from a backend that is an `EventPcr`: its document and the runtime events.

    The journal of the events is the one of TDs; its register is the PCR.
    """

    def __init__(self, backend: EventPcrBackend, context: SourceContext, app: HostApp) -> None:
        super().__init__(backend, backend, context, app)
        self._pcr: EventPcr = backend
        self._journal: RuntimeLog | None = None

    @property
    def register_name(self) -> str:
        """Name of the PCR, for messages."""
        return f"PCR {self._pcr.event_pcr}"

    def evidence(self, report_data: bytes) -> Attestation:
        """Return evidence over exactly 64 bytes, with the events that replay to the PCR.

        Without events and configuration it is the document alone, whatever the PCR is: shim
        measures its keys there, too.
        """
        config = self.app.vm_config
        with self._open_journal().locked(), self._device:
            self._check_usable()
            platform = self._collector.collect_evidence(report_data)
            events = self._open_journal().events()
        listed = tuple([RuntimeEvent(one.name, one.payload, one.version) for one in events])
        found = Attestation(Evidence(platform, Stack(report_data, listed, config)))
        self._check(found, events)
        return found

    def _check(self, found: Attestation, events: tuple[Event, ...]) -> None:
        """Check that the log replays to the document's PCR, as a verifier does.

        No log belongs to a bare document; it must have the PCR nevertheless.
        """
        document = parse_response(
            "the platform returned a malformed document", lambda: found.nitro_document
        )
        if document is None:
            message = "the platform returned no document with the PCR of its events"
            raise BackendError(message, reason="malformed_response")
        quoted = parse_response(
            "the platform returned a document without its events' PCR",
            lambda: document.pcr(self._pcr.event_pcr),
        )
        replayed = replay_from(ZERO, events)
        if quoted != replayed and not found.is_bare:
            path = "" if self._journal is None else self._journal.path
            place = f"; the events of {self.register_name} belong in {path}" if path else ""
            raise ReplayError(
                f"{self.register_name} is {quoted.hex()}, but the runtime log replays to "
                f"{replayed.hex()}{place}; {mismatch_remedy(path)}",
                reason="pcr_mismatch",
                expected=replayed,
                actual=quoted,
            )

    def event_log(self) -> EventLog:
        """Return the log of the runtime events."""
        with self._open_journal().locked(), self._device:
            self._check_usable()
            return EventLog(self._open_journal().events())

    def emit_event(self, name: str, payload: bytes) -> Event:
        """Extend the PCR by an event and append it to the log, atomically."""
        check_name(name)
        with self._open_journal().locked(), self._device:
            self._check_usable()
            journal = self._open_journal()
            before = journal.events()
            self._check_start(before)
            event = runtime_event(name, payload, journal.version)
            self._check_room(event, before)
            journal.emit(event)
            return event

    def _check_start(self, events: tuple[Event, ...]) -> None:
        """Raise JournalError if the PCR was extended before the first event.

        Verifiers replay the events from zero (vtpm.md, section 9.3).
        """
        if not events and (found := self._pcr.read_event_pcr()) != ZERO:
            name = self.register_name
            raise JournalError(
                f"{name}: extended to {found.hex()} before the first event, as by shim, which "
                f"measures its keys there; boot without shim to emit events, or reboot if another "
                f"program has extended {name}",
                reason="mismatch",
                expected=ZERO,
                actual=found,
            )

    def measure_app(self, app_id: bytes | None) -> tuple[Event, ...]:
        """Measure the app as a dstack guest does at boot, unless that has been done."""
        from attestkit.dstack.boot_sequence import measure_app  # lazy: rarely needed
        from attestkit.dstack.host_shared_folder import HostShared

        host = self.app.host
        if not isinstance(host, HostShared):
            raise UnsupportedError(
                "measure_app: not available with this backend, which measures the app at boot",
                reason="feature",
            )
        events = host.boot_events(app_id)
        with self._open_journal().locked(), self._device:
            self._check_usable()
            journal = self._open_journal()
            self._check_start(journal.events())
            measure_app(journal, self._pcr.read_event_pcr, events, self.register_name)
        return events

    def runtime_events(self) -> tuple[Event, ...]:
        """Return the runtime events of this boot."""
        with self._open_journal().locked(), self._device:
            self._check_usable()
            return self._open_journal().events()

    def continue_boot(self, events: tuple[Event, ...]) -> None:
        """Emit those of the first events of this boot that the log does not have yet."""
        from attestkit.dstack.boot_sequence import continue_boot  # lazy: rarely needed

        with self._open_journal().locked(), self._device:
            self._check_usable()
            journal = self._open_journal()
            self._check_start(journal.events())
            continue_boot(journal, self._pcr.read_event_pcr, events, self.register_name)

    def _check_room(self, event: Event, before: tuple[Event, ...]) -> None:
        """Raise an error if the event would make evidence exceed its limits."""
        config = len(self.app.vm_config.encode(errors="surrogatepass"))
        room = MAX_SIZE - _DOCUMENT_RESERVE - config
        size = size_in_evidence(event)
        if size > room:
            raise UsageError(
                f"event: too large, its payload of {len(event.payload)} bytes takes {size} bytes "
                f"of evidence, which is limited to {MAX_SIZE}",
                reason="too_large",
            )
        if sum(map(size_in_evidence, before)) + size > room or len(before) >= MAX_ITEMS:
            raise JournalError(
                f"the runtime log is full: evidence is limited to {MAX_SIZE} bytes and "
                f"{MAX_ITEMS} events; reboot to empty the log",
                reason="too_large",
            )

    def _open_journal(self) -> RuntimeLog:
        if self._journal is None:
            version = self.app.event_version
            with self._device:
                self._check_usable()
                self._journal = self._pcr.open_journal(version)
        return self._journal

    def exclusive(self) -> AbstractContextManager[None]:
        """Wait for calls in progress and block further ones."""
        return self._exclude_others()

    @contextmanager
    def _exclude_others(self) -> Iterator[None]:
        with ExitStack() as stack:
            if self._journal is not None:
                with suppress(AttestKitError):  # close even if the log cannot be locked
                    stack.enter_context(self._journal.locked())
            stack.enter_context(self._device)
            yield
