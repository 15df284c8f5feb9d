"""`attestkit mount DIR`: the simulator behind the kernel's own files."""

import json
import os
import sys
from collections.abc import Sequence
from typing import Final

import click

from attestkit.cli import render
from attestkit.cli.complete import complete_fault, complete_folder, complete_scenario
from attestkit.cli.parameters import json_option
from attestkit.errors import UsageError

__all__ = ["mount"]


def _hex(text: str | None, what: str, size: int) -> bytes | None:
    """Read an option in hex of so many bytes; None stays None."""
    if text is None:
        return None
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(value) != size:
        raise UsageError(f"{what} is {size} bytes in hex")
    return value


_EPILOG: Final = (
    "Example: attestkit mount /tmp/tee --fault ebusy:3\n\n"
    "Exit codes: 0 ended by a signal, 1 usage, 3 what FUSE or the machine refused."
)


@click.command(epilog=_EPILOG)
@click.argument("folder", metavar="DIR", required=False, shell_complete=complete_folder)
@click.option("--seed", metavar="HEX", help="32 bytes that all keys follow from; else random.")
@click.option(
    "--provider",
    metavar="NAME",
    default="tdx_guest",
    show_default=True,
    help="Whose reports: tdx_guest, sev_guest or none.",
)
@click.option(
    "--kernel",
    metavar="RELEASE",
    default="6.18",
    show_default=True,
    help="The release of Linux to behave as.",
)
@click.option(
    "--driver",
    metavar="NAME",
    default="mainline",
    show_default=True,
    help="Whose /dev/tdx_guest: mainline, C, C', D, D' or dstack.",
)
@click.option(
    "--quote-version",
    metavar="N",
    type=int,
    help="4, or 5 (TDX 1.5); else the scenario's, or 4.",
)
@click.option(
    "--scenario",
    metavar="NAME",
    shell_complete=complete_scenario,
    help="What is wrong, or odd, with its evidence.",
)
@click.option("--mr-config-id", metavar="HEX", help="TDX: MRCONFIGID, 48 bytes; else zeros.")
@click.option("--host-data", metavar="HEX", help="SEV-SNP: HOST_DATA, 32 bytes; else zeros.")
@click.option(
    "--vmpl", metavar="N", type=int, default=0, help="SEV-SNP: 0 to 3; above 0 there is an SVSM."
)
@click.option("--no-certificates", is_flag=True, help="SEV-SNP: the host has none (auxblob).")
@click.option(
    "--fault",
    "faults",
    metavar="SPEC",
    multiple=True,
    shell_complete=complete_fault,
    help="What goes wrong, as in ebusy:3; may be repeated.",
)
@click.option("--list-faults", is_flag=True, help="Say what there is for SPEC, and stop.")
@click.option("--list-scenarios", is_flag=True, help="Say what there is for NAME, and stop.")
@click.option(
    "--state-dir",
    metavar="DIR",
    shell_complete=complete_folder,
    help="Keeps seed and runtime log; else a temporary one.",
)
@click.option("--qgs", metavar="PLACE", help="Quote generation service: a socket, or vsock:PORT.")
@click.option(
    "--qgs-port", metavar="PORT", type=int, help="The port that etc/tdx-attest.conf names."
)
@json_option
def mount(  # noqa: PLR0913 - one per option
    *,
    folder: str | None,
    seed: str | None,
    provider: str,
    kernel: str,
    driver: str,
    quote_version: int | None,
    scenario: str | None,
    mr_config_id: str | None,
    host_data: str | None,
    vmpl: int,
    no_certificates: bool,
    faults: tuple[str, ...],
    list_faults: bool,
    list_scenarios: bool,
    state_dir: str | None,
    qgs: str | None,
    qgs_port: int | None,
    as_json: bool,
) -> None:
    """Mount the simulator as the kernel's files.

    They are on the empty folder DIR until a signal ends this. DIR looks like a root: below it are
    sys/kernel/config/tsm/report, dev/tdx_guest and so on, and attestkit/, which controls it. The
    evidence is simulated: only who trusts the root in attestkit/trust-anchor.der believes it.
    """
    from attestkit.backends.simulator import faults as named  # only this command needs them
    from attestkit.backends.simulator.kernel_fs import serve
    from attestkit.backends.simulator.machine import Setup
    from attestkit.backends.simulator.named_scenarios import named_scenarios

    if list_faults or list_scenarios:
        lines = named.named_faults() if list_faults else named_scenarios()
        _list("faults" if list_faults else "scenarios", lines, as_json=as_json)
        return
    if not folder:  # an empty path would be this very folder
        raise UsageError("which folder? attestkit mount DIR")
    if state_dir == "":
        raise UsageError("--state-dir: the value is empty")

    def ready() -> None:
        place = str(folder)
        line = f"ready {place} trust-anchor={place}/attestkit/trust-anchor.der\n"
        sys.stdout.write(_ready_json(place) if as_json else line)
        sys.stdout.flush()

    serve(
        folder,
        setup=Setup(
            provider=provider,
            kernel=kernel,
            driver=driver,
            quote_version=quote_version,
            scenario=scenario,
            mr_config_id=_hex(mr_config_id, "--mr-config-id", 48) or bytes(48),
            host_data=_hex(host_data, "--host-data", 32) or bytes(32),
            vmpl=vmpl,
            certificates=not no_certificates,
            qgs_port=qgs_port,
        ),
        seed=_hex(seed, "--seed", 32),
        faults=named.Faults(map(named.Fault.parse, faults)),
        state_dir=state_dir,
        qgs=qgs,
        ready=ready,
    )


def _list(what: str, lines: Sequence[str], *, as_json: bool) -> None:
    """Print a line each: what it is written as, and what goes wrong then."""
    if as_json:
        pairs = (line.split(maxsplit=1) for line in lines)
        render.as_json({what: [{"name": name, "text": text} for name, text in pairs]})
        return
    click.echo("\n".join(lines))


def _ready_json(folder: str) -> str:
    control = f"{folder}/attestkit"
    told = {
        "folder": folder,
        "pid": os.getpid(),
        "control": control,  # the folder of what a real machine has not
        "trust_anchor": f"{control}/trust-anchor.der",
    }
    return f"{json.dumps(told)}\n"
