"""From options and environment to settings: every default of the agent is decided here.

Nothing is made or opened; the caller does that with what this module says.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from attestkit.errors import UsageError
from attestkit.serve.config.command_line import Options, refuse_empty
from attestkit.serve.config.option_values import HTTP_PORT, OFF, Address
from attestkit.serve.machine_info import DATA_DISKS

if TYPE_CHECKING:
    from attestkit.backends.simulator.faults.fault_specs import Fault

__all__ = ["AGENT", "SIMULATOR", "Files", "Settings", "decide"]

SIMULATOR = "simulator"
RECORDING = "recording"
AGENT = "dstack_agent"
UNIX = "unix:"
_RUN = ("/run", "/var/run")
# systemd's socket activation and readiness: an unattended service must not become a simulator.
_UNATTENDED = ("LISTEN_FDS", "NOTIFY_SOCKET")
_OF_SIMULATOR = (
    *("seed", "seed_file", "reset", "dev_http", "pccs", "state_dir"),
    *("platform", "quote_version", "scenario", "fault"),
)


class Files(NamedTuple):
    """The files of an agent that were named; None for the one in the host's folder, if any."""

    app_keys: Path | None = None
    app_compose: Path | None = None
    sys_config: Path | None = None


class Settings(NamedTuple):
    """What the server is to do, with every default filled in and every path absolute.

    `backend` is None when whatever hardware is found is to be taken. `private` says that `folder`
    and `state_folder` are ours alone: made with mode 0700, and git is told to leave them alone.
    The seed itself is read later, from `seed_hex` or `seed_file`, else from the state folder;
    `seed_source` says where the former came from. `simulation` has what else was said of the
    simulator, by the names of its arguments. `ident` None is our own name.
    """

    backend: str | None
    folder: Path
    private: bool
    state_folder: Path
    dstack: Path | None
    tappd: Path | None
    socket_mode: int
    socket_group: str | None
    http: Address | Path | None
    dev_http: Address | None
    pccs: Address | None
    files: Files
    app_id: bytes | None
    measure_app: bool
    seed_hex: str | None
    seed_source: str
    seed_file: Path | None
    reset: bool
    simulation: Mapping[str, object]
    ident: str | None
    data_disks: tuple[str, ...]

    @property
    def simulated(self) -> bool:
        """Whether the simulator was asked for, or picked."""
        return self.backend == SIMULATOR


def decide(
    options: Options, environ: Mapping[str, str], signs_of_hardware: Callable[[], Sequence[str]]
) -> Settings:
    """Return the settings that follow from the command line and the environment.

    Raises:
        UsageError: Options contradict each other, or no backend may be picked for them.
        ConfigError: The same, where a configuration gave one of them.
    """
    refuse_empty(options)
    backend = _backend(options, environ, signs_of_hardware)
    simulated = backend == SIMULATOR
    if not simulated:
        _refuse_simulator_options(options)
    # What is no TEE goes where a developer's things are, and is for this user alone.
    simulated = simulated or backend == RECORDING
    folder, state_folder, private = _folders(options, environ, simulated=simulated)
    if options.seed is not None and options.seed_file is not None:
        raise options.refusal("seed", f"and {options.named('seed_file')}: one of them is enough")
    return Settings(
        backend=backend,
        folder=folder,
        private=private,
        state_folder=state_folder,
        dstack=_socket(options, "socket", folder / "dstack.sock"),
        tappd=_socket(options, "tappd_socket", folder / "tappd.sock"),
        socket_mode=_mode(options, 0o600 if simulated else 0o660),
        socket_group=options.socket_group,
        http=_http(options, simulated=simulated),
        dev_http=_dev_address(options),
        pccs=options.address("pccs"),
        files=Files(*map(options.path, Files._fields)),
        app_id=_app_id(options),
        measure_app=options.measure_app,
        seed_hex=options.seed,
        seed_source=options.named("seed"),
        seed_file=options.path("seed_file"),
        reset=options.reset,
        simulation=_simulation(options),
        ident=options.ident,
        data_disks=DATA_DISKS if options.data_disks is None else options.data_disks,
    )


def _backend(
    options: Options, environ: Mapping[str, str], signs_of_hardware: Callable[[], Sequence[str]]
) -> str | None:
    """Return the name of the backend, None for the hardware that is found.

    The simulator is picked only where nothing at all looks like a TEE or like a deployment.
    """
    name = options.backend or environ.get("ATTESTKIT_BACKEND") or "auto"
    if name == AGENT:
        raise UsageError(
            f"the server is an agent itself and does not stand before another: {AGENT} is for "
            "clients; name the hardware's backend, or auto"
        )
    if name != "auto":
        return name
    if signs_of_hardware():
        return None
    reasons = [f"${variable}" for variable in _UNATTENDED if variable in environ]
    if options.app_keys is not None:
        reasons.append(options.named("app_keys"))
    if options.dir is not None and os.path.realpath(options.dir) in map(os.path.realpath, _RUN):
        reasons.append(f"{options.named('dir')} {options.dir}")
    if reasons:
        raise UsageError(
            f"no TEE was found, and with {' and '.join(reasons)} the simulator is not picked by "
            f"itself; --backend {SIMULATOR} asks for it"
        )
    return SIMULATOR


def _refuse_simulator_options(options: Options) -> None:
    for name in _OF_SIMULATOR:
        if getattr(options, name):
            raise options.refusal(name, "is for the simulator only")
    if options.app_id is not None and not options.measure_app:
        raise options.refusal(
            "app_id",
            "is for the simulator, and on hardware for --measure-app: an id that is not measured "
            "means nothing",
        )


def _folders(
    options: Options, environ: Mapping[str, str], *, simulated: bool
) -> tuple[Path, Path, bool]:
    """Return the folder of sockets, the folder of state, and whether the former is private."""
    if options.dir is not None:
        folder = Path(options.dir).absolute()
        local, private = True, False
    elif not simulated:
        folder, local, private = Path("/var/run"), True, False
    elif (runtime := environ.get("XDG_RUNTIME_DIR")) and os.access(runtime, os.W_OK | os.X_OK):
        folder, local, private = Path(runtime).absolute() / "attestkit", False, True
    else:
        folder, local, private = Path(".attestkit").absolute(), True, True
    if options.state_dir is not None:
        return folder, Path(options.state_dir).absolute(), private
    if local:
        return folder, folder, private
    home = environ.get("XDG_STATE_HOME") or Path(environ.get("HOME") or "~") / ".local/state"
    return folder, Path(home).expanduser().absolute() / "attestkit", private


def _socket(options: Options, field: str, default: Path) -> Path | None:
    return None if getattr(options, field) == OFF else options.path(field) or default


def _mode(options: Options, default: int) -> int:
    if options.socket_mode is None:
        return default
    try:
        mode = int(options.socket_mode, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise options.wrong("socket_mode", "want an octal number up to 777")
    return mode


def _http(options: Options, *, simulated: bool) -> Address | Path | None:
    host = "127.0.0.1" if simulated else "0.0.0.0"  # noqa: S104 - the agent's documented address
    text = options.http
    if text is not None and text.startswith(UNIX):
        if text == UNIX:
            raise options.wrong("http", "want a path behind it")
        return Path(text.removeprefix(UNIX)).absolute()
    if text is not None and text.startswith(":") and "http" in options.sources:
        options = options._replace(http=f"{host}{text}")  # a configuration may give the port alone
    return options.address("http", Address(host, HTTP_PORT))


def _dev_address(options: Options) -> Address | None:
    address = options.address("dev_http")
    if address is None or address.host in {"localhost", "::1"} or _is_ipv4_loopback(address.host):
        return address
    raise options.wrong("dev_http", "only on a loopback address, for it gives keys to anybody")


def _is_ipv4_loopback(host: str) -> bool:
    parts = host.split(".") if host.isascii() else []
    return len(parts) == 4 and parts[0] == "127" and all(part.isdigit() for part in parts)


def _app_id(options: Options) -> bytes | None:
    if options.app_id is None:
        return None
    try:
        text = options.app_id
        app_id = bytes.fromhex(text[2:] if text[:2] in {"0x", "0X"} else text)
    except ValueError:
        app_id = b""
    if len(app_id) != 20:
        raise options.wrong("app_id", "want 40 hex digits")
    return app_id


def _simulation(options: Options) -> dict[str, object]:
    """Return what was said of the simulated TEE, and nothing where nothing was said."""
    found: dict[str, object] = {}
    if options.platform is not None:
        found["platform"] = options.platform
    if options.quote_version is not None:
        found["quote_version"] = int(options.quote_version)
    if options.scenario is not None:
        found["scenario"] = _known_scenario(options, options.scenario)
    if options.fault is not None:
        found["faults"] = [fault for text in options.fault for fault in _parse(options, text)]
    return found


def _parse(options: Options, text: str) -> "tuple[Fault, ...]":
    from attestkit.backends.simulator.faults.fault_specs import Faults  # late: for whoever has any

    try:
        return Faults.of(text).armed()
    except UsageError as error:
        raise options.refusal("fault", f"{text}: {error}") from error


def _known_scenario(options: Options, name: str) -> str:
    from attestkit.backends.simulator.scenarios.named import scenario  # late: for who wants one

    try:
        scenario(name)
    except UsageError as error:
        raise options.refusal("scenario", f"{name}: {error}") from error
    return name
