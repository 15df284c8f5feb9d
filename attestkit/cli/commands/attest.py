"""`attestkit attest`: evidence, which is what a relying party receives."""

from typing import TYPE_CHECKING, Final

import click

from attestkit.cli.options.evidence import Request, request_options

if TYPE_CHECKING:
    from attestkit.attestation import Encoding

__all__ = ["attest"]

_EPILOG: Final = (
    "Example: attestkit attest --report-data 00ff -o evidence\n\n"
    "Exit codes: 0 good, 1 usage, 2 the log does not explain the registers, 3 the device, "
    "5 unreadable input."
)


@click.command(epilog=_EPILOG)
@click.option(
    "--encoding",
    type=click.Choice(
        ["v1", "v0", "cbor", "cbor-record", "cbor-tag", "json", "json-record", "v1-cbor"]
    ),
    default="v1",
    show_default=True,
    help="v1 is msgpack, v0 SCALE, as older dstack has it, v1-cbor is v1 in CBOR; the others are "
    "forms of a RATS CMW.",
)
@request_options
def attest(*, encoding: "Encoding", request: Request) -> None:
    """Make evidence about this machine.

    That is quote, event log and configuration in one parcel, for attestkit verify. Without -o it
    goes to stdout: raw into a pipe, as hex on a terminal. It is made only if its log explains the
    registers in its quote.
    """
    with request.open() as attester:
        evidence = attester.evidence(request.sealed.report_data)
        raw = evidence.to_bytes(encoding)
        told = {
            "platform": evidence.platform,
            "backend": attester.backend.name,
            "simulated": attester.simulated,
            "encoding": encoding,
        }
    request.deliver(raw, "evidence", told, f"evidence of {evidence.platform}, {encoding}")
