"""The command tree, and one place where errors become exit codes.

People's output goes to stdout through rich (colours only on a terminal); `--json` on every
command gives machine output instead; errors are one line on stderr.
"""

import errno
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Final

import click

from attestkit._sanitize import without_hex
from attestkit.cli.exit_codes import (
    INTERRUPTED,
    USAGE,
    complain,
    decided,
    drop,
    exit_code,
    tell,
)
from attestkit.cli.options.shell_values import COMPLETE
from attestkit.errors import AttestKitError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

__all__ = ["COMMANDS", "command_tree", "run_words"]

# A command is the function of its name (`_` for `-`) in the module of its name, which is loaded
# once it is called: what one of them needs is not the others' to wait for.
COMMANDS: Final = {
    "attest": "Make evidence about this machine.",
    "bench": "Measure this machine beside the peers.",
    "completion": "Print what makes a shell complete attestkit's words.",
    "doctor": "Say what was found, what is missing, and what to do.",
    "ear": "Check a signed verdict, and show what it says.",
    "emit": "Extend RTMR3 by an event, and log it.",
    "key": "Derive a key of the app.",
    "mount": "Mount the simulator as the kernel's files.",
    "policy": "Pin what evidence shows, as a policy ready to edit.",
    "quote": "Get a raw quote from the hardware.",
    "replay": "Replay an event log into registers.",
    "report": "Write evidence and its verdict as one HTML page.",
    "run": "Run a program with the simulator as the kernel's files.",
    "serve": "Serve the guest agent API.",
    "show": "Show any quote, log, evidence or certificate.",
    "verify": "Verify evidence: a verdict per file.",
    "verify-many": "Verify a fleet's evidence: a line of JSON for each.",
}
_EPILOG: Final = (
    "Exit codes: 0 good, 1 usage, 2 evidence rejected, 3 network or device, 4 refused by policy, "
    "5 unreadable input.\n\nattestkit COMMAND --help tells of a command."
)
# What writing to a full disk, or to a descriptor that is none, fails with.
_UNWRITABLE: Final = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF, errno.EROFS}
)


class _Commands(click.Group):
    """A group that loads the command that is called.

    A reader of its output that has seen enough is no failure: a command whose exit code is a
    verdict has said it beforehand, with `decide`.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load a command; None if there is none of that name."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        command: click.Command = getattr(import_module(f"{__name__}.commands.{name}"), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands, without loading any."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> "list[CompletionItem]":
        """Return commands and options that begin so, without loading any."""
        from click.shell_completion import CompletionItem

        items = COMMANDS.items()
        found = [CompletionItem(n, help=text) for n, text in items if n.startswith(incomplete)]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the words before the command; the help that one of them asks for is output, too."""
        try:
            return super().parse_args(ctx, args)
        except BrokenPipeError:
            drop(sys.stdout)
            raise click.exceptions.Exit(0) from None

    def invoke(self, ctx: click.Context) -> object:
        """Run the command to its last byte of output, before click has an opinion about it."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            drop(sys.stdout)
            return decided(ctx)
        except KeyboardInterrupt as stop:  # click would begin a line of its own
            raise click.Abort from stop
        except SystemExit as stop:  # rich has done the same, and ends with a failure
            if isinstance(stop.__context__, BrokenPipeError):
                return decided(ctx)
            raise
        return result


@click.group(
    cls=_Commands,
    epilog=_EPILOG,
    no_args_is_help=False,
    subcommand_metavar="COMMAND [ARGS]...",
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option("--version", is_flag=True, help="Show the version and exit.")
@click.pass_context
def command_tree(ctx: click.Context, *, version: bool) -> int:
    """Quotes, event logs, evidence and keys of confidential VMs."""
    if version:
        from attestkit._version import own_version

        click.echo(f"attestkit, version {own_version()}")
        ctx.exit()
    if ctx.invoked_subcommand is None:
        tell(f"{ctx.get_help()}\n")
        return USAGE
    return 0


def run_words(words: list[str]) -> int:
    """Run one command; return its exit code, with any error told in one line on stderr."""
    _open_closed()
    if asked := os.environ.get(COMPLETE):
        from attestkit.cli.commands.completion import (
            complete,  # late: for the shell's questions alone
        )

        return complete(command_tree, asked)
    try:
        code = command_tree.main(words, prog_name="attestkit", standalone_mode=False)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except (click.Abort, KeyboardInterrupt):
        complain("interrupted")
        return INTERRUPTED
    except (click.ClickException, AttestKitError) as error:
        complain(_text(error))
        return exit_code(error) if isinstance(error, AttestKitError) else USAGE
    except OSError as error:  # all others are wrapped: this is about the output
        if error.errno not in _UNWRITABLE:
            raise
        drop(sys.stdout)
        complain(f"stdout cannot be written: {error.strerror}")
        return USAGE
    return code if isinstance(code, int) else 0


def _open_closed() -> None:
    """Have what goes to a stream that whoever started us closed go nowhere.

    Its descriptor is taken then, too, and does not become that of a file.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            # Not to be closed, and so not missed at the end by Python's development mode.
            setattr(sys, name, os.fdopen(nowhere, "w", encoding="utf-8", closefd=False))


def _text(error: click.ClickException | AttestKitError) -> str:
    """Return what went wrong, and where to read how it is done; a stray seed is not repeated."""
    if isinstance(error, click.UsageError):
        path = "attestkit" if error.ctx is None else error.ctx.command_path
        return f"{without_hex(error.format_message()).rstrip('.')}. See {path} --help."
    if isinstance(error, click.ClickException):
        return without_hex(error.format_message())
    return str(error)
