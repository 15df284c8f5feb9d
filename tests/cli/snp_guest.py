"""An SNP guest as a backend, of one report."""

from attestkit.backends.base import SnpEvidence

__all__ = ["SnpGuest"]


class SnpGuest:
    """An SNP guest with a report from a file, for whatever is asked."""

    name = "snp_guest"
    simulated = False
    blocking = False
    raw = b""

    @classmethod
    def probe(cls) -> None:
        """Return: it is here."""

    def get_quote(self, report_data: bytes) -> bytes:
        """Return the report."""
        return self.get_snp_report(report_data).report

    def get_snp_report(self, report_data: bytes) -> SnpEvidence:
        """Return the report with these report data in it."""
        return SnpEvidence(self.raw[:0x50] + report_data + self.raw[0x90:], b"")

    def read_event_log(self) -> bytes:
        """Return nothing: there is none."""
        return b""

    def close(self) -> None:
        """Return: nothing is open."""
