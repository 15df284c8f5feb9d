"""Options on the command line precede the environment, which precedes a configuration file."""

import re
from typing import Any

import pytest

from attestkit.backends.simulator.faults.injection import simulator_faults
from attestkit.backends.simulator.faults.kms_faults import KMS_FAULTS
from attestkit.backends.simulator.scenarios.named_case import describe_cases
from attestkit.backends.simulator.scenarios.registry import describe_scenarios
from attestkit.errors import UsageError
from attestkit.serve.config.command_line import parse_options
from attestkit.serve.config.limits import Limits
from attestkit.serve.config.options import CHOICES, FLAGS, REPEATED, Config, Options, with_config
from tests.raising import raises
from tests.runner.cases import every_case
from tests.untyped import untyped

ONLY_IN_FILES = {"ident", "data_disks", "limited_sockets", "sources"}
SEED = "5eed" * 16
VALUES = {name: choices[-1] for name, choices in CHOICES.items()}


def merge_options(options: Options, environ: Any = None, **values: Any) -> Options:
    """Merge options with values of a configuration file."""
    sources = {name: f"file: {name}" for name in values}
    return with_config(options, Config(values, sources, {}), environ or {})


@every_case(
    ("arguments", "message"),
    [
        (("--sed", SEED), "--sed (and 1 words that are not shown)"),
        ((f"--sed={SEED}",), "--sed"),
        (("--sed", "s3cret", "--nope=s3cret"), "--sed --nope (and 1 words that are not shown)"),
        ((SEED,), "(and 1 words that are not shown)"),
        ((f"-seed={SEED}",), "(and 1 words that are not shown)"),
        ((f"--reset={SEED}",), "argument --reset: ignored explicit argument '<hex, not shown>'"),
        (("--platform", SEED), "argument --platform: invalid choice: '<hex, not shown>'"),
    ],
)
def test_parse_options_unknown_argument_hides_value(
    arguments: tuple[str, ...], message: str
) -> None:
    """The value of an unknown argument is not shown, because it may be a seed."""
    with pytest.raises(UsageError) as caught:
        parse_options(arguments)
    assert message in str(caught.value)
    assert not any(secret in str(caught.value) for secret in ("s3cret", "5eed5eed"))


@every_case("name", sorted(set(Options._fields) - FLAGS - ONLY_IN_FILES - {"limits"}))
def test_parse_options_every_option_takes_value(name: str) -> None:
    """Every option takes a value, which is not empty, and cannot be abbreviated."""
    option = f"--{name.replace('_', '-')}"
    value = VALUES.get(name, "x")
    found = Options(**untyped({name: (value,) if name in REPEATED else value}))
    assert parse_options([option, value]) == found
    assert parse_options([f"{option}={value}"]) == found
    if name not in CHOICES:
        with raises(UsageError, "missing") as caught:  # as of an unset shell variable
            parse_options([option, ""])
        assert str(caught.value) == f"{option}: the value is empty"
    with raises(UsageError, "wrong_value", part=option):
        parse_options([option])
    with raises(UsageError, "unknown_name", part=option[:-1]):
        parse_options([option[:-1], value])


@every_case("name", sorted(FLAGS))
def test_parse_options_every_flag_takes_no_value(name: str) -> None:
    """Every flag takes no value."""
    option = f"--{name.replace('_', '-')}"
    assert parse_options([option]) == Options(**untyped({name: True}))
    with pytest.raises(UsageError):
        parse_options([f"{option}=yes"])


def test_parse_options_short_and_negative_options() -> None:
    """-c is --config; --no-access-log disables the access log, also one of the file."""
    assert parse_options(["-c", "x"]).config == "x"
    assert parse_options(["--no-access-log"]).access_log is False
    assert merge_options(Options(access_log=False), access_log=True).access_log is False


def test_parse_options_fault_is_repeatable() -> None:
    """--fault may be repeated, and one value may contain several faults."""
    found = parse_options(["--fault", "ebusy:3", "--fault=slow:1s eio"])
    assert found.fault == ("ebusy:3", "slow:1s eio")
    assert merge_options(found, fault=("eintr",)).fault == found.fault
    assert merge_options(Options(), fault=("eintr",)).fault == ("eintr",)


@pytest.mark.parametrize(
    ("option", "lines"),
    [
        ("--list-faults", (*simulator_faults(), *describe_cases(KMS_FAULTS))),
        ("--list-scenarios", describe_scenarios()),
    ],
)
def test_parse_options_list_prints_and_exits(
    capsys: pytest.CaptureFixture[str], option: str, lines: tuple[str, ...]
) -> None:
    """--list-faults and --list-scenarios print one line per item."""
    with pytest.raises(SystemExit) as caught:
        parse_options([option])
    assert caught.value.code == 0
    assert capsys.readouterr().out.splitlines() == list(lines)


def test_parse_options_limit_is_repeatable() -> None:
    """--limit may be repeated; the last value of a name applies."""
    found = parse_options(["--limit", "body=4KiB", "--limit", "head=2KiB", "--limit=body=8KiB"])
    assert found.limits == {"body": 8192, "head": 2048}
    with raises(UsageError, "unknown_name", start="--limit x=1: unknown limit 'x'; the names are "):
        parse_options(["--limit", "x=1"])


@every_case(
    "arguments",
    [["--log-format", "xml"], ["--log-level", "x"], ["word"], ["--ident", "x"], ["--data-disks=/"]],
)
def test_parse_options_invalid_argument_names_option(arguments: list[str]) -> None:
    """The error names the option and refers to --help."""
    with pytest.raises(UsageError) as caught:
        parse_options(arguments)
    assert arguments[0].partition("=")[0] in str(caught.value)
    assert "--help" in str(caught.value)


def test_parse_options_help_lists_everything(capsys: pytest.CaptureFixture[str]) -> None:
    """--help-all lists every option, limit, environment variable and exit code."""
    with pytest.raises(SystemExit) as caught:
        parse_options(["--help-all"])
    assert caught.value.code == 0
    message = capsys.readouterr().out
    for name in set(Options._fields) - ONLY_IN_FILES - {"limits"}:
        assert f"--{name.replace('_', '-')}" in message
    for word in ("--limit", "--version", "-c", "$PCCS_URL", "$DSTACK_HOST_SHARED_DIR"):
        assert word in message
    for name in Limits._fields:
        assert name in message
    for code in (0, 1, 3, 5, 130):
        assert re.search(rf"^  {code} ", message, re.MULTILINE)


def test_parse_options_version_prints_version(capsys: pytest.CaptureFixture[str]) -> None:
    """--version prints the installed version."""
    from importlib.metadata import version

    with pytest.raises(SystemExit) as caught:
        parse_options(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"attestkit {version('attestkit')}\n"


# -- with a configuration file ---------------------------------------------------------------------


def test_with_config_fills_unset_options() -> None:
    """Unset options come from the file, with their source; set options stay."""
    found = merge_options(
        Options(http="none"), http="0.0.0.0:1", dir="/d", reset=True, data_disks=("/",)
    )
    assert found == Options(
        http="none",
        dir="/d",
        reset=True,
        data_disks=("/",),
        sources={"dir": "file: dir", "reset": "file: reset", "data_disks": "file: data_disks"},
    )
    assert found.named("dir") == "file: dir"
    assert found.named("http") == "--http"
    assert found.named("app_keys") == "--app-keys"


def test_with_config_environment_precedes_file() -> None:
    """$ATTESTKIT_BACKEND precedes the file, and the command line precedes both."""
    for option, environ, expected in (
        (None, {}, "file"),
        ("said", {"ATTESTKIT_BACKEND": "variable"}, "said"),
        (None, {"ATTESTKIT_BACKEND": "variable"}, None),  # read when the backend is selected
        (None, {"ATTESTKIT_BACKEND": ""}, "file"),
    ):
        assert merge_options(Options(backend=option), environ, backend="file").backend == expected


@pytest.mark.parametrize(
    ("options", "environ"),
    [
        (Options(verifier_pccs="u"), {}),
        (Options(verifier_collateral="c"), {}),
        (Options(), {"PCCS_URL": "u"}),
    ],
)
def test_with_config_alternative_sources_are_dropped(
    options: Options, environ: dict[str, str]
) -> None:
    """An option for one source of collateral or seed drops the alternatives in the file."""
    for name in ("verifier_pccs", "verifier_collateral"):
        assert merge_options(options, environ, **{name: "file"}) == options
    for name in ("seed", "seed_file"):
        for option in (Options(seed="s"), Options(seed_file="f")):
            assert merge_options(option, **{name: "file"}) == option
    assert merge_options(Options(), seed="s", seed_file="f").seed_file == "f"  # refused later


def test_with_config_limits_merge_by_name() -> None:
    """Limits merge by name; the command line precedes the file."""
    options = Options(limits={"body": 1})
    found = with_config(options, Config({}, {}, {"body": 2, "head": 3}), {})
    assert found.limits == {"body": 1, "head": 3}
