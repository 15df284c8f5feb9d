"""Options of the commands that emulate a confidential VM."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from attestkit.cli.options import option
from attestkit.cli.options.option import read_hex
from attestkit.cli.options.shell_values import complete_fault, complete_folder, complete_scenario
from attestkit.cli.output import console
from attestkit.errors import UsageError

if TYPE_CHECKING:
    from attestkit.emulator.machine import Setup


class MountServer:
    """`fuse_mount.serve` with the options of the machine applied.

    Args:
        setup: Properties of the machine.
        options: The other arguments of `fuse_mount.serve` that are options of the command: `seed`,
            `faults`, `state_dir` and `qgs`.
    """

    def __init__(self, setup: "Setup", **options: Any) -> None:
        self._setup, self._options = setup, options

    @property
    def has_metadata_service(self) -> bool:
        """Whether the machine has the metadata service of a cloud."""
        return self._setup.has_metadata_service

    @property
    def has_gpus(self) -> bool:
        """Whether the machine has simulated GPUs."""
        return self._setup.has_gpus

    def __call__(self, folder: str, **more: Any) -> None:
        """Mount the emulated files on a folder until a signal ends it.

        `more` are further arguments of `fuse_mount.serve`, whose errors are raised.
        """
        from attestkit.emulator.fuse_mount import serve  # lazy: only these commands need it

        serve(folder, setup=self._setup, **self._options, **more)


_OPTIONS: Final = (
    option.value("--seed", "HEX", "Seed of all keys, 32 bytes. Default: random."),
    option.file("--seed-file", "File with it, raw or hex; not in the process list."),
    option.value("--platform", "NAME", "Such as snp or azure-snp; else the scenario's."),
    option.value("--provider", "NAME", "tdx_guest, sev_guest or none."),
    option.value(
        "--kernel-release",
        "RELEASE",
        "Of Linux. Default: 6.18.",
        parameter="kernel",
        default="6.18",
    ),
    option.value("--driver", "NAME", "mainline, C, C', D, D' or dstack.", default="mainline"),
    option.value("--quote-version", "N", "4, or 5 (TDX 1.5).", type=int),
    option.value("--mr-config-id", "HEX", "TDX: MRCONFIGID, 48 bytes. Default: zeros."),
    option.value("--host-data", "HEX", "SEV-SNP: HOST_DATA, 32 bytes. Default: zeros."),
    option.value("--vmpl", "N", "SEV-SNP: VMPL, 0 to 3; above 0 with SVSM.", type=int, default=0),
    option.flag("--no-certificates", text="SEV-SNP: the host provides none (auxblob)."),
    option.value(
        "--scenario", "NAME", "Scenario of the evidence.", shell_complete=complete_scenario
    ),
    option.flag("--list-scenarios", text="List the scenarios and exit."),
    option.value("--fault", "SPEC", "Fault, as ebusy:3.", many=True, shell_complete=complete_fault),
    option.flag("--list-faults", text="List the faults and exit."),
    option.value("--state-dir", "DIR", "For seed and runtime log.", shell_complete=complete_folder),
    option.value("--qgs", "ADDRESS", "Quote generation service: socket, or vsock:PORT."),
    option.value("--gpus", "N", "Simulated GPUs, 1 to 16; needs a C compiler.", type=int),
    option.value("--qgs-port", "PORT", "Port in etc/tdx-attest.conf.", type=int),
)


def _read_machine(
    *,
    seed: str | None,
    seed_file: Path | None,
    faults: tuple[str, ...],
    list_faults: bool,
    list_scenarios: bool,
    state_dir: str | None,
    qgs: str | None,
    **given: Any,
) -> MountServer:
    # Lazy: only these commands need it.
    from attestkit.backends.simulator.faults import fault_specs
    from attestkit.backends.simulator.scenarios.registry import describe_scenarios

    if list_faults:
        _print_names("faults", fault_specs.named_faults())
    if list_scenarios:
        _print_names("scenarios", describe_scenarios())
    if state_dir == "":
        raise UsageError("--state-dir: the value is empty", reason="missing")
    return MountServer(
        _setup(given),
        seed=_seed(seed, seed_file),
        faults=fault_specs.Faults(map(fault_specs.Fault.parse, faults)),
        state_dir=state_dir,
        qgs=qgs,
    )


machine_options: Final = option.group("serve", _OPTIONS, _read_machine)
"""Adds these options to a command, which gets the machine as its parameter `serve`.

With --list-faults or --list-scenarios the command does not run.
"""


def _print_names(kind: str, lines: Sequence[str]) -> NoReturn:
    """Print `lines`, each a name and its description, and end the command.

    `kind`, such as `faults`, is the member of the object that is printed with --json.
    """
    context = click.get_current_context()
    if context.params.get("as_json"):
        pairs = (line.split(maxsplit=1) for line in lines)
        console.as_json({kind: [{"name": name, "text": text} for name, text in pairs]})
    else:
        click.echo("\n".join(lines))
    context.exit()


def _setup(given: dict[str, Any]) -> "Setup":
    """Return the configuration of the emulated machine.

    `given` has the values of the options by parameter name; keys that are read are removed.
    """
    from attestkit.backends.simulator.platforms import PLATFORMS
    from attestkit.backends.simulator.scenarios.registry import chosen_scenario
    from attestkit.emulator.machine import Setup

    platform, provider = given.pop("platform"), given["provider"]
    if platform == "tdx" and provider == "sev_guest":
        raise UsageError(
            "--provider sev_guest: requires --platform snp, not tdx", reason="conflict"
        )
    if platform is None and provider is not None:
        platform = "snp" if provider == "sev_guest" else "tdx"
    scenario = chosen_scenario(given.pop("scenario"), platform)
    for name in ("mr_config_id", "host_data"):
        if given[name] is not None:
            given[name] = read_hex(f"--{name.replace('_', '-')}", given[name])
    defaults = {
        "provider": PLATFORMS[scenario.platform].provider,
        "quote_version": scenario.quote_version or 4,
    }
    certificates = not given.pop("no_certificates")
    if given["gpus"] is not None:
        from attestkit.backends.simulator.gpu.gpu_config import GpuConfig  # lazy: few have GPUs

        given["gpus"] = GpuConfig(given["gpus"])
    chosen = {name: value for name, value in given.items() if value is not None}
    return Setup(scenario=scenario, certificates=certificates, **{**defaults, **chosen})


def _seed(text: str | None, file: Path | None) -> bytes | None:
    """Return the seed, 32 bytes; None without the options.

    Args:
        text: Value of --seed: 64 hex digits.
        file: Value of --seed-file: a file of 32 raw bytes or 64 hex digits.

    Raises:
        UsageError: If both are given.
        ConfigError: If `text` or the file is malformed, or the file cannot be read.
    """
    if text is not None and file is not None:
        raise UsageError("--seed and --seed-file: mutually exclusive; give one", reason="conflict")
    from attestkit.serve.config.option_values import read_seed, seed_from_hex  # lazy

    if file is not None:
        return read_seed(file)
    return None if text is None else seed_from_hex(text, "--seed")
