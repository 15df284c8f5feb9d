"""Evidence of a machine with a TPM: the TPM's quote, and evidence of its hardware if it has some.

Its logs are part of the evidence. Report data name the TPM's key beside the nonce. Beside a TD,
which measures events in its own register (Google's Confidential VMs), quotes of both and both logs
are read under one lock, and are compared as those of any TD. AWS's NitroTPM measures events in a
PCR. Elsewhere programs cannot emit events: PCRs that a program may extend have other uses, and no
journal of attestkit belongs to them.
"""

from typing import Protocol

from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import (
    Evidence,
    GcpTdx,
    Platform,
    RuntimeEvent,
    Stack,
)
from attestkit.attester.evidence_source import (
    EventRegister,
    EvidenceSource,
    HostApp,
    JournalSource,
    SourceContext,
    parse_response,
)
from attestkit.attester.tdx_source import TdSource
from attestkit.backends.base import Backend, EventPcr, EvidenceCollector
from attestkit.errors import BackendError, JournalError, ReplayError, UnsupportedError
from attestkit.event_log import Event, EventLog
from attestkit.event_log.journal_protocols import ZERO, mismatch_remedy, replay_from
from attestkit.quote import Quote
from attestkit.report_data import ReportData


class TpmKeySource(EvidenceSource):
    """A source beside a TPM: report data name the TPM's key, unless the evidence has it anyway."""

    _collector: EvidenceCollector

    def bind_nonce(self, nonce: bytes) -> bytes:
        """Return the report data for a nonce of 8 to 64 bytes."""
        key = self._read_key()
        return (
            ReportData.for_nonce(nonce) if key is None else ReportData.for_nonce_and_ak(nonce, key)
        )

    def bind_gpu(self, bound: bytes) -> bytes:
        """Return the report data for those of `ReportData.for_nonce_and_gpu`, 64 bytes."""
        key = self._read_key()
        return bound if key is None else ReportData.for_gpu_and_ak(bound, key)

    def _read_key(self) -> bytes | None:
        with self._device:
            self._check_usable()
            try:
                return self._collector.read_attestation_key()
            except UnsupportedError:
                return None


class VtpmSource(TpmKeySource):
    """Evidence from a backend that is an `EvidenceCollector`."""

    def __init__(
        self, backend: Backend, collector: EvidenceCollector, context: SourceContext, app: HostApp
    ) -> None:
        super().__init__(context, app)
        self._backend = backend
        self._collector = collector

    def evidence(self, report_data: bytes) -> Attestation:
        """Return evidence over exactly 64 bytes."""
        config = self._app.vm_config
        with self._device:
            self._check_usable()
            platform = self._collector.collect_evidence(report_data)
        return Attestation(Evidence(platform, Stack(report_data, (), config)))

    def event_log(self) -> EventLog:
        """Return the firmware's log of a TD behind this backend; empty without one."""
        with self._device:
            self._check_usable()
            raw = self._backend.read_event_log()
        return parse_response("boot log", EventLog.parse, raw) if raw else EventLog()


class VtpmTdSource(TdSource, TpmKeySource):
    """Evidence from a TDX backend that is an `EvidenceCollector` with registers."""

    def __init__(
        self, backend: Backend, collector: EvidenceCollector, context: SourceContext, app: HostApp
    ) -> None:
        super().__init__(backend, context, app)
        self._collector = collector

    def evidence(self, report_data: bytes) -> Attestation:
        """Return evidence over exactly 64 bytes."""
        config = self._app.vm_config
        with self._lock_journal(), self._device:
            self._check_usable()  # again, with the lock held
            self._open_journal().events()  # completes an event that a crash has interrupted
            platform = self._collector.collect_evidence(report_data)
            quote = _parse_quote(platform)
            log = self._matching_log(quote)
            self._wire_log = known = self._wire_log.extend_to(log)
        found = Attestation.for_tdx(quote, log, config, known=known).evidence
        assert isinstance(platform, GcpTdx)  # `_parse_quote`
        replaced = platform._replace(event_log=known.on_wire)
        return Attestation(Evidence(replaced, found.stack))


def _parse_quote(platform: Platform) -> Quote:
    """Return the TDX quote in evidence; its report data are checked by the backend."""
    if not isinstance(platform, GcpTdx):
        text = f"the platform returned {type(platform).__name__} instead of a TD's evidence"
        raise BackendError(text, reason="malformed_response")
    return parse_response("the platform returned a malformed quote", Quote.parse, platform.quote)


class EventPcrBackend(Backend, EvidenceCollector, EventPcr, Protocol):
    """A Backend that is an EvidenceCollector with a PCR for runtime events."""


class EventPcrSource(JournalSource, TpmKeySource):
    """Evidence from a backend that is an `EventPcr`: its document and the runtime events.

    The journal of the events is the one of TDs; its register is the PCR.
    """

    def __init__(self, backend: EventPcrBackend, context: SourceContext, app: HostApp) -> None:
        name = f"PCR {backend.event_pcr}"
        register = EventRegister(name, backend.read_event_pcr, backend.open_journal)
        super().__init__(context, app, register)
        self._collector: EvidenceCollector = backend
        self._pcr: EventPcr = backend
        self._name = name

    def evidence(self, report_data: bytes) -> Attestation:
        """Return evidence over exactly 64 bytes, with the events that replay to the PCR.

        Without runtime events and VM configuration it is the bare document, and the PCR is not
        compared with the log, because shim extends this PCR too.
        """
        config = self._app.vm_config
        with self._locked_journal() as journal:
            platform = self._collector.collect_evidence(report_data)
            events = journal.events()
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
            place = f"; the events of {self._name} belong in {path}" if path else ""
            raise ReplayError(
                f"{self._name} is {quoted.hex()}, but the runtime log replays to "
                f"{replayed.hex()}{place}; {mismatch_remedy(path)}",
                reason="pcr_mismatch",
                expected=replayed,
                actual=quoted,
            )

    def event_log(self) -> EventLog:
        """Return the log of the runtime events."""
        return EventLog(self.runtime_events())

    def _check_start(self, events: tuple[Event, ...]) -> None:
        """Raise JournalError if the PCR was extended before the first event.

        Verifiers replay the events from zero (vtpm.md, section 9.3).
        """
        if not events and (found := self._pcr.read_event_pcr()) != ZERO:
            name = self._name
            raise JournalError(
                f"{name}: extended to {found.hex()} before the first event, as by shim, which "
                f"measures its keys there; boot without shim to emit events, or reboot if another "
                f"program has extended {name}",
                reason="mismatch",
                expected=ZERO,
                actual=found,
            )
