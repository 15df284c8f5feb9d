"""`attestkit report FILE -o page.html`: evidence and its verdict as one page that needs nothing."""

from pathlib import Path
from typing import Final

import click

from attestkit.cli.exit_codes import complain, decide
from attestkit.cli.options.click_types import PATH, json_option
from attestkit.cli.options.verification import Asked, verification_options
from attestkit.cli.output import console
from attestkit.cli.output.write_output import check_output, refuse_stdout, write_output

__all__ = ["report"]

_EPILOG: Final = (
    "Example: attestkit report evidence --pccs URL -o page.html\n\n"
    "Exit codes: those of attestkit verify."
)


@click.command(epilog=_EPILOG)
@click.argument("file", type=PATH)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    required=True,
    type=PATH,
    help="The HTML file to write; - is stdout.",
)
@verification_options
@json_option
def report(*, file: Path, output: Path, asked: Asked, as_json: bool) -> int:
    """Write evidence and its verdict as one HTML page.

    It shows the registers with their events, certificates and TCB levels. FILE is what attestkit
    verify takes; - is stdin. The page loads nothing and runs nothing. It is written for refused
    evidence too, and then says what was refused and why.
    """
    refuse_stdout(output, as_json=as_json)
    check_output("-o", output, (file, *asked.inputs))
    from attestkit.cli.file_verifier import Judge  # late: loads the verifier
    from attestkit.cli.report.page import page

    outcome = Judge(asked).outcome(file)
    code = decide(outcome.code)
    to_file = write_output("-o", output, page(outcome))
    if as_json:
        console.as_json({"page": str(output), **outcome.to_dict()})
    elif to_file:
        console.verdict(f"{file}: {outcome.verdict}; see {output}", good=code == 0)
    if outcome.error is not None:
        complain(outcome.complaint())
    return code
