"""Checks that options apply to the kind of a file, so that none is ignored."""

from attestkit.cli.options.verification import VerificationOptions
from attestkit.errors import UsageError


def check_file_kind(options: VerificationOptions, kind: str, *, in_certificate: bool) -> None:
    """Check that the options apply to a file of evidence.

    Args:
        options: Options of the verification.
        kind: Kind of the file, as `identify` returns it.
        in_certificate: Whether the evidence is in an RA-TLS certificate.

    Raises:
        UsageError: If one does not.
    """
    if options.own_instant and kind != "evidence bundle":
        raise UsageError(
            f"--at bundle: requires an evidence bundle, but the file is: {kind}; give a time with "
            "--at",
            reason="not_applicable",
        )
    if in_certificate and options.expects_report_data:
        raise UsageError(
            "report data: always the key's hash for an RA-TLS certificate; omit --nonce, "
            "--report-data, --text and --file",
            reason="not_applicable",
        )
    if in_certificate and options.gpu_evidence is not None:
        raise UsageError(
            "--gpu-evidence: not supported for an RA-TLS certificate; verify evidence of machine "
            "and GPUs over a nonce instead",
            reason="not_applicable",
        )
