"""Evidence of a machine with a TPM: the TPM's quote, and evidence of its hardware if it has some.

Its logs are part of the evidence. Programs cannot emit events: PCRs that a program may extend have
other uses, and no journal of attestkit belongs to them.
"""

from contextlib import AbstractContextManager
from typing import Final

from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import Evidence, Stack
from attestkit.attester.evidence_source import (
    NO_REGISTERS,
    HostApp,
    SourceContext,
    parse_response,
)
from attestkit.backends.base import Backend, EvidenceCollector
from attestkit.errors import UnsupportedError
from attestkit.event_log import Event, EventLog, Rtmrs
from attestkit.quote import Quote
from attestkit.report_data import ReportData

NO_QUOTE: Final = "evidence of this platform is more than a TDX quote; use attest()"


class VtpmSource:
    """Evidence from a backend that is an `EvidenceCollector`."""

    has_quotes = False

    def __init__(
        self,
        backend: Backend,
        collector: EvidenceCollector,
        context: SourceContext,
        app: HostApp,
    ) -> None:
        self.app = app
        self._backend = backend
        self._collector = collector
        self._device, self._check_usable = context

    def bind_nonce(self, nonce: bytes) -> bytes:
        """Return report data over a nonce, and the TPM's key unless the evidence has it anyway."""
        with self._device:
            self._check_usable()
            return bind_nonce(self._collector, nonce)

    def bind_gpu(self, bound: bytes) -> bytes:
        """Return report data over those of GPUs, and the TPM's key as for a nonce."""
        with self._device:
            self._check_usable()
            return bind_gpu(self._collector, bound)

    def get_quote(self, report_data: bytes) -> Quote:
        """Raise UnsupportedError."""
        del report_data
        raise UnsupportedError(NO_QUOTE, reason="no_quote")

    def quote_and_log(self, report_data: bytes) -> tuple[Quote, EventLog]:
        """Raise UnsupportedError."""
        del report_data
        raise UnsupportedError(NO_QUOTE, reason="no_quote")

    def evidence(self, report_data: bytes) -> Attestation:
        """Return evidence over exactly 64 bytes."""
        config = self.app.vm_config
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

    def registers(self) -> Rtmrs:
        """Raise UnsupportedError."""
        raise UnsupportedError(NO_REGISTERS, reason="no_registers")

    def emit_event(self, name: str, payload: bytes) -> Event:
        """Raise UnsupportedError."""
        del name, payload
        raise UnsupportedError(NO_REGISTERS, reason="no_registers")

    def measure_app(self, app_id: bytes | None) -> tuple[Event, ...]:
        """Raise UnsupportedError."""
        del app_id
        raise UnsupportedError(NO_REGISTERS, reason="no_registers")

    def exclusive(self) -> AbstractContextManager[None]:
        """Wait for calls in progress and block further ones."""
        return self._device


def bind_nonce(collector: EvidenceCollector, nonce: bytes) -> bytes:
    """Return report data over a nonce, and the TPM's key unless the evidence has it anyway."""
    try:
        key = collector.read_attestation_key()
    except UnsupportedError:
        return ReportData.for_nonce(nonce)
    return ReportData.for_nonce_and_ak(nonce, key)


def bind_gpu(collector: EvidenceCollector, bound: bytes) -> bytes:
    """Return report data over those of GPUs, and the TPM's key unless the evidence has it anyway.

    Args:
        collector: Of the machine's evidence.
        bound: `ReportData.for_nonce_and_gpu`, 64 bytes.
    """
    try:
        key = collector.read_attestation_key()
    except UnsupportedError:
        return bound
    return ReportData.for_gpu_and_ak(bound, key)
