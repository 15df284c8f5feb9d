"""The command tree, and one place where errors become exit codes.

People's output goes to stdout through rich (colours only on a terminal); `--json` on every
command gives machine output instead; errors are one line on stderr.
"""

import os
import sys
from typing import Any, Final

import click

from attestkit.cli.doctor import doctor
from attestkit.cli.mount import mount
from attestkit.cli.show import show
from attestkit.errors import (
    AttestKitError,
    BackendError,
    CollateralError,
    ConfigError,
    FormatError,
    PolicyError,
    UsageError,
    VerificationError,
)

__all__ = ["commands", "run"]

# The first that fits decides; PolicyError before the VerificationError it is.
EXIT_CODES: Final[tuple[tuple[type[AttestKitError], int], ...]] = (
    (PolicyError, 4),
    (VerificationError, 2),
    (FormatError, 5),
    (UsageError, 1),
    (ConfigError, 1),
    (BackendError, 3),
    (CollateralError, 3),
)


class _Commands(click.Group):
    """A group for which a reader of its output that has seen enough is no failure."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - whatever a command returns
        """Run the command to its last byte of output, before click has an opinion about it."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            # The interpreter flushes once more at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except SystemExit as stop:  # rich has done the same, and ends with a failure
            if isinstance(stop.__context__, BrokenPipeError):
                return 0
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


commands.add_command(doctor)
commands.add_command(mount)
commands.add_command(show)


def _exit_code(error: AttestKitError) -> int:
    return next((code for kind, code in EXIT_CODES if isinstance(error, kind)), 3)


def run(words: list[str]) -> int:
    """Run one command; return its exit code, with any error told in one line on stderr."""
    try:
        code = commands.main(words, prog_name="attestkit", standalone_mode=False)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.Abort:
        sys.stderr.write("attestkit: interrupted\n")
        return 1
    except click.ClickException as error:
        sys.stderr.write(f"attestkit: {_one_line(error.format_message())}\n")
        return 1
    except AttestKitError as error:
        sys.stderr.write(f"attestkit: {_one_line(str(error))}\n")
        return _exit_code(error)
    return code if isinstance(code, int) else 0


def _one_line(text: str) -> str:
    """Fold white space and show control characters, so that no input can draw on a terminal."""
    folded = " ".join(text.split())
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in folded)
