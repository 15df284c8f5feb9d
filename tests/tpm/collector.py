"""A backend whose evidence has several parts, one of them a quote of a TPM."""

from typing import Final

from attestkit.attestation.wire.evidence_parts import GcpSnp, Platform, Tpm, VtpmQuote
from attestkit.errors import BackendError, UnsupportedError, UsageError
from tests.machines.tees import CHIP
from tests.tpm.samples import MADE_ATTEST, MADE_PUBLICS, MADE_SIGNATURES

KEY: Final = MADE_PUBLICS[1].spki


class FakeCollector:
    """A machine with a TPM; with `hardware`, an SNP guest whose report does not name the key."""

    name = "fake_collector"
    simulated = False
    blocking = True

    def __init__(self, *, hardware: bool = True) -> None:
        self.hardware = hardware
        self.log = b""
        self.refusal: BackendError | None = None
        self.closed = 0

    @classmethod
    def probe(cls) -> None:
        """Accept: the machine is available."""

    def get_quote(self, report_data: bytes) -> bytes:
        """Refuse."""
        del report_data
        raise UnsupportedError("use collect_evidence", reason="no_quote")

    def read_event_log(self) -> bytes:
        """Return the firmware's log."""
        return self.log

    def collect_evidence(self, report_data: bytes) -> Platform:
        """Return the parts."""
        if len(report_data) != 64:
            raise UsageError("report_data: must be 64 bytes", reason="wrong_size")
        if self.refusal is not None:
            raise self.refusal
        quote = MADE_ATTEST._replace(extra_data=report_data[:32]).encode()
        signature = MADE_SIGNATURES[2].encode()
        if not self.hardware:
            return Tpm(VtpmQuote(quote, signature, (), MADE_PUBLICS[1].encode()))
        return GcpSnp(CHIP.report(report_data), (), VtpmQuote(quote, signature, ()))

    def read_attestation_key(self) -> bytes:
        """Return the key that the report has to bind."""
        if not self.hardware:
            raise UnsupportedError("no hardware evidence", reason="feature")
        return KEY

    def close(self) -> None:
        """Count."""
        self.closed += 1
