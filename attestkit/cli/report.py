"""`attestkit report FILE -o page.html`: evidence and its verdict as one page that needs nothing."""

from pathlib import Path

import click

from attestkit.cli import render
from attestkit.cli.asked import Asked, verification_options
from attestkit.cli.exit_codes import complain, decide
from attestkit.cli.write_output import check_output, is_stdout, write_output
from attestkit.errors import UsageError

__all__ = ["report"]


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    metavar="PAGE",
    required=True,
    type=click.Path(path_type=Path),
    help="The HTML file to write; - is stdout.",
)
@verification_options
@click.option("--json", "as_json", is_flag=True, help="Machine output on stdout.")
def report(*, file: Path, output: Path, asked: Asked, as_json: bool) -> int:
    """Write one HTML page: verdict, registers with their events, certificates, TCB levels.

    FILE is what attestkit verify takes; - is stdin. The page loads nothing and runs nothing. It is
    written for refused evidence too, and then says what was refused and why; the exit code is that
    of attestkit verify.
    """
    if as_json and is_stdout(output):
        raise UsageError(f"-o {output} and --json: both would go to stdout")
    check_output("-o", output, (file, *asked.inputs))
    from attestkit.cli.judge import Judge  # late: loads the verifier
    from attestkit.cli.report_page import page

    outcome = Judge(asked).outcome(file)
    code = decide(outcome.code)
    to_file = write_output("-o", output, page(outcome))
    if as_json:
        render.as_json({"page": str(output), **outcome.to_dict()})
    elif to_file:
        render.verdict(f"{file}: {outcome.verdict}; see {output}", good=code == 0)
    if outcome.error is not None:
        complain(outcome.complaint())
    return code
