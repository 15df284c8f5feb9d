"""Settings of the agent, with all defaults, from options and the environment.

This module opens and creates nothing.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeVar

from attestkit._sanitize import shown
from attestkit.errors import AttestKitError, ConfigError, UsageError
from attestkit.serve.config.option_values import HTTP_PORT, OFF, Address
from attestkit.serve.config.options import CHOICES, SIMULATOR_OPTIONS, Options
from attestkit.serve.endpoints import ANY_CID, LimitedSocket, ListenAddresses, VsockAddress

if TYPE_CHECKING:
    from attestkit.kms.root import KmsRoot


FIRST_USE: Final = "first-use"
"""Value of --kms-root that trusts any KMS."""


class KmsSettings(NamedTuple):
    """URLs of a KMS, tried in order, and the root keys by which to trust it.

    `root_files` are JSON files of KmsRoot; "first-use" trusts any KMS; with None, the app's
    `key_provider_id` must name the KMS.
    """

    urls: tuple[str, ...]
    root_files: tuple[Path, ...] | Literal["first-use"] | None

    def load_roots(self) -> "tuple[KmsRoot, ...] | Literal['first-use'] | None":
        """Return the root keys in `root_files`; "first-use" and None are returned as they are.

        Raises:
            ConfigError: If a file cannot be read or is invalid.
        """
        from attestkit.kms.root import KmsRoot  # lazy: only with a KMS

        if self.root_files is None or self.root_files == FIRST_USE:
            return FIRST_USE if self.root_files else None
        return tuple([KmsRoot.load(path) for path in self.root_files])


def decide_kms(options: Options, *, simulated: bool) -> KmsSettings | None:
    """Return the settings of the KMS client; None without a KMS.

    With a `simulated` backend, the app cannot have a key file and a KMS.

    Raises:
        UsageError: If options conflict, root keys are given without a URL, or a URL is invalid.
        ConfigError: If such an option is from a configuration file.
    """
    if options.kms_url is None:
        if options.kms_root is not None:
            raise options.error("kms_root", f"requires {options.named('kms_url')}")
        return None
    if simulated and options.app_keys is not None:
        raise options.error("app_keys", f"excludes {options.named('kms_url')}; give one of them")
    from attestkit.kms.url import kms_base_url  # lazy: only with a KMS

    for url in options.kms_url:
        try:
            kms_base_url(url)
        except AttestKitError as error:
            raise options.error("kms_url", str(error), "wrong_value") from error
    files = options.kms_root
    if files is not None and FIRST_USE in files:
        if len(files) > 1:
            raise options.error("kms_root", f"{FIRST_USE} excludes other values")
        return KmsSettings(options.kms_url, FIRST_USE)
    paths = None if files is None else tuple([Path(text).absolute() for text in files])
    return KmsSettings(options.kms_url, paths)


_Checked = TypeVar("_Checked")

SIMULATOR = "simulator"
RECORDING = "recording"
AGENT = "dstack_agent"
UNIX = "unix:"
_VSOCK = re.compile(r"vsock:(?:(0x[0-9a-fA-F]{1,8}|0|[1-9][0-9]{0,9}):)?([0-9]{1,10})")
_RUN = ("/run", "/var/run")
# systemd's socket activation and notification: a service must not become a simulator by default.
_UNATTENDED = ("LISTEN_FDS", "NOTIFY_SOCKET")


class AppFiles(NamedTuple):
    """App files that options name; None: the one in the host's shared folder, if any."""

    app_keys: Path | None = None
    app_compose: Path | None = None
    sys_config: Path | None = None


class Settings(NamedTuple):
    """Settings of the agent, with absolute paths.

    Without `backend`, the hardware is detected. `folder` is for sockets, `state_folder` for what
    must survive a restart; if `private`, both get mode 0700 and are ignored by git. `simulation`
    has arguments of the simulator. Values that are used as given are in `options`.
    """

    options: Options
    backend: str | None
    folder: Path
    private: bool
    state_folder: Path
    addresses: ListenAddresses
    files: AppFiles
    app_id: bytes | None
    simulation: Mapping[str, object]
    has_emit_event: bool = True  # whether apps may emit events
    kms: KmsSettings | None = None  # where the app's keys come from

    @property
    def simulated(self) -> bool:
        """Whether the backend is the simulator."""
        return self.backend == SIMULATOR


def decide_settings(
    options: Options, environ: Mapping[str, str], detect_hardware: Callable[[], Sequence[str]]
) -> Settings:
    """Return the settings for the options and the environment.

    Args:
        options: Options of the command line and the configuration file.
        environ: Environment variables.
        detect_hardware: Returns the names of the indications of a TEE on this machine.

    Raises:
        UsageError: If an option or environment variable is invalid, conflicts with another option
            or requires one, or no backend can be selected.
        ConfigError: If such an option is from a configuration file.
    """
    backend = _backend(options, environ, detect_hardware)
    simulated = backend == SIMULATOR
    if not simulated:
        _refuse_simulator_options(options)
    # Like the simulator, a recording uses private folders of the user.
    simulated = simulated or backend == RECORDING
    folder, state_folder, private = _folders(options, environ, simulated=simulated)
    if options.seed is not None and options.seed_file is not None:
        raise options.error("seed", f"excludes {options.named('seed_file')}; give one of them")
    return Settings(
        options,
        backend,
        folder,
        private,
        state_folder,
        ListenAddresses(
            dstack=_socket(options, "socket", folder / "dstack.sock"),
            tappd=_socket(options, "tappd_socket", folder / "tappd.sock"),
            http=_http(options, simulated=simulated),
            dev_http=_dev_address(options),
            socket_mode=_mode(options, 0o600 if simulated else 0o660),
            socket_group=options.socket_group,
            pccs=options.address("pccs_http"),
            limited=_limited(options, environ),
            guest_api=_guest_api(options),
        ),
        AppFiles(*map(options.path, AppFiles._fields)),
        _app_id(options),
        _simulation(options),
        _emit_event(options, environ) == "on",
        decide_kms(options, simulated=backend == SIMULATOR),
    )


def _backend(
    options: Options, environ: Mapping[str, str], detect_hardware: Callable[[], Sequence[str]]
) -> str | None:
    """Return the name of the backend; None to detect the hardware.

    The simulator is selected only if nothing indicates a TEE or a deployment.

    Args:
        options: Options of the command line and the configuration file.
        environ: Environment variables.
        detect_hardware: Returns the names of the indications of a TEE on this machine.

    Raises:
        UsageError: If the name is that of the client of a guest agent, or no backend can be
            selected.
    """
    name = options.backend or environ.get("ATTESTKIT_BACKEND") or "auto"
    if name == AGENT:
        raise UsageError(
            f"--backend: {AGENT} is a client of a guest agent and cannot serve; name a backend "
            "for the hardware, or auto",
            reason="wrong_value",
        )
    if name != "auto":
        return name
    if detect_hardware():
        return None
    reasons = [f"${variable}" for variable in _UNATTENDED if variable in environ]
    if options.app_keys is not None:
        reasons.append(options.named("app_keys"))
    if options.dir is not None and os.path.realpath(options.dir) in map(os.path.realpath, _RUN):
        reasons.append(f"{options.named('dir')} {options.dir}")
    if reasons:
        raise UsageError(
            f"--backend: no TEE found, and the simulator is not selected automatically with "
            f"{' and '.join(reasons)}; to simulate one, give --backend {SIMULATOR}",
            reason="missing",
        )
    return SIMULATOR


def _refuse_simulator_options(options: Options) -> None:
    if name := options.first_given(SIMULATOR_OPTIONS):
        raise options.error(name, "requires the simulator; give --backend simulator")
    if options.app_id is not None and not (options.measure_app or options.kms_url):
        raise options.error(
            "app_id",
            "requires --measure-app or --kms-url on hardware: they measure the id into RTMR3",
        )


def _folders(
    options: Options, environ: Mapping[str, str], *, simulated: bool
) -> tuple[Path, Path, bool]:
    """Return the folder of sockets, the folder of state, and whether the first folder is private.

    A private folder must belong to this user, and gets mode 0700. The default is /var/run; with
    `simulated`, folders that `environ` (the environment variables) names for this user, else
    `.attestkit` of the working folder.
    """
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
    if getattr(options, field) == OFF:
        return None
    return _check_unlimited(options, field, options.path(field) or default)


def _check_unlimited(options: Options, field: str, path: Path) -> Path:
    """Return `path`, the socket that the option `field` names; refuse `=` in its file name.

    Only `--socket` accepts PATH=METHODS, which limits a socket to some methods. Here such a value
    would be a file name, and the socket would serve all methods.

    Args:
        options: All options; the error names the option, or its key in the configuration file.
        field: Field of `options` that has the value.
        path: Path of the socket.

    Raises:
        UsageError: If the file name has `=`; if the value is from a file, it is a ConfigError.
    """
    if "=" in path.name:
        raise options.wrong_value(
            field, "must have no `=` in its file name; give --socket PATH=METHODS to limit it"
        )
    return path


def _limited(options: Options, environ: Mapping[str, str]) -> list[LimitedSocket]:
    values, option = options.limited_sockets, options.named("limited_sockets")
    if values is None:
        option = "$ATTESTKIT_LIMITED_SOCKETS"
        values = tuple(environ.get(option[1:], "").split())
    return [_limited_socket(text, option, options) for text in values]


def _limited_socket(text: str, option: str, options: Options) -> LimitedSocket:
    folder, slash, rest = text.rpartition("/")
    name, equals, methods = rest.partition("=")
    if not equals or name in {"", ".", "..", OFF}:
        kind = ConfigError if "limited_sockets" in options.sources else UsageError
        raise kind(f"{option}: must be PATH=METHODS: {text}", reason="wrong_value")
    words = [word.strip() for word in methods.split(",")] if methods.strip() else []
    return LimitedSocket(Path(folder + slash + name).absolute(), words, option)


def _mode(options: Options, default: int) -> int:
    if options.socket_mode is None:
        return default
    try:
        mode = int(options.socket_mode, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise options.wrong_value("socket_mode", "must be an octal number up to 777")
    return mode


def _http(options: Options, *, simulated: bool) -> Address | Path | None:
    host = "127.0.0.1" if simulated else "0.0.0.0"  # noqa: S104 - the agent's documented address
    text = options.http
    if text is not None and text.startswith(UNIX):
        if text == UNIX:
            raise options.wrong_value("http", "must have a path after unix:")
        return _check_unlimited(options, "http", Path(text.removeprefix(UNIX)).absolute())
    if text is not None and text.startswith(":") and "http" in options.sources:
        options = options._replace(http=f"{host}{text}")  # a configuration may give only a port
    return options.address("http", Address(host, HTTP_PORT))


def _guest_api(options: Options) -> VsockAddress | Path | None:
    text = options.guest_api
    if text in {None, OFF}:
        if options.guest_api_shutdown:
            raise options.error("guest_api_shutdown", "requires --guest-api")
        return None
    assert text is not None
    if text.startswith(UNIX) and text != UNIX:
        return _check_unlimited(options, "guest_api", Path(text.removeprefix(UNIX)).absolute())
    found = _VSOCK.fullmatch(text)
    cid = int(found[1] or str(ANY_CID), 0) if found else -1
    port = int(found[2]) if found else -1
    if not (0 <= cid <= ANY_CID and 0 < port < ANY_CID):
        raise options.wrong_value(
            "guest_api", "must be vsock:PORT, vsock:CID:PORT or unix:PATH, or none"
        )
    return VsockAddress(port, cid)


def _dev_address(options: Options) -> Address | None:
    address = options.address("dev_http")
    if address is None or address.host in {"localhost", "::1"} or _is_ipv4_loopback(address.host):
        return address
    raise options.wrong_value(
        "dev_http", "must be a loopback address, because it serves keys without authentication"
    )


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
        raise options.wrong_value("app_id", "must be 40 hex digits")
    return app_id


def _emit_event(options: Options, environ: Mapping[str, str]) -> str:
    choices = CHOICES["emit_event"]
    text = options.emit_event or environ.get("ATTESTKIT_EMIT_EVENT") or choices[0]
    if text not in choices:
        problem = f"$ATTESTKIT_EMIT_EVENT: must be one of {', '.join(choices)}: {shown(text)}"
        raise UsageError(problem, reason="wrong_value")
    return text


def _simulation(options: Options) -> dict[str, object]:
    """Return the keyword arguments of the simulator that options give."""
    found: dict[str, object] = {}
    if options.kms_url is not None:
        found["kms_boot"] = True
    if options.platform is not None:
        found["platform"] = options.platform
    if options.quote_version is not None:
        found["quote_version"] = int(options.quote_version)
    if (image := options.path("boot_image")) is not None:
        found["image"] = image
    if options.gpus is not None:
        found["gpus"] = _count_gpus(options, options.gpus)
    if options.scenario is not None:
        from attestkit.backends.simulator.scenarios.registry import scenario  # lazy

        _check(options, "scenario", options.scenario, scenario)
        found["scenario"] = options.scenario
    if options.fault is not None:
        from attestkit.backends.simulator.faults.fault_specs import Faults  # lazy

        parsed = [_check(options, "fault", text, Faults.of) for text in options.fault]
        found["faults"] = [fault for faults in parsed for fault in faults.armed()]
    return found


def _count_gpus(options: Options, text: str) -> int:
    if not re.fullmatch(r"[1-9]|1[0-6]", text):
        raise options.error("gpus", f"must be 1 to 16: {shown(text)}", "wrong_value")
    return int(text)


def _check(options: Options, field: str, text: str, parse: Callable[[str], _Checked]) -> _Checked:
    """Return `parse(text)`; its UsageError becomes an error that names the option `field`."""
    try:
        return parse(text)
    except UsageError as error:
        raise options.error(field, f"{text}: {error}", "wrong_value") from error
