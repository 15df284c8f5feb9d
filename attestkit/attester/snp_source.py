"""Evidence of an AMD SEV-SNP guest: attestation report, certificates and mr_config document.

SEV-SNP has no run-time registers, so there is no event log. The app is identified by an mr_config
document from the host, whose hash is HOST_DATA in the report.
"""

import hmac
from typing import TYPE_CHECKING

from attestkit.attestation import Attestation
from attestkit.attestation.launch.mr_config import host_data
from attestkit.attestation.launch.vm_config import VmConfig
from attestkit.attestation.snp import SnpCertificates
from attestkit.attestation.wire.evidence_parts import Evidence, SevSnp, Stack
from attestkit.attester.evidence_source import (
    NO_REGISTERS,
    EvidenceSource,
    HostApp,
    SourceContext,
    check_report_data,
    parse_response,
)
from attestkit.backends.base import LaunchRecord, SnpReporter
from attestkit.errors import BackendError, ConfigError, FormatError, ReplayError, UnsupportedError
from attestkit.event_log import Event
from attestkit.snp_report import SIZE, SnpReport

if TYPE_CHECKING:
    from attestkit._outcomes.reasons import BackendReason


class SnpSource(EvidenceSource):
    """Evidence from a backend with SNP reports."""

    no_quote = "SEV-SNP has no TDX quotes; use attest()"

    def __init__(self, reporter: SnpReporter, context: SourceContext, app: HostApp) -> None:
        super().__init__(context, app)
        self._reporter = reporter

    def evidence(self, report_data: bytes) -> Attestation:
        """Return evidence over 64 bytes of report data: report, certificates and mr_config."""
        config, document = self._app.vm_config, _launch_document(self._app)
        with self._device:
            self._check_usable()
            raw, table = self._reporter.get_snp_report(report_data)
        report = parse_report(raw)
        check_report_data(
            report.report_data,
            report_data,
            "the platform returned a report over other report data than requested; for the "
            "report of an SVSM service use the backend's get_service_report",
        )
        if document:
            check_host_data(report, document)
        platform = SevSnp(raw, _certificates(table), document)
        return Attestation(Evidence(platform, Stack(report_data, (), config)))

    def measure_app(self, app_id: bytes | None) -> tuple[Event, ...]:
        """Raise UnsupportedError for any `app_id`: on SEV-SNP HOST_DATA identify the app."""
        del app_id
        message = (
            f"{NO_REGISTERS}; on SEV-SNP the app is identified by HOST_DATA, which the host sets "
            "at launch"
        )
        raise UnsupportedError(message, reason="no_registers")


def parse_report(raw: bytes) -> SnpReport:
    """Parse `raw`, an SEV-SNP report of 1184 bytes; BackendError if malformed."""
    if (size := len(raw)) != SIZE:
        reason: BackendReason = "truncated" if size < SIZE else "too_large"
        problem = f"the platform returned a report of {size} bytes, not {SIZE}"
        raise BackendError(problem, reason=reason)
    return parse_response("the platform returned a malformed report", SnpReport.parse, raw)


def check_host_data(report: SnpReport, document: str) -> None:
    """Raise ReplayError unless the report's HOST_DATA is the hash of `document` (mr_config)."""
    if not hmac.compare_digest(report.host_data, expected := host_data(document)):
        raise ReplayError(
            f"HOST_DATA is {report.host_data.hex()}, but the hash of the host's mr_config document "
            f"is {expected.hex()}; the guest was launched with another document",
            reason="host_data_mismatch",
        )


def _launch_document(app: HostApp) -> str:
    """Return the host's mr_config document (JSON text); empty if it has none."""
    host: object = app.host
    if isinstance(host, LaunchRecord):
        return host.mr_config
    try:
        found = VmConfig.parse(app.vm_config).find("mr_config")
    except FormatError as error:
        raise ConfigError(str(error), reason="wrong_value") from error
    return found if isinstance(found, str) else ""


def _certificates(table: bytes) -> tuple[bytes, ...]:
    """Return ASK and VCEK (DER) of a host's table; if one is missing, the table, unless empty."""
    problem = "malformed certificate table of the host"
    found = parse_response(problem, SnpCertificates.parse, table)
    if found.ask is not None and found.vcek is not None:
        return found.ask, found.vcek
    return (table,) if found != SnpCertificates() else ()
