"""`attestkit quote`: the raw quote or report of the hardware."""

from typing import TYPE_CHECKING

import click

from attestkit.cli.options import option
from attestkit.cli.options.evidence import EvidenceRequest, request_options
from attestkit.cli.options.option import Command
from attestkit.errors import UnsupportedError

if TYPE_CHECKING:
    from attestkit.attester import Attester


@click.command(cls=Command, example="quote --nonce $NONCE -o quote.bin", codes="0135")
@option.flag("--unchecked", text="Write the response even if it is malformed.")
@request_options
def quote(*, unchecked: bool, request: EvidenceRequest) -> None:
    """Get a raw quote from the hardware.

    Without -o it goes to stdout: raw into a pipe, as hex on a terminal. On AMD SEV-SNP it is the
    attestation report.
    """
    with request.open() as attester:
        kind, raw = _raw(attester, request.report_data.value, unchecked=unchecked)
        backend, simulated = attester.backend.name, attester.simulated
    fields = {"kind": kind, "backend": backend, "simulated": simulated}
    request.write_result(raw, "quote", fields, kind)


def _raw(attester: "Attester", report_data: bytes, *, unchecked: bool) -> tuple[str, bytes]:
    """Request a quote or report over `report_data`, 64 bytes.

    With `unchecked`, the bytes are not parsed, and may be malformed.

    Returns:
        "quote" or "SEV-SNP report", and its bytes.
    """
    import warnings  # lazy, like the imports below: --help does not need it

    from attestkit.attestation.wire.evidence_parts import SevSnp
    from attestkit.backends.base import EvidenceCollector
    from attestkit.report_data import ReportDataWarning

    if not attester.has_quotes and isinstance(attester.backend, EvidenceCollector):
        message = f"quote: evidence of {attester.backend.name} has several parts"
        raise UnsupportedError(f"{message}; use attestkit attest", reason="feature")
    if unchecked:
        kind = "quote" if attester.has_quotes else "SEV-SNP report"
        return kind, attester.backend.get_quote(report_data)
    if not attester.has_quotes:
        platform = attester.attest(report_data=report_data).evidence.platform
        assert isinstance(platform, SevSnp)
        return "SEV-SNP report", platform.report
    with warnings.catch_warnings():  # --text has already warned of hex
        warnings.simplefilter("ignore", ReportDataWarning)
        return "quote", attester.get_quote(report_data).raw
