"""Command-line options of the server.

A configuration file may also give most of them. `with_config` merges it below the command line and
the environment, and keeps the source of each value for errors.
"""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, NoReturn

from attestkit._sanitize import without_hex
from attestkit._version import own_version
from attestkit.errors import ConfigError, UsageError
from attestkit.serve.config.limits import Limits, parse_limit
from attestkit.serve.config.option_values import HTTP_PORT, OFF, Address, parse_address

__all__ = [
    "FLAGS",
    "LOG_FORMATS",
    "LOG_LEVELS",
    "PLATFORMS",
    "QUOTE_VERSIONS",
    "Options",
    "option_names",
    "parse_options",
    "refuse_empty",
    "with_config",
    "write_out",
]

LOG_FORMATS: Final = ("text", "json")
LOG_LEVELS: Final = ("debug", "info", "warning", "error")
PLATFORMS: Final = ("tdx", "snp")
QUOTE_VERSIONS: Final = ("4", "5")

FLAGS: Final = frozenset({"access_log", "json", "measure_app", "reset", "watchdog"})
"""Boolean options."""

_EPILOG: Final = """\
Environment: $ATTESTKIT_BACKEND and $PCCS_URL stand for --backend and --verifier-pccs;
$DSTACK_HOST_SHARED_DIR is the folder of app files that no option names; $DSTACK_CCEL_FILE,
$DCAP_TDX_QUOTE_CONFIGFS_PATH and $DCAP_TDX_RTMR_SYSFS_PATH name files of the hardware backends.
The command line overrides the environment, and the environment the configuration file.

Exit codes:
  0    stopped by a signal; requests over the drain time were aborted and logged
  1    usage or configuration error
  3    error of the device, the machine or attestkit
  5    unreadable input
  130  SIGINT during startup
Ended by SIGTERM or SIGINT: the signal came during startup, or a second time.
"""
_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})
# Alternatives: one of them on a higher level overrides all of them on a lower one.
_RIVALS: Final = (
    frozenset({"seed", "seed_file"}),
    frozenset({"verifier_pccs", "verifier_collateral"}),
)
_VARIABLES: Final = {"backend": "ATTESTKIT_BACKEND", "verifier_pccs": "PCCS_URL"}


class Options(NamedTuple):
    """Options of the command line and the configuration file; None if not given.

    `ident` and `data_disks` exist only in a configuration file. `sources` has file and key of each
    value from a configuration file.
    """

    config: str | None = None
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
    platform: str | None = None
    quote_version: str | None = None
    scenario: str | None = None
    fault: tuple[str, ...] | None = None
    verifier: str | None = None
    verifier_pccs: str | None = None
    verifier_collateral: str | None = None
    verifier_policy: str | None = None
    verifier_cache: str | None = None
    verifier_metrics: str | None = None
    trust_anchor: str | None = None
    ear_key: str | None = None
    workers: str | None = None
    watchdog: bool = False
    json: bool = False
    log_format: str | None = None
    log_level: str | None = None
    access_log: bool | None = None
    limits: Mapping[str, float] = _NOTHING
    ident: str | None = None
    data_disks: tuple[str, ...] | None = None
    sources: Mapping[str, str] = _NOTHING

    def named(self, field: str) -> str:
        """Return the name of an option for errors: its name, or its key in the file."""
        return self.sources.get(field) or f"--{field.replace('_', '-')}"

    def conflict(self, field: str, problem: str) -> "ConfigError | UsageError":
        """Return the error of an option that conflicts with the other options."""
        return self._error(field, problem, "conflict")

    def wrong_value(self, field: str, problem: str) -> "ConfigError | UsageError":
        """Return the error of an option with an invalid value, which the text shows."""
        return self.invalid(field, f"{problem}: {getattr(self, field)}")

    def invalid(self, field: str, problem: str) -> "ConfigError | UsageError":
        """Return the error of an option with an invalid value, which the text does not show."""
        return self._error(field, problem, "wrong_value")

    def _error(
        self, field: str, problem: str, reason: Literal["conflict", "wrong_value"]
    ) -> "ConfigError | UsageError":
        text = f"{self.named(field)}: {problem}"
        if field in self.sources:
            return ConfigError(text, reason=reason)
        return UsageError(text, reason=reason)

    def path(self, field: str) -> Path | None:
        """Return the path that an option names, absolute."""
        text: str | None = getattr(self, field)
        return None if text is None else Path(text).absolute()

    def address(self, field: str, default: Address | None = None) -> Address | None:
        """Return the address of an option; None if the listener is off.

        Raises:
            UsageError: If the option has an invalid address.
            ConfigError: If the configuration file has one.
        """
        text: str | None = getattr(self, field)
        if text is None:
            return default
        try:
            return None if text == OFF else parse_address(text)
        except UsageError as error:
            raise self.wrong_value(field, str(error)) from error


class _Parser(argparse.ArgumentParser):
    def names(self) -> tuple[str, ...]:
        """Return all option names, including those that argparse adds."""
        return tuple(self._option_string_actions)

    def error(self, message: str) -> NoReturn:
        """Raise a one-line error that shows no seed, instead of printing the usage."""
        raise UsageError(f"{without_hex(message)}; --help lists the options", reason="wrong_value")


class _Print(argparse.Action):
    """Option that prints a text and exits."""

    def __init__(self, option_strings: Sequence[str], dest: str, **rest: Any) -> None:
        self._text: Callable[[], str] = rest.pop("const")
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, **rest)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        try:
            write_out(self._text())
        except OSError:  # stdout is closed, as by `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else the interpreter writes at exit
        parser.exit()


def write_out(line: str) -> None:
    """Write a line to stdout and flush it; do nothing without stdout."""
    if sys.stdout is not None:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


def _version() -> str:
    return f"attestkit {own_version()}"


def _faults() -> str:
    from attestkit.backends.simulator.faults import injection  # lazy: only with --list-faults

    return "\n".join(injection.simulator_faults())


def _scenarios() -> str:
    from attestkit.backends.simulator.scenarios import named as named_scenarios  # lazy, as above

    return "\n".join(named_scenarios.named_scenarios())


def refuse_empty(options: Options) -> None:
    """Refuse empty values, which unset shell variables leave: an empty path is the working folder.

    Raises:
        UsageError: If an option has an empty value.
    """
    for name, value in options._asdict().items():
        if value == "" or (isinstance(value, tuple) and "" in value):
            raise UsageError(f"--{name.replace('_', '-')}: the value is empty", reason="missing")


def _parser() -> _Parser:
    parser = _Parser(
        prog="attestkit serve",
        description="Serve the dstack guest agent API.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for title, add_options in _GROUPS:
        add_options(parser.add_argument_group(title).add_argument)
    return parser


def option_names() -> tuple[str, ...]:
    """Return all option names, for shell completion."""
    return _parser().names()


def parse_options(arguments: Sequence[str]) -> Options:
    """Return the options of a command line.

    Raises:
        UsageError: If an option is unknown, or its value is missing or invalid.
        SystemExit: After --help, --version or a list was printed.
    """
    parser = _parser()
    found, others = parser.parse_known_args(list(arguments))
    if others:
        raise UsageError(
            f"unrecognized arguments: {without_hex(_without_values(others))}; "
            "--help lists the options",
            reason="unknown_name",
        )
    said = vars(found)
    limits: dict[str, float] = {}
    for text in said.pop("limit"):
        try:
            name, value = parse_limit(text)
        except UsageError as error:
            raise UsageError(f"--limit {text[:64]}: {error}", reason=error.reason) from error
        limits[name] = value
    said["fault"] = said["fault"] and tuple(said["fault"])
    return Options(**said, limits=limits)


def _without_values(words: Sequence[str]) -> str:
    """Return the option names among words; the others may be secrets."""
    names = [word.partition("=")[0] for word in words if word.startswith("--")]
    others = sum(not word.startswith("--") for word in words)
    return " ".join([*names, f"(and {others} words that are not shown)" if others else ""]).strip()


def with_config(
    options: Options,
    values: Mapping[str, Any],
    sources: Mapping[str, str],
    limits: Mapping[str, float],
    environ: Mapping[str, str],
) -> Options:
    """Return options with the values of a configuration file where nothing overrides them.

    Args:
        options: The command line, which takes precedence.
        values: Values of the configuration file, by option.
        sources: File and key of each value.
        limits: Limits in the configuration file.
        environ: The environment, which overrides the configuration file.
    """

    def is_settled(field: str) -> bool:
        rivals = next((group for group in _RIVALS if field in group), {field})
        return any(
            getattr(options, rival) not in {None, False} or environ.get(_VARIABLES.get(rival, ""))
            for rival in rivals
        )

    said = {field: value for field, value in values.items() if not is_settled(field)}
    if options.access_log is False:
        said.pop("access_log", None)
    return options._replace(
        **said,
        limits={**limits, **options.limits},
        sources={field: sources[field] for field in said},
    )


_Add = Callable[..., object]


def _add_general(add: _Add) -> None:
    add("-c", "--config", metavar="FILE", help="configuration file of the agent, TOML or JSON")
    add(
        "--backend",
        metavar="NAME",
        help="backend, auto (default), or none for a verifier",
    )
    add(
        "-w",
        "--watchdog",
        action="store_true",
        help="send WATCHDOG=1 to the service manager every half of $WATCHDOG_USEC",
    )
    add("--json", action="store_true", help="write the ready message as JSON")
    add("--version", action=_Print, const=_version, help="print the version and exit")


def _add_listeners(add: _Add) -> None:
    add("--dir", metavar="DIR", help="folder of the unix sockets")
    add("--socket", metavar="PATH", help="default: DIR/dstack.sock; none: off")
    add("--tappd-socket", metavar="PATH", help="default: DIR/tappd.sock; none: off")
    add("--socket-mode", metavar="OCTAL", help="default: 600 for the simulator, 660 on hardware")
    add("--socket-group", metavar="GROUP", help="name or number")
    add(
        "--http",
        metavar="HOST:PORT",
        help="external listener; port 0 selects a free one, unix:PATH is a socket, none is off; "
        f"default: 127.0.0.1:{HTTP_PORT} for the simulator, 0.0.0.0:{HTTP_PORT} on hardware; a "
        "simulator on loopback accepts loopback names in the Host header only",
    )
    add(
        "--limit",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="limit of the listeners, such as body=4MiB or idle_seconds=30s; may be repeated; "
        f"names: {', '.join(Limits._fields)}",
    )


def _add_app(add: _Add) -> None:
    add("--app-keys", metavar="FILE", help="the agent's .appkeys.json")
    add("--app-compose", metavar="FILE", help="the agent's app-compose.json")
    add("--sys-config", metavar="FILE", help="the agent's .sys-config.json")
    add("--app-id", metavar="HEX", help="app id to measure, 20 bytes; default: of the compose hash")
    add(
        "--measure-app",
        action="store_true",
        help="on hardware without a boot sequence: measure the app into RTMR3 first; the "
        "simulator always does",
    )


def _add_simulator(add: _Add) -> None:
    add("--seed", metavar="HEX", help="seed of 32 bytes from which everything is derived")
    add("--seed-file", metavar="FILE", help="file with the seed, raw or in hex")
    add("--state-dir", metavar="DIR", help="folder of the seed and the registers")
    add("--reset", action="store_true", help="reboot the TD, which resets registers and events")
    add("--dev-http", metavar="HOST:PORT", help="all methods over TCP, on loopback only")
    add("--pccs", metavar="HOST:PORT", help="serve the simulator's collateral as a PCCS")
    add("--platform", choices=PLATFORMS, help="simulated platform; default: tdx")
    add("--quote-version", choices=QUOTE_VERSIONS, help="default: 4, with a TD 1.0 body")
    add("--scenario", metavar="NAME", help="simulate a named defect of the TEE or its collateral")
    add(
        "--fault",
        metavar="SPEC",
        action="append",
        help="fault to inject, and how often, such as ebusy:3 or slow:2s; may be repeated",
    )
    add("--list-faults", action=_Print, const=_faults, help="list the faults and exit")
    add("--list-scenarios", action=_Print, const=_scenarios, help="list the scenarios and exit")


def _add_verifier(add: _Add) -> None:
    add(
        "--verifier",
        metavar="HOST:PORT",
        help="verifier service; port 0 selects a free one; default: off; see --backend",
    )
    add(
        "--verifier-pccs",
        metavar="URL",
        help="PCCS for collateral; default: $PCCS_URL, else nothing is fetched",
    )
    add("--verifier-collateral", metavar="FILE", help="collateral instead of a PCCS")
    add(
        "--verifier-policy",
        metavar="NAME|FILE",
        help="appraisal policy: strict, default or development, or a file",
    )
    add(
        "--trust-anchor",
        metavar="FILE",
        help="root certificate, DER or PEM, instead of the vendors'; a simulator writes its own "
        "to DIR/trust-anchor.pem",
    )
    add(
        "--ear-key",
        metavar="FILE",
        help="private key that signs results (/verify?format=ear): Ed25519 or P-256 in PEM, or "
        "32 raw bytes of Ed25519, in a file with mode 0600",
    )


def _add_service(add: _Add) -> None:
    add(
        "--verifier-cache",
        metavar="DIR",
        help="folder of cached collateral, shared by processes; default: in memory",
    )
    add(
        "--verifier-metrics",
        metavar="HOST:PORT",
        help="GET /metrics of a verifier without an agent, for all its workers; default: off",
    )
    add(
        "--workers",
        metavar="N",
        help="number of worker processes; only with --backend none",
    )


def _add_log(add: _Add) -> None:
    add("--log-format", choices=LOG_FORMATS, help="default: text, one line per record")
    add("--log-level", choices=LOG_LEVELS, help="minimum level; default: info")
    add(
        "--access-log",
        action=argparse.BooleanOptionalAction,
        help="log every request, without its query; default: off",
    )


_GROUPS: Final = (
    ("general", _add_general),
    ("listeners", _add_listeners),
    ("the app", _add_app),
    ("the simulator", _add_simulator),
    ("the verifier service", _add_verifier),
    ("the verifier service: cache, metrics and workers", _add_service),
    ("the log", _add_log),
)
