"""The command tree, and the conversion of errors to exit codes.

Readable output goes to stdout through rich, with colours on a terminal only; `--json` selects
JSON output; errors are one line on stderr.
"""

import errno
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Final

import click

from attestkit._sanitize import without_hex
from attestkit._system.process_hardening import discard_output
from attestkit.cli.exit_codes import (
    INTERRUPTED,
    USAGE,
    chosen_exit_code,
    exit_code,
    print_error,
    write_stderr,
)
from attestkit.errors import AttestKitError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

__all__ = ["COMMANDS", "command_tree", "run_command"]

# A command is a function in the module of the same name (`_` for `-`). The module is imported when
# the command is called, so that a command pays only for its own imports.
COMMANDS: Final = {
    "attest": "Create evidence about this machine.",
    "bench": "Measure attestkit on this machine.",
    "completion": "Print a completion script for a shell.",
    "connect": "Prove a server, before anything is sent to it.",
    "curl": "Send one request to a proven server.",
    "doctor": "Diagnose this machine and suggest remedies.",
    "ear": "Verify a signed attestation result (EAR) and show it.",
    "emit": "Extend RTMR3 by an event and log it.",
    "env": "Seal and open environment variables of an app.",
    "key": "Derive an app key.",
    "keys": "Get keys from a KMS.",
    "measure": "Compute the expected registers of a guest.",
    "mount": "Mount the simulator as kernel files.",
    "policy": "Write a policy from the values of known-good evidence.",
    "quote": "Get a raw quote from the hardware.",
    "replay": "Replay an event log into registers.",
    "report": "Write evidence and its verification result as one HTML page.",
    "run": "Run a program with the simulator as kernel files.",
    "serve": "Serve the guest agent API.",
    "show": "Show a quote, event log, evidence or certificate.",
    "verify": "Verify evidence files.",
    "verify-key": "Verify that a derived key is a key of an app.",
    "verify-many": "Verify evidence in bulk, with one line of JSON per result.",
}
_EPILOG: Final = (
    "Exit codes: 0 good, 1 usage, 2 evidence rejected, 3 network or device, 4 refused by policy, "
    "5 unreadable input.\n\nSee attestkit COMMAND --help for a command's options."
)
# Errors of writing to a full disk or to a closed descriptor.
_UNWRITABLE: Final = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF, errno.EROFS}
)


class _Commands(click.Group):
    """A group that imports a command when it is called.

    A closed pipe at stdout is not an error. A command whose exit code depends on its result stores
    it with `set_exit_code` before it writes output.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return the command `cmd_name`, such as `verify-key`; None if it is unknown."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        command: click.Command = getattr(import_module(f"{__name__}.commands.{name}"), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> "list[CompletionItem]":
        """Return the commands and options that begin with `incomplete`, importing no command."""
        from click.shell_completion import CompletionItem

        items = COMMANDS.items()
        found = [CompletionItem(n, help=text) for n, text in items if n.startswith(incomplete)]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the options before the command; --help may write to a closed pipe.

        Returns:
            The words that remain for click.
        """
        try:
            return super().parse_args(ctx, args)
        except BrokenPipeError:
            discard_output(sys.stdout)
            raise click.exceptions.Exit(0) from None

    def invoke(self, ctx: click.Context) -> object:
        """Run the command and flush its output before click handles exceptions.

        Returns:
            What the command returns, its exit code; after a closed pipe the stored one.
        """
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            discard_output(sys.stdout)
            return chosen_exit_code(ctx)
        except KeyboardInterrupt as stop:  # click would print an additional line
            raise click.Abort from stop
        except SystemExit as stop:  # rich exits with a failure on a closed pipe
            if isinstance(stop.__context__, BrokenPipeError):
                return chosen_exit_code(ctx)
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
        from attestkit._package import own_version

        click.echo(f"attestkit, version {own_version()}")
        ctx.exit()
    if ctx.invoked_subcommand is None:
        write_stderr(f"{ctx.get_help()}\n")
        return USAGE
    return 0


def run_command(words: list[str]) -> int:
    """Run one command and return its exit code; errors are one line on stderr.

    `words` are the arguments of the program, without its own name.
    """
    _reopen_closed_streams()
    if "_ATTESTKIT_COMPLETE" in os.environ:  # click completes words instead of running a command
        import_module("attestkit.cli.commands.completion")
    try:
        code = command_tree.main(words, prog_name="attestkit", standalone_mode=False)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except (click.Abort, KeyboardInterrupt):
        print_error("interrupted")
        return INTERRUPTED
    except (click.ClickException, AttestKitError) as error:
        print_error(_format_error(error))
        return exit_code(error) if isinstance(error, AttestKitError) else USAGE
    except OSError as error:  # other OSErrors are wrapped by now; this one is from stdout
        if error.errno not in _UNWRITABLE:
            raise
        discard_output(sys.stdout)
        print_error(f"stdout: cannot write: {error.strerror}")
        return USAGE
    return code if isinstance(code, int) else 0


def _reopen_closed_streams() -> None:
    """Open /dev/null in place of a stdout or stderr that is closed at start.

    Otherwise a file that is opened later could get the descriptor of the closed stream.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_WRONLY)
            # closefd=False avoids a ResourceWarning at exit.
            setattr(sys, name, os.fdopen(null, "w", encoding="utf-8", closefd=False))


def _format_error(error: click.ClickException | AttestKitError) -> str:
    """Return the text of an error; a usage error also names --help.

    Long hex in an error of click is left out, because it may be a seed.
    """
    if isinstance(error, click.UsageError):
        path = "attestkit" if error.ctx is None else error.ctx.command_path
        return f"{without_hex(error.format_message()).rstrip('.')}. See {path} --help."
    if isinstance(error, click.ClickException):
        return without_hex(error.format_message())
    return str(error)
