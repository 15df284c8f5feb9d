"""Command line of the server: the parser of its options, and --help."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, Final, NoReturn

from attestkit._package import own_version
from attestkit._sanitize import without_hex
from attestkit.errors import UsageError
from attestkit.serve.config import options
from attestkit.serve.config.limits import Limits, parse_limit
from attestkit.serve.config.option_values import HTTP_PORT, prefix_errors
from attestkit.serve.docstrings import describe_attributes

_EPILOG: Final = """\
Environment: $ATTESTKIT_BACKEND, $ATTESTKIT_EMIT_EVENT and $PCCS_URL stand for --backend,
--emit-event and --verifier-pccs; $ATTESTKIT_LIMITED_SOCKETS has values PATH=METHODS of --socket,
separated by spaces; $DSTACK_HOST_SHARED_DIR is the folder of app files that no
option names; $DSTACK_CCEL_FILE, $DCAP_TDX_QUOTE_CONFIGFS_PATH and $DCAP_TDX_RTMR_SYSFS_PATH
name files of the hardware backends.
The command line overrides the environment, and the environment the configuration file.

Exit codes:
  0    stopped by a signal; requests over the drain time were aborted and logged
  1    usage or configuration error
  2    the KMS refused the app, or was rejected
  3    error of the device, the machine or attestkit
  5    unreadable input
  130  SIGINT during startup
Ended by SIGTERM or SIGINT: the signal came during startup, or a second time.
"""
# Options in --help; --help-all has all.
_COMMON: Final = {
    *("config", "backend", "json", "dir", "socket", "http", "app_keys", "app_compose"),
    *("sys_config", "kms_url", "kms_root", "seed_file", "state_dir", "dev_http", "pccs_http"),
    *("platform", "scenario", "fault", "kms", "verifier", "verifier_pccs", "verifier_policy"),
    *("trust_anchor", "workers", "log_level"),
}
# Titles in --help, by the first option of each group.
_GROUPS: Final = {
    "config": "general",
    "dir": "listeners",
    "app_keys": "the app",
    "seed": "the simulator",
    "kms": "the simulated KMS",
    "verifier": "the verifier service",
    "log_format": "the log",
}


class _Parser(argparse.ArgumentParser):
    def names(self) -> tuple[str, ...]:
        """Return all option names, including those that argparse adds."""
        return tuple(self._option_string_actions)

    def print_help(self, file: object = None) -> None:
        """Write the help to stdout, which may be closed; `file` is ignored."""
        del file
        write_out(self.format_help().rstrip("\n"))

    def error(self, message: str) -> NoReturn:
        """Raise a one-line UsageError that shows no seed, instead of printing the usage.

        `message` is its text, in which long hex is replaced.
        """
        raise UsageError(
            f"{without_hex(message)}; --help-all lists the options", reason="wrong_value"
        )


def write_out(line: str) -> None:
    """Write a line to stdout and flush it; do nothing without stdout, or if it is closed."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    except OSError:  # as by `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else the interpreter writes again at exit


def _version() -> str:
    return f"attestkit {own_version()}"


def _faults() -> str:
    from attestkit.backends.simulator.faults import injection  # lazy: only with --list-faults
    from attestkit.backends.simulator.faults.kms_faults import KMS_FAULTS
    from attestkit.backends.simulator.scenarios.named_case import describe_cases

    return "\n".join((*injection.simulator_faults(), *describe_cases(KMS_FAULTS)))


def _scenarios() -> str:
    from attestkit.backends.simulator.scenarios.registry import describe_scenarios  # lazy

    return "\n".join(describe_scenarios())


_SHOWS: Final = {
    "--help-all": (lambda: _parser(every=True).format_help(), "list all options and exit"),
    "--version": (_version, "print the version and exit"),
    "--list-faults": (_faults, "list the faults and exit"),
    "--list-scenarios": (_scenarios, "list the scenarios and exit"),
}


def _parser(*, every: bool = False) -> _Parser:
    """Return the parser; its help has the common options, or with `every` all of them."""
    parser = _Parser(
        prog="attestkit serve",
        usage="%(prog)s [OPTIONS]",
        description="Serve the dstack guest agent API.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    values = {
        "port": HTTP_PORT,
        "platforms": ", ".join(options.CHOICES["platform"]),
        "limits": ", ".join(Limits._fields),
    }
    texts = describe_attributes(options.Options)  # empty with -OO
    for name in options.Options._fields:
        if name in _GROUPS:
            add = parser.add_argument_group(_GROUPS[name]).add_argument
        if name not in options.INTERNAL:
            text = texts.get(name, "").format_map(values)
            text = text if every or name in _COMMON else argparse.SUPPRESS
            add(*_names(name), dest=name, help=text, **_argument(name))
    add = parser.add_argument_group("information").add_argument
    for option, (get_text, text) in _SHOWS.items():
        add(option, dest="show", action="store_const", const=get_text, help=text)
    return parser


def _names(field: str) -> list[str]:
    """Return the names of the option of a field of Options: -c or -w, if any, and the long one."""
    short = {"config": ["-c"], "watchdog": ["-w"]}.get(field, [])
    return [*short, "--limit" if field == "limits" else f"--{field.replace('_', '-')}"]


def _argument(field: str) -> dict[str, Any]:
    """Return the keyword arguments of `add_argument` for the option of a field of Options."""
    if field == "access_log":
        return {"action": argparse.BooleanOptionalAction}
    if field in options.FLAGS:
        return {"action": "store_true"}
    metavar = getattr(options.Options.__annotations__[field], "__metadata__", (None,))[0]
    if field in options.CHOICES:
        return {"choices": options.CHOICES[field], "metavar": metavar}
    action = "append" if field in {*options.REPEATED, "limits", "socket"} else "store"
    return {"action": action, "metavar": metavar}


def option_names() -> tuple[str, ...]:
    """Return all option names, for shell completion."""
    return _parser().names()


def parse_options(arguments: Sequence[str]) -> options.Options:
    """Return the options of a command line.

    `arguments` are its words after the program's name. An empty value is refused: it often comes
    from an unset shell variable, and an empty path would mean the working folder.

    Raises:
        UsageError: If an option is unknown, or its value is missing, empty or invalid.
        SystemExit: After --help, --version or a list was printed.
    """
    found, others = _parser().parse_known_args(list(arguments))
    if others:
        raise UsageError(
            f"unrecognized arguments: {without_hex(_without_values(others))}; "
            "--help-all lists the options",
            reason="unknown_name",
        )
    said = vars(found)
    if (show := said.pop("show")) is not None:
        write_out(show())
        raise SystemExit(0)
    limits: dict[str, float] = {}
    for text in said["limits"] or ():
        with prefix_errors(f"--limit {text[:64]}:"):
            name, value = parse_limit(text)
        limits[name] = value
    for name in options.REPEATED:
        said[name] = said[name] and tuple(said[name])
    said["limits"] = limits
    said["socket"], said["limited_sockets"] = options.split_sockets(said["socket"] or ())
    for name, value in said.items():
        if value == "" or (isinstance(value, tuple) and "" in value):
            raise UsageError(f"--{name.replace('_', '-')}: the value is empty", reason="missing")
    return options.Options(**said)


def _without_values(words: Sequence[str]) -> str:
    """Return the option names among words as a text; the others may be secrets."""
    names = [word.partition("=")[0] for word in words if word.startswith("--")]
    others = sum(not word.startswith("--") for word in words)
    return " ".join([*names, f"(and {others} words that are not shown)" if others else ""]).strip()
