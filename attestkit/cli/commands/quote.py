"""`attestkit quote`: what the hardware signs, as it came."""

from typing import TYPE_CHECKING, Final

import click

from attestkit.cli.options.backend import DEVICE_EXIT_CODES
from attestkit.cli.options.evidence import Request, request_options

if TYPE_CHECKING:
    from attestkit.attester import Attester

__all__ = ["quote"]

_EPILOG: Final = "Example: attestkit quote --text nonce -o quote.bin\n\n" + DEVICE_EXIT_CODES


@click.command(epilog=_EPILOG)
@click.option(
    "--unchecked",
    is_flag=True,
    help="Give whatever the backend answers, also if it is malformed or about something else.",
)
@request_options
def quote(*, unchecked: bool, request: Request) -> None:
    """Get a raw quote from the hardware.

    Without -o it goes to stdout: raw into a pipe, as hex on a terminal. An AMD SEV-SNP guest, which
    has no quotes, gives its report.
    """
    with request.open() as attester:
        kind, raw = _raw(attester, request.sealed.report_data, unchecked=unchecked)
        backend, simulated = attester.backend.name, attester.simulated
    told = {"kind": kind, "backend": backend, "simulated": simulated}
    request.deliver(raw, "quote", told, kind)


def _raw(attester: "Attester", report_data: bytes, *, unchecked: bool) -> tuple[str, bytes]:
    """Return what it is, as attestkit show calls it, and its bytes."""
    import warnings  # late, as below: --help asks nobody

    from attestkit.attestation.wire.evidence_parts import SevSnp
    from attestkit.report_data import ReportDataWarning

    if unchecked:
        kind = "quote" if attester.has_quotes else "SEV-SNP report"
        return kind, attester.backend.get_quote(report_data)
    if not attester.has_quotes:
        platform = attester.evidence(report_data).evidence.platform
        assert isinstance(platform, SevSnp)
        return "SEV-SNP report", platform.report
    with warnings.catch_warnings():  # whoever gave hex as text has been told by its option's name
        warnings.simplefilter("ignore", ReportDataWarning)
        return "quote", attester.get_quote(report_data).raw
