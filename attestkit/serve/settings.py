"""From options and environment to settings: every default of the server is decided here.

Nothing is made or opened; the caller does that with what this module says, and has `read_policy`
for the one value that is a name or a file.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from attestkit.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from attestkit.verifier.policy import AppraisalPolicy

__all__ = [
    "Address",
    "Files",
    "Options",
    "Settings",
    "VerifierSettings",
    "decide",
    "decide_verifier",
    "parse_address",
    "read_policy",
]

SIMULATOR = "simulator"
AGENT = "dstack_agent"
HTTP_PORT = 8090
OFF = "none"
_RUN = ("/run", "/var/run")
# systemd's socket activation and readiness: an unattended service must not become a simulator.
_UNATTENDED = ("LISTEN_FDS", "NOTIFY_SOCKET")


class Options(NamedTuple):
    """What the command line said; None where it said nothing."""

    backend: str | None = None
    dir: str | None = None
    state_dir: str | None = None
    socket: str | None = None
    tappd_socket: str | None = None
    socket_mode: str | None = None
    socket_group: str | None = None
    http: str | None = None
    dev_http: str | None = None
    pccs: str | None = None
    app_keys: str | None = None
    app_compose: str | None = None
    sys_config: str | None = None
    app_id: str | None = None
    measure_app: bool = False
    seed: str | None = None
    seed_file: str | None = None
    reset: bool = False
    verifier: str | None = None
    verifier_pccs: str | None = None
    verifier_collateral: str | None = None
    verifier_policy: str | None = None
    trust_anchor: str | None = None
    watchdog: bool = False


_FOR_VERIFIER = ("verifier_pccs", "verifier_collateral", "verifier_policy", "trust_anchor")
_FOR_AGENT = tuple(
    name
    for name in Options._fields
    if name not in {"backend", "verifier", "watchdog", *_FOR_VERIFIER}
)


class Address(NamedTuple):
    """Where a TCP listener binds; port 0 is any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Files(NamedTuple):
    """The files of an agent that were named; None for the one in the host's folder, if any."""

    app_keys: Path | None = None
    app_compose: Path | None = None
    sys_config: Path | None = None


class Settings(NamedTuple):
    """What the server is to do, with every default filled in and every path absolute.

    `backend` is None when whatever hardware is found is to be taken. `private` says that `folder`
    and `state_folder` are ours alone: made with mode 0700, and git is told to leave them alone.
    The seed itself is read later, from `seed_hex` or `seed_file`, else from the state folder.
    """

    backend: str | None
    folder: Path
    private: bool
    state_folder: Path
    dstack: Path | None
    tappd: Path | None
    socket_mode: int
    socket_group: str | None
    http: Address | None
    dev_http: Address | None
    pccs: Address | None
    files: Files
    app_id: bytes | None
    measure_app: bool
    seed_hex: str | None
    seed_file: Path | None
    reset: bool

    @property
    def simulated(self) -> bool:
        """Whether the simulator was asked for, or picked."""
        return self.backend == SIMULATOR


class VerifierSettings(NamedTuple):
    """What the verifier service is to do; paths are absolute, None is not at all.

    `alone` says that it is all there is to serve: no agent, and no TEE is opened. `policy` stands
    as it was given, for `read_policy`.
    """

    address: Address
    alone: bool
    pccs_url: str | None
    collateral: Path | None
    policy: str | None
    trust_anchor: Path | None


def decide(
    options: Options, environ: Mapping[str, str], signs_of_hardware: Callable[[], Sequence[str]]
) -> Settings:
    """Return the settings that follow from the command line and the environment.

    Raises:
        UsageError: Options contradict each other, or no backend may be picked for them.
    """
    _refuse_empty(options)
    backend = _backend(options, environ, signs_of_hardware)
    simulated = backend == SIMULATOR
    if not simulated:
        _refuse_simulator_options(options)
    folder, state_folder, private = _folders(options, environ, simulated=simulated)
    if options.seed is not None and options.seed_file is not None:
        raise UsageError("--seed and --seed-file: one of them is enough")
    default_host = "127.0.0.1" if simulated else "0.0.0.0"  # noqa: S104 - the agent's documented address
    return Settings(
        backend=backend,
        folder=folder,
        private=private,
        state_folder=state_folder,
        dstack=_socket(options.socket, folder / "dstack.sock"),
        tappd=_socket(options.tappd_socket, folder / "tappd.sock"),
        socket_mode=_mode(options.socket_mode, 0o600 if simulated else 0o660),
        socket_group=options.socket_group,
        http=_address("--http", options.http, Address(default_host, HTTP_PORT)),
        dev_http=_dev_address(options.dev_http),
        pccs=_address("--pccs", options.pccs, None),
        files=Files(*map(_path, (options.app_keys, options.app_compose, options.sys_config))),
        app_id=_app_id(options.app_id),
        measure_app=options.measure_app,
        seed_hex=options.seed,
        seed_file=_path(options.seed_file),
        reset=options.reset,
    )


def decide_verifier(options: Options, environ: Mapping[str, str]) -> VerifierSettings | None:
    """Return what the verifier service is to do; None where there is none.

    Where collateral is fetched was asked for by option, or else by `$PCCS_URL`.

    Raises:
        UsageError: Options contradict each other.
    """
    _refuse_empty(options)
    backend = options.backend or environ.get("ATTESTKIT_BACKEND")
    address = _address("--verifier", options.verifier, None)
    if address is None:
        if backend == OFF:
            raise UsageError(f"--backend {OFF} serves no agent: it needs --verifier HOST:PORT")
        if given := _given(options, _FOR_VERIFIER):
            raise UsageError(f"{given} is for the verifier service, which needs --verifier")
        return None
    if backend == OFF and (given := _given(options, _FOR_AGENT)):
        raise UsageError(f"{given} is for an agent, and with --backend {OFF} there is none")
    if options.verifier_pccs not in {None, OFF} and options.verifier_collateral is not None:
        raise UsageError("--verifier-pccs and --verifier-collateral: one of them is enough")
    pccs_url = options.verifier_pccs
    if pccs_url is None and options.verifier_collateral is None:
        pccs_url = environ.get("PCCS_URL") or None
    return VerifierSettings(
        address=address,
        alone=backend == OFF,
        pccs_url=None if pccs_url == OFF else pccs_url,
        collateral=_path(options.verifier_collateral),
        policy=options.verifier_policy,
        trust_anchor=_path(options.trust_anchor),
    )


def _given(options: Options, names: Sequence[str]) -> str:
    """Return the first of some options that the command line gave a value; else nothing."""
    given = (name for name in names if getattr(options, name) not in {None, False, OFF})
    return next((f"--{name.replace('_', '-')}" for name in given), "")


def _refuse_empty(options: Options) -> None:
    """Refuse what an unset variable of a shell leaves: as a path it would be this very folder."""
    for name, value in options._asdict().items():
        if value == "":
            raise UsageError(f"--{name.replace('_', '-')}: the value is empty")


def read_policy(option: str, text: str) -> "AppraisalPolicy":
    """Return the policy that an option names: a preset's name, else a TOML file.

    A preset goes before a file of the same name, which `./strict` means.

    Raises:
        ConfigError: The file cannot be read, or is no policy; the text names `option` and file.
    """
    from attestkit.verifier.policy import PRESETS, AppraisalPolicy  # late: others have none

    if (preset := PRESETS.get(text)) is not None:
        return preset()
    try:
        return AppraisalPolicy.load(text)
    except ConfigError as error:
        also = ""
        if isinstance(error.__cause__, FileNotFoundError):
            also = f"; nor is that a preset, which are {', '.join(PRESETS)}"
        raise ConfigError(f"{option} {error}{also}") from error


def parse_address(option: str, text: str) -> Address:
    """Return the address that `text` writes as HOST:PORT, an IPv6 host in square brackets.

    Raises:
        UsageError: It is something else; the text names `option`.
    """
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise UsageError(f"{option} {text}: an IPv6 address goes in square brackets")
    if not (host and colon and re.fullmatch(r"[0-9]{1,5}", port) and int(port) < 1 << 16):
        raise UsageError(f"{option} {text}: want HOST:PORT with a port of 0 to 65535, or {OFF}")
    return Address(host, int(port))


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
        reasons.append("--app-keys")
    if options.dir is not None and os.path.realpath(options.dir) in map(os.path.realpath, _RUN):
        reasons.append(f"--dir {options.dir}")
    if reasons:
        raise UsageError(
            f"no TEE was found, and with {' and '.join(reasons)} the simulator is not picked by "
            f"itself; --backend {SIMULATOR} asks for it"
        )
    return SIMULATOR


def _refuse_simulator_options(options: Options) -> None:
    for name in ("seed", "seed_file", "reset", "dev_http", "pccs", "state_dir"):
        if getattr(options, name):
            raise UsageError(f"--{name.replace('_', '-')} is for the simulator only")
    if options.app_id is not None and not options.measure_app:
        raise UsageError(
            "--app-id is for the simulator, and on hardware for --measure-app: an id that is not "
            "measured means nothing"
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


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text).absolute()


def _socket(text: str | None, default: Path) -> Path | None:
    if text == OFF:
        return None
    return default if text is None else Path(text).absolute()


def _mode(text: str | None, default: int) -> int:
    if text is None:
        return default
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise UsageError(f"--socket-mode {text}: want an octal number up to 777")
    return mode


def _address(option: str, text: str | None, default: Address | None) -> Address | None:
    if text is None:
        return default
    return None if text == OFF else parse_address(option, text)


def _dev_address(text: str | None) -> Address | None:
    address = _address("--dev-http", text, None)
    if address is None or address.host in {"localhost", "::1"} or _is_ipv4_loopback(address.host):
        return address
    raise UsageError(f"--dev-http {text}: only on a loopback address, for it gives keys to anybody")


def _is_ipv4_loopback(host: str) -> bool:
    parts = host.split(".") if host.isascii() else []
    return len(parts) == 4 and parts[0] == "127" and all(part.isdigit() for part in parts)


def _app_id(text: str | None) -> bytes | None:
    if text is None:
        return None
    try:
        app_id = bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        app_id = b""
    if len(app_id) != 20:
        raise UsageError(f"--app-id {text}: want 40 hex digits")
    return app_id
