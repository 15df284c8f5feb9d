"""`attestkit quote`: what the hardware signs, as it came."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from attestkit.cli import render
from attestkit.cli.device import DEVICE_EXIT_CODES, Device, device_options
from attestkit.cli.parameters import PATH, json_option
from attestkit.cli.report_data import Sealed, report_data_options
from attestkit.cli.simulated_trust import SimulatedTrust, simulated_trust_options
from attestkit.cli.write_output import check_output, print_bytes, refuse_stdout, write_output

if TYPE_CHECKING:
    from attestkit.attester import Attester

__all__ = ["quote"]

_EPILOG: Final = "Example: attestkit quote --text nonce -o quote.bin\n\n" + DEVICE_EXIT_CODES


@click.command(epilog=_EPILOG)
@report_data_options
@click.option("-o", "--output", metavar="FILE", type=PATH, help="Write it there, raw.")
@click.option(
    "--unchecked",
    is_flag=True,
    help="Give whatever the backend answers, also if it is malformed or about something else.",
)
@device_options
@simulated_trust_options
@json_option
def quote(  # noqa: PLR0913 - one per option
    *,
    sealed: Sealed,
    output: Path | None,
    unchecked: bool,
    device: Device,
    trust: SimulatedTrust,
    as_json: bool,
) -> None:
    """Get a raw quote from the hardware.

    Without -o it goes to stdout: raw into a pipe, as hex on a terminal. An AMD SEV-SNP guest, which
    has no quotes, gives its report.
    """
    refuse_stdout(output, as_json=as_json)
    inputs = (*sealed.inputs, *device.inputs)
    check_output("-o", output, inputs)
    trust.check(inputs)
    with device.open() as attester:
        kind, raw = _raw(attester, sealed.report_data, unchecked=unchecked)
        backend, simulated = attester.backend.name, attester.simulated
        trust.write(attester.backend)
    written = output is not None and write_output("-o", output, raw)
    if as_json:
        found = {
            "kind": kind,
            "backend": backend,
            "simulated": simulated,
            "report_data": sealed.report_data.hex(),
            "size": len(raw),
            "quote": raw.hex(),
            "output": None if output is None else str(output),
        }
        render.as_json(found)
    elif written:
        render.verdict(f"{output}: {kind}, {len(raw)} bytes", good=True)
    elif output is None:
        print_bytes(raw)


def _raw(attester: "Attester", report_data: bytes, *, unchecked: bool) -> tuple[str, bytes]:
    """Return what it is, as attestkit show calls it, and its bytes."""
    import warnings  # late, as below: --help asks nobody

    from attestkit.attestation.platforms import SevSnp
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
