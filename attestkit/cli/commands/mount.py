"""`attestkit mount DIR`: the simulator behind kernel files."""

import json
import os
import sys

import click

from attestkit._system.process_hardening import discard_output
from attestkit.cli.options import option
from attestkit.cli.options.emulator import MountServer, machine_options
from attestkit.cli.options.option import Command
from attestkit.cli.options.shell_values import complete_folder
from attestkit.errors import UsageError


@click.command(
    cls=Command,
    example="mount /tmp/tee --fault ebusy:3",
    codes="013",
    meanings={0: "ended by a signal", 3: "FUSE or device error"},
)
@click.argument("folder", metavar="DIR", required=False, shell_complete=complete_folder)
@machine_options
@option.json
def mount(*, folder: str | None, as_json: bool, serve: MountServer) -> None:
    """Mount the simulator as kernel files.

    The files are mounted on the empty folder DIR until a signal ends the command. DIR looks like a
    root file system with sys/kernel/config/tsm/report, dev/tdx_guest and so on, and attestkit/ for
    control. The evidence is simulated: it verifies only with the trust anchor
    attestkit/trust-anchor.der. When the files are ready, one line is printed, with --json an
    object.
    """
    if not folder:  # an empty path would be the current folder
        raise UsageError("DIR: missing; use attestkit mount DIR", reason="missing")
    mount_point = folder
    failures: list[OSError] = []

    def ready() -> bool:  # called by libfuse, which discards exceptions
        try:
            sys.stdout.write(_ready_json(mount_point) if as_json else _ready(mount_point))
            sys.stdout.flush()
        except OSError as error:
            failures.append(error)
        return not failures

    serve(mount_point, ready=ready)
    if failures:  # also for a closed pipe: the parent process waits for the line
        discard_output(sys.stdout)
        text = f"stdout: cannot write: {failures[0].strerror}"
        raise UsageError(text, reason="wrong_value") from failures[0]


def _ready(folder: str) -> str:
    return f"ready {folder} trust-anchor={folder}/attestkit/trust-anchor.der\n"


def _ready_json(folder: str) -> str:
    control = f"{folder}/attestkit"
    fields = {
        "folder": folder,
        "pid": os.getpid(),
        "control": control,  # files that real machines do not have
        "trust_anchor": f"{control}/trust-anchor.der",
    }
    return f"{json.dumps(fields)}\n"
