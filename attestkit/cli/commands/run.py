"""`attestkit run -- CMD`: a program with the simulator behind the kernel's own file names."""

from typing import Final

import click

from attestkit.cli.exit_codes import complain
from attestkit.cli.options.emulator import Serve, machine_options
from attestkit.cli.options.shell_values import complete_file
from attestkit.errors import UsageError

__all__ = ["run"]


_EPILOG: Final = (
    "Example: attestkit run --fault ebusy:3 -- ls /sys/kernel/config/tsm/report\n\n"
    "Exit codes: CMD's; 128+n if signal n ended it, 126 if it cannot be started, 127 if it is not "
    "found; before it is started 1 usage, 3 what FUSE or the machine refused, also if its machine "
    "was ended."
)


@click.command(
    context_settings={"allow_interspersed_args": False},  # what follows CMD is CMD's
    epilog=_EPILOG,
)
@click.argument(
    "words",
    metavar="CMD...",
    nargs=-1,
    type=click.UNPROCESSED,
    shell_complete=complete_file,
)
@machine_options
def run(*, words: tuple[str, ...], serve: Serve) -> int:
    """Run a program with the simulator as the kernel's files.

    CMD finds /sys/kernel/config/tsm/report, /dev/tdx_guest and so on, in a mount namespace that
    ends with it; all else is as it was, and so are its user, folder, environment, input and
    output. No root is needed where user namespaces are allowed. The evidence is simulated: only
    who trusts the root in /run/attestkit/trust-anchor.der believes it; /run/attestkit also has
    collateral.json and faults.

    What CMD leaves running is ended.
    """
    from attestkit.emulator import run_program  # only this command needs it

    if not words or not words[0]:
        raise UsageError("which program? attestkit run -- CMD")
    return run_program.run(words, serve, complain=complain)
