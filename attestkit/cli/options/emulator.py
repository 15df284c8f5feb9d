"""The options of the commands that emulate a machine: which one, and what goes wrong there."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import click

from attestkit.cli.options.click_types import PATH, read_hex
from attestkit.cli.options.shell_values import complete_fault, complete_folder, complete_scenario
from attestkit.cli.output import console
from attestkit.errors import UsageError

if TYPE_CHECKING:
    from attestkit.emulator.machine import Setup

__all__ = ["Serve", "machine_options"]


class Serve(Protocol):
    """`kernel_fs.serve` for the machine that was asked for."""

    def __call__(
        self, folder: str, *, ready: Callable[[], bool | None], runtime_log: str | None = None
    ) -> None:
        """Mount its files on a folder, until it is told to stop."""


_OPTIONS: Final = (
    click.option(
        "--seed",
        metavar="HEX",
        help="32 bytes that all keys follow from, or @FILE, as --seed-file; else random.",
    ),
    click.option(
        "--seed-file",
        metavar="FILE",
        type=PATH,
        help="A file with the seed, raw or in hex: who sees command lines does not see it.",
    ),
    click.option(
        "--provider",
        metavar="NAME",
        help="Whose reports: tdx_guest, sev_guest or none; else the scenario's.",
    ),
    click.option(
        "--kernel",
        metavar="RELEASE",
        default="6.18",
        show_default=True,
        help="The release of Linux to behave as.",
    ),
    click.option(
        "--driver",
        metavar="NAME",
        default="mainline",
        show_default=True,
        help="Whose /dev/tdx_guest: mainline, C, C', D, D' or dstack.",
    ),
    click.option(
        "--quote-version",
        metavar="N",
        type=int,
        help="4, or 5 (TDX 1.5); else the scenario's.",
    ),
    click.option("--mr-config-id", metavar="HEX", help="TDX: MRCONFIGID, 48 bytes; else zeros."),
    click.option("--host-data", metavar="HEX", help="SEV-SNP: HOST_DATA, 32 bytes; else zeros."),
    click.option(
        "--vmpl",
        metavar="N",
        type=int,
        default=0,
        help="SEV-SNP: 0 to 3; above 0 there is an SVSM.",
    ),
    click.option("--no-certificates", is_flag=True, help="SEV-SNP: the host has none (auxblob)."),
    click.option(
        "--scenario",
        metavar="NAME",
        shell_complete=complete_scenario,
        help="What is wrong, or odd, with the evidence.",
    ),
    click.option("--list-scenarios", is_flag=True, help="Say what scenarios there are, and stop."),
    click.option(
        "--fault",
        "faults",
        metavar="SPEC",
        multiple=True,
        shell_complete=complete_fault,
        help="What goes wrong, as in ebusy:3; may be repeated.",
    ),
    click.option("--list-faults", is_flag=True, help="Say what can go wrong, and stop."),
    click.option(
        "--state-dir",
        metavar="DIR",
        shell_complete=complete_folder,
        help="Keeps seed and runtime log; else a temporary one.",
    ),
    click.option(
        "--qgs", metavar="PLACE", help="Quote generation service: a socket, or vsock:PORT."
    ),
    click.option(
        "--qgs-port", metavar="PORT", type=int, help="The port that etc/tdx-attest.conf names."
    ),
)


def machine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command these options; it gets them as `serve`, made before it runs.

    With --list-faults or --list-scenarios it does not run at all.
    """

    @functools.wraps(command)
    def with_machine(
        *,
        seed: str | None,
        seed_file: Path | None,
        faults: tuple[str, ...],
        list_faults: bool,
        list_scenarios: bool,
        state_dir: str | None,
        qgs: str | None,
        **given: Any,
    ) -> object:
        from attestkit.backends.simulator.faults import (
            fault_specs as named,  # only these commands need them
        )
        from attestkit.emulator.fuse_mount import serve

        if list_faults or list_scenarios:
            what = "faults" if list_faults else "scenarios"
            lines = named.named_faults() if list_faults else _scenarios()
            _list(what, lines, as_json=given.get("as_json", False))
            return None
        if state_dir == "":
            raise UsageError("--state-dir: the value is empty")
        machine = functools.partial(
            serve,
            setup=_setup({name: given.pop(name) for name in _SETUP}),
            seed=_seed(seed, seed_file),
            faults=named.Faults(map(named.Fault.parse, faults)),
            state_dir=state_dir,
            qgs=qgs,
        )
        return command(serve=machine, **given)

    for option in reversed(_OPTIONS):
        with_machine = option(with_machine)
    return with_machine


def _list(what: str, lines: Sequence[str], *, as_json: bool) -> None:
    """Print a line each: what it is written as, and what goes wrong then."""
    if as_json:
        pairs = (line.split(maxsplit=1) for line in lines)
        console.as_json({what: [{"name": name, "text": text} for name, text in pairs]})
        return
    click.echo("\n".join(lines))


_SETUP: Final = (
    *("provider", "kernel", "driver", "quote_version", "mr_config_id", "host_data", "vmpl"),
    *("no_certificates", "qgs_port", "scenario"),
)


def _scenarios() -> tuple[str, ...]:
    from attestkit.backends.simulator.scenarios.named import named_scenarios  # a long table

    return named_scenarios()


def _setup(given: dict[str, Any]) -> "Setup":
    """Return the kind of machine that these options mean."""
    from attestkit.backends.simulator.scenarios.named import chosen_scenario
    from attestkit.emulator.machine import Setup  # only these commands need them

    provider = given.pop("provider")
    platform = {None: None, "sev_guest": "snp"}.get(provider, "tdx")
    scenario = chosen_scenario(given.pop("scenario"), platform)
    version = given.pop("quote_version")
    mr_config_id = _hex(given.pop("mr_config_id"), "--mr-config-id", 48)
    host_data = _hex(given.pop("host_data"), "--host-data", 32)
    return Setup(
        provider=provider or ("sev_guest" if scenario.platform == "snp" else "tdx_guest"),
        scenario=scenario,
        quote_version=version or scenario.quote_version or 4,
        mr_config_id=mr_config_id or bytes(48),
        host_data=host_data or bytes(32),
        certificates=not given.pop("no_certificates"),
        **given,
    )


def _seed(text: str | None, file: Path | None) -> bytes | None:
    """Return the seed that the options name; None if they name none."""
    if text is not None and file is not None:
        raise UsageError("--seed and --seed-file: one of them")
    if text is not None and text.startswith("@"):
        file = Path(text[1:])
    if file is None:
        return _hex(text, "--seed", 32)
    from attestkit.serve.config.option_values import read_seed  # late: few name a file

    return read_seed(file)


def _hex(text: str | None, what: str, size: int) -> bytes | None:
    """Read an option in hex of so many bytes; None stays None."""
    if text is None:
        return None
    value = read_hex(what, text)
    if len(value) != size:
        raise UsageError(f"{what} is {size} bytes in hex")
    return value
