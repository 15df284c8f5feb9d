"""Evidence of a machine with a TPM: the TPM's quote, and evidence of the hardware, if any.

The TPM's logs are part of the evidence. Report data are a hash of the nonce and, unless the
hardware's evidence names it, the TPM's key. Runtime events depend on the platform:

* Google's TDs measure them in RTMR3. Quotes and logs of TD and TPM are read under one lock, and the
  log is compared with RTMR3 as on any TD.
* AWS's NitroTPM measures them in PCR 14 (`EventPcrSource`).
* Elsewhere programs cannot emit events: the PCRs that a program can extend have other uses.
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
    """A source that hashes the TPM's key into report data, if the backend returns that key."""

    _collector: EvidenceCollector

    def bind_nonce(self, nonce: bytes) -> bytes:
        """Return a hash of the nonce (8 to 64 bytes) and, if needed, the TPM's key: report data."""
        key = self._read_key()
        return (
            ReportData.for_nonce(nonce) if key is None else ReportData.for_nonce_and_ak(nonce, key)
        )

    def bind_gpu(self, bound: bytes) -> bytes:
        """Return report data for evidence with GPUs: `bound`, or its hash with the TPM's key."""
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
        """Return evidence over 64 bytes of report data."""
        config = self._app.vm_config
        with self._device:
            self._check_usable()
            platform = self._collector.collect_evidence(report_data)
        return Attestation(Evidence(platform, Stack(report_data, (), config)))

    def event_log(self) -> EventLog:
        """Return the firmware event log of the hardware's TD; empty on other hardware."""
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
        """Return evidence over 64 bytes of report data."""
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
    """Return the TDX quote in a platform's evidence; the backend has checked its report data.

    Raises:
        BackendError: If the evidence is not that of a TD, or the quote is malformed.
    """
    if not isinstance(platform, GcpTdx):
        text = f"the platform returned {type(platform).__name__} instead of a TD's evidence"
        raise BackendError(text, reason="malformed_response")
    return parse_response("the platform returned a malformed quote", Quote.parse, platform.quote)


class EventPcrBackend(Backend, EvidenceCollector, EventPcr, Protocol):
    """A Backend that is an EvidenceCollector with a PCR for runtime events."""


class EventPcrSource(JournalSource, TpmKeySource):
    """Evidence from a backend that is an `EventPcr`: a NitroTPM's document, and runtime events.

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
        """Return evidence over 64 bytes of report data, with the events that replay to the PCR.

        Without runtime events and VM configuration it is the attestation document alone, and the
        PCR is not compared with the log, because shim extends this PCR too.
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
        """Raise an error unless the document in `found` has the PCR, and `events` replay to it.

        Evidence that is a bare document has no log, so only the presence of the PCR is checked.
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
        """Raise JournalError if there are no events yet, but the PCR is not zero.

        Verifiers replay the events from a PCR of zeros.
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
