"""`attestkit mount DIR`: the simulator behind the kernel's own files."""

import sys

import click

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


@click.command(epilog="attestkit mount --list-faults tells what can be made to go wrong.")
@click.argument("folder", metavar="DIR", required=False)
@click.option("--seed", metavar="HEX", help="32 bytes that all keys follow from; else random.")
@click.option("--provider", default="tdx_guest", help="tdx_guest, sev_guest or none.")
@click.option("--kernel", default="6.18", help="Release of Linux to behave as (6.18).")
@click.option(
    "--driver", default="mainline", help="/dev/tdx_guest: mainline, C, C', D, D', dstack."
)
@click.option("--quote-version", type=int, help="4, or 5 (TDX 1.5); else the scenario's, or 4.")
@click.option("--scenario", metavar="NAME", help="What is wrong, or odd, with its evidence.")
@click.option("--mr-config-id", metavar="HEX", help="TDX: MRCONFIGID, 48 bytes; else zeros.")
@click.option("--host-data", metavar="HEX", help="SEV-SNP: HOST_DATA, 32 bytes; else zeros.")
@click.option("--vmpl", type=int, default=0, help="SEV-SNP: above 0 there is an SVSM.")
@click.option("--no-certificates", is_flag=True, help="SEV-SNP: the host has none (auxblob).")
@click.option("--fault", "faults", metavar="SPEC", multiple=True, help="What goes wrong: ebusy:3.")
@click.option("--list-faults", is_flag=True, help="Say what can go wrong, and stop.")
@click.option("--list-scenarios", is_flag=True, help="Say what there is for NAME, and stop.")
@click.option(
    "--state-dir", metavar="PATH", help="Keeps seed and runtime log; else a temporary one."
)
@click.option("--qgs", metavar="PLACE", help="Quote generation service: a socket, or vsock:PORT.")
@click.option("--qgs-port", type=int, help="The port that etc/tdx-attest.conf names.")
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
) -> None:
    """Mount an emulated TEE guest's kernel files on the empty folder DIR, until interrupted.

    DIR looks like a root: below it are sys/kernel/config/tsm/report, dev/tdx_guest and so on, and
    attestkit/, which controls it. The evidence is simulated: only who trusts the root in
    attestkit/trust-anchor.der believes it.
    """
    from attestkit.backends.simulator import faults as named  # only this command needs them
    from attestkit.backends.simulator.kernel_fs import serve
    from attestkit.backends.simulator.machine import Setup
    from attestkit.backends.simulator.named_scenarios import named_scenarios

    if list_faults:
        click.echo("\n".join(named.named_faults()))
        return
    if list_scenarios:
        click.echo("\n".join(named_scenarios()))
        return
    if not folder:  # an empty path would be this very folder
        raise UsageError("which folder? attestkit mount DIR")
    if state_dir == "":
        raise UsageError("--state-dir: the value is empty")

    def ready() -> None:
        sys.stdout.write(f"ready {folder} trust-anchor={folder}/attestkit/trust-anchor.der\n")
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
