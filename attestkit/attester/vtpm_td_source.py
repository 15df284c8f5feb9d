"""Evidence of a TD beside a TPM that measures its runtime events, too: Google's Confidential VMs.

Quote, quote of the TPM and both logs are read under one lock, and are compared as those of any TD.
"""

from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import Evidence, GcpTdx, Platform
from attestkit.attester.evidence_source import HostApp, SourceContext, parse_response
from attestkit.attester.tdx_source import TdSource
from attestkit.attester.vtpm_source import bind_gpu, bind_nonce
from attestkit.backends.base import Backend, EvidenceCollector
from attestkit.errors import BackendError
from attestkit.quote import Quote


class VtpmTdSource(TdSource):
    """Evidence from a TDX backend that is an `EvidenceCollector` with registers."""

    def __init__(
        self,
        backend: Backend,
        collector: EvidenceCollector,
        context: SourceContext,
        app: HostApp,
    ) -> None:
        super().__init__(backend, context, app)
        self._collector = collector

    def bind_nonce(self, nonce: bytes) -> bytes:
        """Return report data over a nonce and the TPM's key."""
        with self._device:
            self._check_usable()
            return bind_nonce(self._collector, nonce)

    def bind_gpu(self, bound: bytes) -> bytes:
        """Return report data over those of GPUs, and the TPM's key as for a nonce."""
        with self._device:
            self._check_usable()
            return bind_gpu(self._collector, bound)

    def evidence(self, report_data: bytes) -> Attestation:
        """Return evidence over exactly 64 bytes."""
        config = self.app.vm_config
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
