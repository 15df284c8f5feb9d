"""`attestkit policy FROM-EVIDENCE`: reference values pinned from known-good evidence."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from attestkit.cli.exit_codes import complain, decide
from attestkit.cli.options.click_types import PATH, json_option
from attestkit.cli.options.verification import Asked, verification_options
from attestkit.cli.output import console
from attestkit.cli.output.write_output import check_output, refuse_stdout, write_output

if TYPE_CHECKING:
    from attestkit.cli.file_verifier import Outcome

__all__ = ["policy"]

_EPILOG: Final = (
    "Example: attestkit policy evidence --pccs URL -o policy.toml\n\n"
    "Exit codes: 0 good, else those of attestkit verify."
)


@click.command(epilog=_EPILOG)
@click.argument("file", metavar="FROM-EVIDENCE", type=PATH)
@verification_options
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=PATH,
    help="Write the policy there; else to stdout.",
)
@json_option
def policy(*, file: Path, asked: Asked, output: Path | None, as_json: bool) -> int:
    """Pin what evidence shows, as a policy ready to edit.

    That is its registers and its app. The evidence (- is stdin) is verified first, by the same
    options as attestkit verify; what does not verify is not pinned. The policy goes to attestkit
    verify --policy.
    """
    refuse_stdout(output, as_json=as_json)
    check_output("-o", output, (file, *asked.inputs))
    from attestkit.cli.file_verifier import Judge  # late: loads the verifier
    from attestkit.verifier.policy.toml_writer import pin, to_toml

    outcome = Judge(asked).outcome(file)
    if outcome.result is None:
        decide(outcome.code)
        complain(f"{file}: not pinned, because it does not verify: {outcome.problem}")
        return outcome.code
    text = to_toml(pin(outcome.result))
    _warn(outcome)
    if as_json:
        console.as_json({"policy": text, "evidence": outcome.to_dict()})
    elif output is None:
        sys.stdout.write(text)
    if output is not None and write_output("-o", output, text) and not as_json:
        console.verdict(f"{output}: pinned from {file}", good=True)
    return 0


def _warn(outcome: "Outcome") -> None:
    """Say what the evidence does not show, before somebody relies on the pin."""
    if outcome.result is not None and outcome.result.simulated:
        text = "the evidence is simulated, so that the policy is good for tests only"
        complain(f"{outcome.path}: {text}")
    if outcome.own_instant:
        text = f"judged at {outcome.at.isoformat()}, the instant that the bundle itself names"
        complain(f"{outcome.path}: {text}")
    if not outcome.fresh:
        text = "freshness was not checked: make sure that this evidence is yours"
        complain(f"{outcome.path}: {text}")
