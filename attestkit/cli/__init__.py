"""The command tree, and one place where errors become exit codes.

People's output goes to stdout through rich (colours only on a terminal); `--json` on every
command gives machine output instead; errors are one line on stderr.
"""

import os
import sys
from typing import Any

import click

from attestkit.cli.bench import bench
from attestkit.cli.doctor import doctor
from attestkit.cli.exit_codes import complain, decided, exit_code
from attestkit.cli.mount import mount
from attestkit.cli.policy import policy
from attestkit.cli.replay import replay
from attestkit.cli.report import report
from attestkit.cli.run import run as run_on_machine
from attestkit.cli.show import show
from attestkit.cli.verify import verify
from attestkit.errors import AttestKitError

__all__ = ["commands", "run"]


class _Commands(click.Group):
    """A group for which a reader of its output that has seen enough is no failure.

    A command whose exit code is a verdict has said it beforehand, with `decide`.
    """

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - whatever a command returns
        """Run the command to its last byte of output, before click has an opinion about it."""
        try:
            result = super().invoke(ctx)
            if sys.stdout is not None:  # it was closed from the start
                sys.stdout.flush()
        except BrokenPipeError:
            # The interpreter flushes once more at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return decided(ctx)
        except SystemExit as stop:  # rich has done the same, and ends with a failure
            if isinstance(stop.__context__, BrokenPipeError):
                return decided(ctx)
            raise
        return result


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="attestkit")
def commands() -> None:
    """Quotes, event logs, evidence and keys of confidential VMs."""


@commands.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    help="Serve the guest agent API; the same as python -m attestkit.serve.",
)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def serve(options: tuple[str, ...]) -> int:
    """Hand everything to the server's own command line."""
    from attestkit.serve.__main__ import main  # the server is an extra, and slow to import

    return main(list(options))


for command in (bench, doctor, mount, policy, replay, report, run_on_machine, show, verify):
    commands.add_command(command)


def run(words: list[str]) -> int:
    """Run one command; return its exit code, with any error told in one line on stderr."""
    try:
        code = commands.main(words, prog_name="attestkit", standalone_mode=False)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.Abort:
        complain("interrupted")
        return 1
    except click.ClickException as error:
        complain(error.format_message())
        return 1
    except AttestKitError as error:
        complain(str(error))
        return exit_code(error)
    return code if isinstance(code, int) else 0
