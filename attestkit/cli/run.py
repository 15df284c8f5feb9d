"""`attestkit run -- CMD`: a program with the simulator behind the kernel's own file names."""

import click

from attestkit.cli.exit_codes import complain
from attestkit.cli.machine_options import Serve, machine_options
from attestkit.errors import UsageError

__all__ = ["run"]


@click.command(
    context_settings={"allow_interspersed_args": False},  # what follows CMD is CMD's
    epilog="--list-faults and --list-scenarios tell what can be made to go wrong.",
)
@click.argument("words", metavar="CMD...", nargs=-1, type=click.UNPROCESSED)
@machine_options
def run(*, words: tuple[str, ...], serve: Serve) -> int:
    """Run CMD on an emulated TEE guest: the kernel's files are at their own paths, for it alone.

    It finds /sys/kernel/config/tsm/report, /dev/tdx_guest and so on, in a mount namespace that
    ends with it; all else is as it was, and so are its user, folder, environment, input and
    output. No root is needed where user namespaces are allowed. The evidence is simulated: only
    who trusts the root in /run/attestkit/trust-anchor.der believes it; /run/attestkit also has
    collateral.json and faults.

    The exit code is CMD's, 128+n if signal n ended it; 127 if CMD is not found, 126 if it cannot be
    started. What CMD leaves running is ended.
    """
    from attestkit.backends.simulator import namespace_run  # only this command needs it

    if not words or not words[0]:
        raise UsageError("which program? attestkit run -- CMD")
    return namespace_run.run(words, serve, complain=complain)
