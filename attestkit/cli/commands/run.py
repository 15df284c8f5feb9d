"""`attestkit run -- CMD`: a program with the simulator as kernel files."""

import click

from attestkit.cli.exit_codes import print_error
from attestkit.cli.options.emulator import MountServer, machine_options
from attestkit.cli.options.option import Command
from attestkit.cli.options.shell_values import complete_file
from attestkit.errors import UsageError


@click.command(
    cls=Command,
    example="run --fault ebusy:3 -- ls /sys/kernel/config/tsm/report",
    codes="013",
    meanings={
        0: "or another code of CMD: 128+n if signal n ended it, 126 if it cannot be started, 127 "
        "if it is not found",
        3: "FUSE or device error, also if the emulator was killed",
    },
    context_settings={"allow_interspersed_args": False},  # options after CMD are CMD's
)
@click.argument(
    "words",
    metavar="CMD...",
    nargs=-1,
    type=click.UNPROCESSED,
    shell_complete=complete_file,
)
@machine_options
def run(*, words: tuple[str, ...], serve: MountServer) -> int:
    """Run a program with the simulator as kernel files.

    CMD runs in its own mount namespace with /sys/kernel/config/tsm/report, /dev/tdx_guest and so
    on. Other files, the user, current folder, environment, input and output do not change. Root is
    not needed where user namespaces are allowed. The evidence is simulated: it verifies only with
    the trust anchors /run/attestkit/roots.json, of which trust-anchor.der is that of the platform;
    /run/attestkit also has collateral.json and faults. With --gpus, NVIDIA's libraries are first in
    LD_LIBRARY_PATH.

    Processes that CMD leaves behind are killed.
    """
    from attestkit.emulator import run_program  # lazy: only this command needs it

    if not words or not words[0]:
        raise UsageError("CMD: missing; use attestkit run -- CMD", reason="missing")
    return run_program.run(
        words,
        serve,
        complain=print_error,
        metadata_service=serve.has_metadata_service,
        gpus=serve.has_gpus,
    )
