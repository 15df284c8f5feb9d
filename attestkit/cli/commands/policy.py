"""`attestkit policy FROM-EVIDENCE`: a policy with reference values from known-good evidence."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from attestkit.cli.exit_codes import print_error, set_exit_code
from attestkit.cli.options import option
from attestkit.cli.options.option import PATH, Command
from attestkit.cli.options.output import Output, output_options
from attestkit.cli.options.verification import VerificationOptions, verification_options

if TYPE_CHECKING:
    from attestkit.cli.file_outcome import FileOutcome


@click.command(cls=Command, example="policy evidence --pccs URL -o policy.toml", codes="012345")
@click.argument("file", metavar="FROM-EVIDENCE", type=PATH)
@verification_options
@option.flag("--pin-svns", text="Require firmware as new as that of the evidence.")
@output_options("Write the policy to FILE. Default: stdout.")
def policy(
    *,
    file: Path,
    options: VerificationOptions,
    pin_svns: bool,
    out: Output,
) -> int:
    """Write a policy from the values of known-good evidence.

    The policy requires the registers and the app of the evidence, and is for attestkit verify
    --policy. The evidence (- is stdin) is verified first, with the same options as attestkit
    verify; no policy is written if that fails.
    """
    out.check((file, *options.inputs))
    from attestkit.cli.file_verifier import FileVerifier  # lazy: loads the verifier
    from attestkit.verifier import AppraisalPolicy

    outcome = FileVerifier(options).verify(file)
    if outcome.result is None:
        set_exit_code(outcome.code)
        print_error(f"{file}: no policy written, verification failed: {outcome.problem}")
        return outcome.code
    text = AppraisalPolicy.from_evidence(outcome.result, pin_svns=pin_svns).to_toml()
    _warn(outcome)
    out.write(text, {"policy": text, "evidence": outcome.to_dict()}, f"policy from {file}")
    return 0


def _warn(outcome: "FileOutcome") -> None:
    """Print limitations of verified evidence to stderr, such as a missing freshness check."""
    if outcome.result is not None and outcome.result.simulated:
        text = "the evidence is simulated; use the policy for tests only"
        print_error(f"{outcome.path}: {text}")
    if outcome.own_instant:
        text = f"verified at {outcome.at.isoformat()}, the time that the bundle names"
        print_error(f"{outcome.path}: {text}")
    if not outcome.fresh:
        text = "freshness was not checked; make sure that the evidence is from your machine"
        print_error(f"{outcome.path}: {text}")
