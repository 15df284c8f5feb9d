"""`attestkit mount DIR`: the simulator behind the kernel's own files."""

import json
import os
import sys
from typing import Final

import click

from attestkit.cli.exit_codes import drop
from attestkit.cli.options.click_types import json_option
from attestkit.cli.options.emulator import Serve, machine_options
from attestkit.cli.options.shell_values import complete_folder
from attestkit.errors import UsageError

__all__ = ["mount"]


_EPILOG: Final = (
    "Example: attestkit mount /tmp/tee --fault ebusy:3\n\n"
    "Exit codes: 0 ended by a signal, 1 usage, 3 what FUSE or the machine refused."
)


@click.command(epilog=_EPILOG)
@click.argument("folder", metavar="DIR", required=False, shell_complete=complete_folder)
@machine_options
@json_option
def mount(*, folder: str | None, as_json: bool, serve: Serve) -> None:
    """Mount the simulator as the kernel's files.

    They are on the empty folder DIR until a signal ends this. DIR looks like a root: below it are
    sys/kernel/config/tsm/report, dev/tdx_guest and so on, and attestkit/, which controls it. The
    evidence is simulated: only who trusts the root in attestkit/trust-anchor.der believes it. A
    line says that the files are there; with --json it is an object.
    """
    if not folder:  # an empty path would be this very folder
        raise UsageError("which folder? attestkit mount DIR")
    place = folder
    failures: list[OSError] = []

    def ready() -> bool:  # libfuse is the caller, and drops what is raised
        try:
            sys.stdout.write(_ready_json(place) if as_json else _ready(place))
            sys.stdout.flush()
        except OSError as error:
            failures.append(error)
        return not failures

    serve(place, ready=ready)
    if failures:  # also a closed pipe: whoever started this waits for the line
        drop(sys.stdout)
        text = f"stdout cannot be written: {failures[0].strerror}"
        raise UsageError(text) from failures[0]


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
