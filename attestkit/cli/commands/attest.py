"""`attestkit attest`: evidence for a relying party."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from attestkit.cli.exit_codes import warnings_on_stderr
from attestkit.cli.options import option
from attestkit.cli.options.evidence import EvidenceRequest, request_options
from attestkit.cli.options.option import Command
from attestkit.cli.output.write_output import write_output
from attestkit.errors import UsageError

if TYPE_CHECKING:
    from attestkit.attestation import Encoding
    from attestkit.backends.base import Backend

_ROOTS: Final = "--save-gpu-roots"
_ENDORSEMENTS: Final = "--save-gpu-endorsements"
_ENCODINGS: Final = (
    *("v1", "v0", "cbor", "cbor-record", "cbor-tag", "json", "json-record", "v1-cbor"),
    *("coco", "go-tpm-tools"),
)

_save_roots, _save_endorsements = option.section(
    "Simulator",
    option.file(_ROOTS, "Write the roots of its GPUs, for --gpu-roots."),
    option.file(_ENDORSEMENTS, "Write what --gpu-endorsements takes."),
)


@click.command(
    cls=Command,
    example="attest --nonce $NONCE -o evidence",
    codes="01235",
    meanings={2: "the log does not replay to the registers"},
)
@click.option(
    "--encoding",
    type=click.Choice(_ENCODINGS),
    metavar="NAME",
    help=f"{', '.join(_ENCODINGS)}. Default: v1, or cbor where dstack defines none.",
)
@option.flag("--gpu", text="Enclose evidence of the GPUs; requires --nonce.")
@request_options
@_save_roots
@_save_endorsements
def attest(
    *,
    encoding: "Encoding | None",
    gpu: bool,
    save_gpu_roots: Path | None,
    save_gpu_endorsements: Path | None,
    request: EvidenceRequest,
) -> None:
    """Create evidence about this machine.

    Evidence contains a quote, the event log and the configuration, for attestkit verify. Without
    -o it goes to stdout: raw into a pipe, as hex on a terminal. The command fails if the log does
    not replay to the registers of the quote.
    """
    _check_gpu(encoding, request, gpu=gpu)
    outputs = ((_ROOTS, save_gpu_roots), (_ENDORSEMENTS, save_gpu_endorsements))
    with request.open(outputs) as attester:
        nonce = request.report_data.nonce
        if nonce is not None:  # so that the report data can name the key of a TPM
            with warnings_on_stderr():  # such as GPUs whose memory is not protected
                evidence = attester.attest(nonce=nonce, gpu=gpu)
        else:
            evidence = attester.attest(report_data=request.report_data.value)
        from attestkit.attestation.wire.evidence_parts import is_of_dstack  # lazy: not for --help

        of_dstack = is_of_dstack(evidence.evidence.platform) and not gpu
        chosen = encoding or ("v1" if of_dstack else "cbor")
        raw = evidence.to_bytes(chosen)
        fields = {
            "platform": evidence.platform,
            "backend": attester.backend.name,
            "simulated": attester.simulated,
            "encoding": chosen,
            "report_data": evidence.report_data.hex(),
        }
        _write_gpu_trust(attester.backend, save_gpu_roots, save_gpu_endorsements)
    request.write_result(raw, "evidence", fields, f"evidence of {evidence.platform}, {chosen}")


def _check_gpu(encoding: "Encoding | None", request: EvidenceRequest, *, gpu: bool) -> None:
    if not gpu:
        return
    if request.report_data.nonce is None:
        raise UsageError("--gpu: requires --nonce", reason="missing")
    if encoding not in (None, "cbor", "json"):
        message = f"--gpu: the encoding {encoding} cannot contain evidence of GPUs; use cbor"
        raise UsageError(message, reason="conflict")


def _write_gpu_trust(backend: "Backend", roots: Path | None, endorsements: Path | None) -> None:
    """Write roots (PEM) and endorsements (JSON) of simulated GPUs, for tests of verifiers.

    Raises:
        UsageError: If a path is given, but the backend does not simulate GPUs.
    """
    if roots is None and endorsements is None:
        return
    from attestkit.backends.base import simulates_gpus  # lazy: few runs need it
    from attestkit.cli.options.option_files import write_gpu_roots

    if not simulates_gpus(backend):
        text = f"{_ROOTS} and {_ENDORSEMENTS}: not supported by backend {backend.name}"
        raise UsageError(f"{text}; use the simulator", reason="not_applicable")
    if roots is not None:
        write_output(_ROOTS, roots, write_gpu_roots(backend.gpu_roots))
    if endorsements is not None:
        write_output(_ENDORSEMENTS, endorsements, backend.gpu_endorsements().to_json())
