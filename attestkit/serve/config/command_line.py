"""The options of the server: what each is called, and how the command line is read.

A configuration file may give most of them too; `with_config` lays what it says below the command
line and the environment, and remembers where each value came from, for errors.
"""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from attestkit._sanitize import without_hex
from attestkit._version import own_version
from attestkit.errors import ConfigError, UsageError
from attestkit.serve.config.limits import Limits, parse_limit
from attestkit.serve.config.option_values import HTTP_PORT, OFF, Address, parse_address

if TYPE_CHECKING:
    from attestkit.errors import AttestKitError

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
"""Options that are on or off."""

_EPILOG: Final = """\
Environment: $ATTESTKIT_BACKEND and $PCCS_URL stand for --backend and --verifier-pccs;
$DSTACK_HOST_SHARED_DIR is the folder of the app's files that no option names; $DSTACK_CCEL_FILE,
$DCAP_TDX_QUOTE_CONFIGFS_PATH and $DCAP_TDX_RTMR_SYSFS_PATH name files of the hardware's backends.
A command line goes before the environment, that before a configuration, and that before the
defaults.

Exit codes:
  0    stopped by a signal; requests that outlasted the time to finish were cut off, and logged
  1    usage or configuration
  3    the device, the machine, or an error of our own
  5    unreadable input
  130  SIGINT before it served
Killed by SIGTERM or SIGINT itself: that signal came before it served, or a second time.
"""
_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})
# Of these one is enough: who names one in a stronger place does away with the others below it.
_RIVALS: Final = (
    frozenset({"seed", "seed_file"}),
    frozenset({"verifier_pccs", "verifier_collateral"}),
)
_VARIABLES: Final = {"backend": "ATTESTKIT_BACKEND", "verifier_pccs": "PCCS_URL"}


class Options(NamedTuple):
    """What the command line said, or else a configuration; None where nobody said anything.

    `ident` and `data_disks` are a configuration's only. `sources` has for each value that a
    configuration gave the file and the key.
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
        """Return what people know an option by: its own name, or its place in the file."""
        return self.sources.get(field) or f"--{field.replace('_', '-')}"

    def refusal(self, field: str, reason: str) -> "AttestKitError":
        """Return the error that an option may not be there, or may not be so."""
        text = f"{self.named(field)} {reason}"
        return ConfigError(text) if field in self.sources else UsageError(text)

    def wrong(self, field: str, reason: str) -> "AttestKitError":
        """Return the error that the value of an option, which it shows, is none."""
        colon = ":" if field in self.sources else ""
        text = f"{self.named(field)}{colon} {getattr(self, field)}: {reason}"
        return ConfigError(text) if colon else UsageError(text)

    def path(self, field: str) -> Path | None:
        """Return the path that an option names, absolute."""
        text: str | None = getattr(self, field)
        return None if text is None else Path(text).absolute()

    def address(self, field: str, default: Address | None = None) -> Address | None:
        """Return the address that an option gives; None where it says that there is none.

        Raises:
            UsageError: It is something else.
            ConfigError: The same, from a configuration.
        """
        text: str | None = getattr(self, field)
        if text is None:
            return default
        try:
            return None if text == OFF else parse_address(text)
        except UsageError as error:
            raise self.wrong(field, str(error)) from error


class _Parser(argparse.ArgumentParser):
    def names(self) -> tuple[str, ...]:
        """Return all options as they are written, those that argparse adds too."""
        return tuple(self._option_string_actions)

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage: one line is enough, and it shows no seed."""
        raise UsageError(f"{without_hex(message)} (--help lists the options)")


class _Print(argparse.Action):
    """Print what is asked for, and stop."""

    def __init__(self, option_strings: Sequence[str], dest: str, **rest: Any) -> None:
        self._text: Callable[[], str] = rest.pop("const")
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, **rest)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        try:
            write_out(self._text())
        except OSError:  # nobody reads on, as behind `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else Python tries again when it ends
        parser.exit()


def write_out(line: str) -> None:
    """Write a line to stdout at once; nowhere, if whoever started us closed it."""
    if sys.stdout is not None:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


def _version() -> str:
    return f"attestkit {own_version()}"


def _faults() -> str:
    from attestkit.backends.simulator.faults import injection  # late: only this needs the simulator

    return "\n".join(injection.simulator_faults())


def _scenarios() -> str:
    from attestkit.backends.simulator.scenarios import named as named_scenarios  # late, as above

    return "\n".join(named_scenarios.named_scenarios())


def refuse_empty(options: Options) -> None:
    """Refuse what an unset variable of a shell leaves: as a path it would be this very folder.

    Raises:
        UsageError: An option has an empty value.
    """
    for name, value in options._asdict().items():
        if value == "" or (isinstance(value, tuple) and "" in value):
            raise UsageError(f"--{name.replace('_', '-')}: the value is empty")


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
    """Return all options as they are written, for a shell that completes them."""
    return _parser().names()


def parse_options(arguments: Sequence[str]) -> Options:
    """Return what a command line says.

    Raises:
        UsageError: There is no such option, or it lacks its value or may not have it.
        SystemExit: It asked for help or for the version, which are printed.
    """
    parser = _parser()
    found, others = parser.parse_known_args(list(arguments))
    if others:
        parser.error(f"unrecognized arguments: {_without_values(others)}")
    said = vars(found)
    limits: dict[str, float] = {}
    for text in said.pop("limit"):
        try:
            name, value = parse_limit(text)
        except UsageError as error:
            raise UsageError(f"--limit {text[:64]}: {error}") from error
        limits[name] = value
    said["fault"] = said["fault"] and tuple(said["fault"])
    return Options(**said, limits=limits)


def _without_values(words: Sequence[str]) -> str:
    """Return the options among words; behind one that was misspelt may be a secret."""
    names = [word.partition("=")[0] for word in words if word.startswith("--")]
    others = sum(not word.startswith("--") for word in words)
    return " ".join([*names, f"(and words that are not shown: {others})" if others else ""]).strip()


def with_config(
    options: Options,
    values: Mapping[str, Any],
    sources: Mapping[str, str],
    limits: Mapping[str, float],
    environ: Mapping[str, str],
) -> Options:
    """Return options with what a configuration says where nothing stronger says otherwise.

    Args:
        options: The command line, which is the strongest.
        values: What the configuration says, by option.
        sources: Its file and key, by option.
        limits: What it says of them.
        environ: The variables, which are stronger than a configuration.
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
    add("-c", "--config", metavar="FILE", help="the agent's configuration, TOML or JSON")
    add("--backend", metavar="NAME", help="a backend's name; default: auto")
    add(
        "-w",
        "--watchdog",
        action="store_true",
        help="tell the service manager that we live, every half of $WATCHDOG_USEC",
    )
    add("--json", action="store_true", help="say in JSON what listens")
    add("--version", action=_Print, const=_version, help="print the version and exit")


def _add_listeners(add: _Add) -> None:
    add("--dir", metavar="DIR", help="folder of the sockets")
    add("--socket", metavar="PATH", help="default: DIR/dstack.sock; none: off")
    add("--tappd-socket", metavar="PATH", help="default: DIR/tappd.sock; none: off")
    add("--socket-mode", metavar="OCTAL", help="default: 600 for the simulator, 660 on hardware")
    add("--socket-group", metavar="GROUP", help="name or number")
    add(
        "--http",
        metavar="HOST:PORT",
        help="external listener, port 0: any free one, unix:PATH: a socket, none: off; "
        f"default: 127.0.0.1:{HTTP_PORT} for the simulator, 0.0.0.0:{HTTP_PORT} on hardware; a "
        "simulator's on loopback answers to localhost and loopback addresses alone",
    )
    add(
        "--limit",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="a bound of the listeners, as in body=4MiB or idle_seconds=30s; may be repeated; "
        f"the names are {', '.join(Limits._fields)}",
    )


def _add_app(add: _Add) -> None:
    add("--app-keys", metavar="FILE", help="the agent's .appkeys.json")
    add("--app-compose", metavar="FILE", help="the agent's app-compose.json")
    add("--sys-config", metavar="FILE", help="the agent's .sys-config.json")
    add("--app-id", metavar="HEX", help="20 bytes to measure; default: from the compose hash")
    add(
        "--measure-app",
        action="store_true",
        help="hardware without a boot sequence: measure the app into RTMR3, before anything else "
        "is; the simulator always does",
    )


def _add_simulator(add: _Add) -> None:
    add("--seed", metavar="HEX", help="32 bytes that everything follows from")
    add("--seed-file", metavar="FILE", help="a file with the seed, raw or in hex")
    add("--state-dir", metavar="DIR", help="folder of its seed and registers")
    add("--reset", action="store_true", help="reboot the TD, forgetting its events")
    add("--dev-http", metavar="HOST:PORT", help="everything over TCP, loopback only")
    add("--pccs", metavar="HOST:PORT", help="serve its collateral, as a PCCS does")
    add("--platform", choices=PLATFORMS, help="what it is; default: tdx")
    add("--quote-version", choices=QUOTE_VERSIONS, help="default: 4, which has a TD 1.0 body")
    add("--scenario", metavar="NAME", help="what is wrong, or odd, with it and its collateral")
    add(
        "--fault",
        metavar="SPEC",
        action="append",
        help="what goes wrong, and how often, as in ebusy:3 or slow:2s; may be repeated",
    )
    add("--list-faults", action=_Print, const=_faults, help="tell what can go wrong, and exit")
    add("--list-scenarios", action=_Print, const=_scenarios, help="tell their names, and exit")


def _add_verifier(add: _Add) -> None:
    add(
        "--verifier",
        metavar="HOST:PORT",
        help="the verifier service, port 0: any free one; default: off; alone with --backend none",
    )
    add(
        "--verifier-pccs",
        metavar="URL",
        help="where collateral is fetched; default: $PCCS_URL, else nothing is fetched",
    )
    add("--verifier-collateral", metavar="FILE", help="collateral in place of a PCCS")
    add(
        "--verifier-policy",
        metavar="NAME|FILE",
        help="rules that evidence must meet: strict, default or development, or a file",
    )
    add(
        "--trust-anchor",
        metavar="FILE",
        help="one root, DER or PEM, in place of the makers'; a simulator leaves its own in "
        "DIR/trust-anchor.pem",
    )
    add(
        "--ear-key",
        metavar="FILE",
        help="private key that signs verdicts (/verify?format=ear), Ed25519 or P-256 in PEM, or "
        "32 raw bytes of Ed25519; its mode must be 0600",
    )


def _add_service(add: _Add) -> None:
    add(
        "--verifier-cache",
        metavar="DIR",
        help="where fetched collateral is kept, for all processes that name it; default: in memory",
    )
    add(
        "--verifier-metrics",
        metavar="HOST:PORT",
        help="GET /metrics of a verifier alone, all its processes together; default: off",
    )
    add(
        "--workers",
        metavar="N",
        help="processes that share the verifier's socket; with --backend none alone",
    )


def _add_log(add: _Add) -> None:
    add("--log-format", choices=LOG_FORMATS, help="default: text, a line per record")
    add("--log-level", choices=LOG_LEVELS, help="the least that is told; default: info")
    add(
        "--access-log",
        action=argparse.BooleanOptionalAction,
        help="a line for every request, without its query; default: off",
    )


_GROUPS: Final = (
    ("general", _add_general),
    ("listeners", _add_listeners),
    ("the app", _add_app),
    ("the simulator", _add_simulator),
    ("the verifier service", _add_verifier),
    ("the verifier service, by several processes", _add_service),
    ("the log", _add_log),
)
