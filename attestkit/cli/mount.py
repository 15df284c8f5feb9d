"""`attestkit mount DIR`: the simulator behind the kernel's own files."""

import json
import os
import sys

import click

from attestkit.cli.machine_options import Serve, machine_options
from attestkit.errors import UsageError

__all__ = ["mount"]


@click.command(epilog="--list-faults and --list-scenarios tell what can be made to go wrong.")
@click.argument("folder", metavar="DIR", required=False)
@machine_options
@click.option("--json", "as_json", is_flag=True, help="Say in JSON that it is ready.")
def mount(*, folder: str | None, as_json: bool, serve: Serve) -> None:
    """Mount an emulated TEE guest's kernel files on the empty folder DIR, until interrupted.

    DIR looks like a root: below it are sys/kernel/config/tsm/report, dev/tdx_guest and so on, and
    attestkit/, which controls it. The evidence is simulated: only who trusts the root in
    attestkit/trust-anchor.der believes it.
    """
    if not folder:  # an empty path would be this very folder
        raise UsageError("which folder? attestkit mount DIR")
    place = folder

    def ready() -> None:
        sys.stdout.write(_ready_json(place) if as_json else _ready(place))
        sys.stdout.flush()

    serve(place, ready=ready)


def _ready(folder: str) -> str:
    return f"ready {folder} trust-anchor={folder}/attestkit/trust-anchor.der\n"


def _ready_json(folder: str) -> str:
    control = f"{folder}/attestkit"
    told = {
        "folder": folder,
        "pid": os.getpid(),
        "control": control,  # the folder of what a real machine has not
        "trust_anchor": f"{control}/trust-anchor.der",
    }
    return f"{json.dumps(told)}\n"
