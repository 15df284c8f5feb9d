"""Evidence of a machine with a TPM: the TPM's quote, and evidence of its hardware if it has some.

Its logs are part of the evidence. Beside a TD, which measures events in its own register (Google's
Confidential VMs), quotes of both and both logs are read under one lock, and are compared as those
of any TD. Elsewhere programs cannot emit events: PCRs that a program may extend have other uses,
and no journal of attestkit belongs to them.
"""

from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import Evidence, GcpTdx, Platform, Stack
from attestkit.attester.evidence_source import HostApp, SourceContext, TpmKeySource, parse_response
from attestkit.attester.tdx_source import TdSource
from attestkit.backends.base import Backend, EvidenceCollector
from attestkit.errors import BackendError
from attestkit.event_log import EventLog
from attestkit.quote import Quote


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
