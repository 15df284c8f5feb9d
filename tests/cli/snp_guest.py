"""An SEV-SNP backend with one report."""

from attestkit.backends.base import SnpEvidence


class SnpGuest:
    """An SEV-SNP backend that returns the same report for every request."""

    name = "snp_guest"
    simulated = False
    blocking = False
    raw = b""

    @classmethod
    def probe(cls) -> None:
        """Do nothing: the backend is available."""

    def get_quote(self, report_data: bytes) -> bytes:
        """Return the report."""
        return self.get_snp_report(report_data).report

    def get_snp_report(self, report_data: bytes) -> SnpEvidence:
        """Return the report with other report data."""
        return SnpEvidence(self.raw[:0x50] + report_data + self.raw[0x90:], b"")

    def read_event_log(self) -> bytes:
        """Return an empty log."""
        return b""

    def close(self) -> None:
        """Do nothing."""
