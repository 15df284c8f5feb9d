"""Evidence of an AMD SEV-SNP guest: the secure processor's report, and what it was launched with.

There are no run-time registers, so no log and no events. Who the app is stands in a document of the
host, whose hash is in the report as HOST_DATA.
"""

import hmac
from contextlib import AbstractContextManager
from typing import Final

from attestkit.attestation import Attestation
from attestkit.attestation.launch.mr_config import host_data
from attestkit.attestation.launch.vm_config import VmConfig
from attestkit.attestation.snp_certificates import SnpCertificates
from attestkit.attestation.wire.evidence_parts import Evidence, SevSnp, Stack
from attestkit.attester.evidence_source import NO_REGISTERS, HostApp, Owner
from attestkit.backends.base import LaunchRecord, SnpReporter
from attestkit.errors import (
    BackendError,
    ConfigError,
    FormatError,
    ReplayError,
    UnsupportedError,
    UsageError,
)
from attestkit.event_log import Event, EventLog, Rtmrs
from attestkit.quote import Quote
from attestkit.snp_report import SnpReport

__all__ = ["SnpSource", "check_host_data", "parse_report"]

NO_QUOTE: Final = "SEV-SNP has no TDX quotes: ask for evidence with attest()"
REPORT_SIZE: Final = 1184  # bytes


class SnpSource:
    """A backend with SNP reports."""

    has_quotes = False

    def __init__(self, reporter: SnpReporter, owner: Owner, app: HostApp) -> None:
        self.app = app
        self._reporter = reporter
        self._device, self._check_usable = owner

    def get_quote(self, report_data: bytes) -> Quote:
        """Refuse: there are none."""
        del report_data
        raise UnsupportedError(NO_QUOTE)

    def quote_and_log(self, report_data: bytes) -> tuple[Quote, EventLog]:
        """Refuse: there are none."""
        del report_data
        raise UnsupportedError(NO_QUOTE)

    def evidence(self, report_data: bytes) -> Attestation:
        """Return a report over exactly 64 bytes, certificates and documents of the host with it."""
        config, document = self.app.vm_config, _launch_document(self.app)
        with self._device:
            self._check_usable()
            raw, table = self._reporter.get_snp_report(report_data)
        report = parse_report(raw)
        if not hmac.compare_digest(report.report_data, report_data):
            raise BackendError(
                "the platform gave a report over other report data than asked; where a service of "
                "an SVSM was named it is over the service's: use the backend's get_service_report"
            )
        if document:
            check_host_data(report, document)
        platform = SevSnp(raw, _certificates(table), document)
        return Attestation(Evidence(platform, Stack(report_data, (), config)))

    def event_log(self) -> EventLog:
        """Return a log without events: no register could vouch for any."""
        return EventLog()

    def registers(self) -> Rtmrs:
        """Refuse: there are none."""
        raise UnsupportedError(NO_REGISTERS)

    def emit_event(self, name: str, payload: bytes) -> Event:
        """Refuse: nothing could vouch for it."""
        del name, payload
        raise UnsupportedError(NO_REGISTERS)

    def measure_app(self, app_id: bytes | None) -> tuple[Event, ...]:
        """Refuse: who the app is was fixed at launch."""
        del app_id
        raise UnsupportedError(f"{NO_REGISTERS}; on SEV-SNP the host measures the app at launch")

    def alone(self) -> AbstractContextManager[None]:
        """Wait until nobody works with the backend, and keep it so."""
        return self._device


def parse_report(raw: bytes) -> SnpReport:
    """Return a report that is well formed; BackendError otherwise."""
    if (size := len(raw)) != REPORT_SIZE:
        raise BackendError(f"the platform gave {size} bytes, and a report has {REPORT_SIZE}")
    try:
        return SnpReport.parse(raw)
    except (FormatError, UsageError) as error:
        raise BackendError(f"the platform gave a malformed report: {error}") from error


def check_host_data(report: SnpReport, document: str) -> None:
    """Raise ReplayError unless the guest was launched with `document`."""
    if not hmac.compare_digest(report.host_data, expected := host_data(document)):
        raise ReplayError(
            f"HOST_DATA is {report.host_data.hex()}, but the hash of the host's mr_config document "
            f"is {expected.hex()}: the guest was launched with another one",
            reason="host_data_mismatch",
        )


def _launch_document(app: HostApp) -> str:
    """Return the document that the host says it launched the guest with, if it says so."""
    host: object = app.host
    if isinstance(host, LaunchRecord):
        return host.mr_config
    try:
        found = VmConfig.parse(app.vm_config).find("mr_config")
    except FormatError as error:
        raise ConfigError(f"vm_config: {error}") from error
    return found if isinstance(found, str) else ""


def _certificates(table: bytes) -> tuple[bytes, ...]:
    """Return what evidence carries: ASK and VCEK, else the table as it came, if it has any."""
    try:
        found = SnpCertificates.parse(table)
    except FormatError as error:
        raise BackendError(f"the host's certificate table is malformed: {error}") from error
    if found.ask is not None and found.vcek is not None:
        return found.ask, found.vcek
    return (table,) if found != SnpCertificates() else ()
