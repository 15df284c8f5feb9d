"""`attestkit attest`: evidence for a relying party."""

from typing import TYPE_CHECKING, Final

import click

from attestkit.cli.options.evidence import EvidenceRequest, request_options

if TYPE_CHECKING:
    from attestkit.attestation import Encoding

_EPILOG: Final = (
    "Example: attestkit attest --nonce $NONCE -o evidence\n\n"
    "Exit codes: 0 good, 1 usage, 2 the log does not replay to the registers, 3 device error, "
    "5 unreadable input."
)


@click.command(epilog=_EPILOG)
@click.option(
    "--encoding",
    type=click.Choice(
        [
            *("v1", "v0", "cbor", "cbor-record", "cbor-tag", "json", "json-record", "v1-cbor"),
            *("coco", "go-tpm-tools"),
        ]
    ),
    help="v1 is MessagePack, v0 SCALE (older dstack), v1-cbor is v1 in CBOR, coco CoCo's JSON "
    "(Azure, TPM), go-tpm-tools that project's protobuf (TPM); the others are RATS CMW encodings. "
    "Default: v1, or cbor on a platform that dstack does not define.",
)
@request_options
def attest(*, encoding: "Encoding | None", request: EvidenceRequest) -> None:
    """Create evidence about this machine.

    Evidence contains a quote, the event log and the configuration, for attestkit verify. Without
    -o it goes to stdout: raw into a pipe, as hex on a terminal. The command fails if the log does
    not replay to the registers of the quote.
    """
    with request.open() as attester:
        nonce = request.report_data.nonce
        if nonce is not None:  # so that the report data can name the key of a TPM
            evidence = attester.attest(nonce=nonce)
        else:
            evidence = attester.attest(report_data=request.report_data.value)
        from attestkit.attestation.wire.evidence_parts import is_of_dstack  # lazy: not for --help

        chosen = encoding or ("v1" if is_of_dstack(evidence.evidence.platform) else "cbor")
        raw = evidence.to_bytes(chosen)
        fields = {
            "platform": evidence.platform,
            "backend": attester.backend.name,
            "simulated": attester.simulated,
            "encoding": chosen,
            "report_data": evidence.report_data.hex(),
        }
    request.write_result(raw, "evidence", fields, f"evidence of {evidence.platform}, {chosen}")
