"""`attestkit attest`: evidence, which is what a relying party receives."""

from pathlib import Path
from typing import Final, Literal

import click

from attestkit.cli import render
from attestkit.cli.device import Device, device_options
from attestkit.cli.parameters import PATH, json_option
from attestkit.cli.report_data import Sealed, report_data_options
from attestkit.cli.simulated_trust import SimulatedTrust, simulated_trust_options
from attestkit.cli.write_output import check_output, print_bytes, refuse_stdout, write_output

__all__ = ["attest"]

_EPILOG: Final = (
    "Example: attestkit attest --report-data 00ff -o evidence\n\n"
    "Exit codes: 0 good, 1 usage, 2 the log does not explain the registers, 3 the device, "
    "5 unreadable input."
)


@click.command(epilog=_EPILOG)
@report_data_options
@click.option("-o", "--output", metavar="FILE", type=PATH, help="Write it there, raw.")
@click.option(
    "--encoding",
    type=click.Choice(["v1", "v0", "cbor"]),
    default="v1",
    show_default=True,
    help="v1 is msgpack, v0 SCALE, as older dstack has it.",
)
@device_options
@simulated_trust_options
@json_option
def attest(  # noqa: PLR0913 - one per option
    *,
    sealed: Sealed,
    output: Path | None,
    encoding: Literal["v1", "v0", "cbor"],
    device: Device,
    trust: SimulatedTrust,
    as_json: bool,
) -> None:
    """Make evidence about this machine.

    That is quote, event log and configuration in one parcel, for attestkit verify. Without -o it
    goes to stdout: raw into a pipe, as hex on a terminal. It is made only if its log explains the
    registers in its quote.
    """
    refuse_stdout(output, as_json=as_json)
    inputs = (*sealed.inputs, *device.inputs)
    check_output("-o", output, inputs)
    trust.check(inputs)
    with device.open() as attester:
        evidence = attester.evidence(sealed.report_data)
        raw = evidence.to_bytes(encoding)
        backend, simulated = attester.backend.name, attester.simulated
        trust.write(attester.backend)
    written = output is not None and write_output("-o", output, raw)
    if as_json:
        found = {
            "platform": evidence.platform,
            "backend": backend,
            "simulated": simulated,
            "report_data": sealed.report_data.hex(),
            "encoding": encoding,
            "size": len(raw),
            "evidence": raw.hex(),
            "output": None if output is None else str(output),
        }
        render.as_json(found)
    elif written:
        text = f"{output}: evidence of {evidence.platform}, {encoding}, {len(raw)} bytes"
        render.verdict(text, good=True)
    elif output is None:
        print_bytes(raw)
