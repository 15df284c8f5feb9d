"""`attestkit report FILE -o page.html`: evidence and its result as one self-contained page."""

from pathlib import Path

import click

from attestkit.cli.exit_codes import print_error, set_exit_code
from attestkit.cli.options import option
from attestkit.cli.options.option import PATH, Command
from attestkit.cli.options.verification import VerificationOptions, verification_options
from attestkit.cli.output import console
from attestkit.cli.output.write_output import check_output, refuse_stdout, write_output


@click.command(
    cls=Command, example="report evidence --pccs URL --nonce $NONCE -o page.html", codes="012345"
)
@click.argument("file", type=PATH)
@option.output("HTML file to write; - is stdout.", required=True)
@verification_options
@option.json
def report(*, file: Path, output: Path, options: VerificationOptions, as_json: bool) -> int:
    """Write evidence and its verification result as one HTML page.

    The page shows the registers with their events, certificates and TCB levels, without scripts or
    external resources. FILE is evidence as for attestkit verify; - is stdin. For rejected evidence
    the page shows the reason.
    """
    refuse_stdout(output, as_json=as_json)
    check_output("-o", output, (file, *options.inputs))
    from attestkit.cli.file_verifier import FileVerifier  # lazy: loads the verifier
    from attestkit.cli.report.page import render_page

    outcome = FileVerifier(options).verify(file)
    code = set_exit_code(outcome.code)
    to_file = write_output("-o", output, render_page(outcome))
    if as_json:
        console.as_json({"page": str(output), **outcome.to_dict()})
    elif to_file:
        console.verdict(f"{file}: {outcome.verdict}; see {output}", good=code == 0)
    if outcome.error is not None:
        print_error(outcome.error_line())
    return code
