"""The command line is read whole, and goes before the environment, and that before a file."""

from typing import Any

import pytest

from attestkit.backends.simulator.faults.injection import simulator_faults
from attestkit.backends.simulator.scenarios.named import named_scenarios
from attestkit.errors import UsageError
from attestkit.serve.config.command_line import FLAGS, Options, parse_options, with_config
from attestkit.serve.config.limits import Limits
from tests.untyped import untyped

ONLY_IN_FILES = {"ident", "data_disks", "sources"}
SEED = "5eed" * 16
CHOICES = {"log_format": "json", "log_level": "debug", "platform": "snp", "quote_version": "5"}


def laid(options: Options, environ: Any = None, **values: Any) -> Options:
    """Lay options over a configuration."""
    sources = {name: f"file: {name}" for name in values}
    return with_config(options, values, sources, {}, environ or {})


def test_nothing_said() -> None:
    """No option has a value of its own; defaults are decided elsewhere."""
    assert parse_options([]) == Options()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--sed", SEED), "--sed (and words that are not shown: 1)"),
        ((f"--sed={SEED}",), "--sed"),
        (("--sed", "s3cret", "--nope=s3cret"), "--sed --nope (and words that are not shown: 1)"),
        ((SEED,), "(and words that are not shown: 1)"),
        ((f"-seed={SEED}",), "(and words that are not shown: 1)"),
        ((f"--reset={SEED}",), "argument --reset: ignored explicit argument '<hex, not shown>'"),
        (("--platform", SEED), "argument --platform: invalid choice: '<hex, not shown>'"),
    ],
)
def test_no_value_of_what_is_unknown_is_shown(words: tuple[str, ...], told: str) -> None:
    """It may be a seed, behind a slip in an option's name."""
    with pytest.raises(UsageError) as caught:
        parse_options(words)
    assert told in str(caught.value)
    assert not any(secret in str(caught.value) for secret in ("s3cret", "5eed5eed"))


@pytest.mark.parametrize("name", sorted(set(Options._fields) - FLAGS - ONLY_IN_FILES - {"limits"}))
def test_every_option(name: str) -> None:
    """Each is on the command line, with a value, by its whole name."""
    option = f"--{name.replace('_', '-')}"
    value = CHOICES.get(name, "x")
    found = Options(**untyped({name: (value,) if name == "fault" else value}))
    assert parse_options([option, value]) == found
    assert parse_options([f"{option}={value}"]) == found
    with pytest.raises(UsageError, match=option):
        parse_options([option])
    with pytest.raises(UsageError, match=option[:-1]):
        parse_options([option[:-1], value])


@pytest.mark.parametrize("name", sorted(FLAGS))
def test_every_flag(name: str) -> None:
    """Each is on when it is said; it takes no value."""
    option = f"--{name.replace('_', '-')}"
    assert parse_options([option]) == Options(**untyped({name: True}))
    with pytest.raises(UsageError):
        parse_options([f"{option}=yes"])


def test_short_and_negative_forms() -> None:
    """Upstream's -c, and what turns off a file's access log."""
    assert parse_options(["-c", "x"]).config == "x"
    assert parse_options(["--no-access-log"]).access_log is False


def test_faults() -> None:
    """They may be repeated, and each may be several."""
    found = parse_options(["--fault", "ebusy:3", "--fault=slow:1s eio"])
    assert found.fault == ("ebusy:3", "slow:1s eio")
    assert laid(found, fault=("eintr",)).fault == found.fault
    assert laid(Options(), fault=("eintr",)).fault == ("eintr",)


@pytest.mark.parametrize(
    ("option", "lines"),
    [("--list-faults", simulator_faults()), ("--list-scenarios", named_scenarios())],
)
def test_the_lists(capsys: pytest.CaptureFixture[str], option: str, lines: tuple[str, ...]) -> None:
    """A line for each that the simulator has, as `attestkit mount --list-faults` has them."""
    with pytest.raises(SystemExit) as caught:
        parse_options([option])
    assert caught.value.code == 0
    assert capsys.readouterr().out.splitlines() == list(lines)


def test_limits() -> None:
    """They may be repeated; of two for one name the last counts."""
    found = parse_options(["--limit", "body=4KiB", "--limit", "head=2KiB", "--limit=body=8KiB"])
    assert found.limits == {"body": 8192, "head": 2048}
    with pytest.raises(UsageError, match=r"^--limit x=1: no limit is called 'x'; the names are "):
        parse_options(["--limit", "x=1"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--log-format", "xml"], "--log-format"),
        (["--log-level", "loud"], "--log-level"),
        (["word"], "word"),
        (["--ident", "x"], "--ident"),
        (["--data-disks", "/"], "--data-disks"),
    ],
)
def test_what_is_refused(words: list[str], told: str) -> None:
    """In one line that names the option and leads to --help."""
    with pytest.raises(UsageError) as caught:
        parse_options(words)
    assert told in str(caught.value)
    assert "--help" in str(caught.value)


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    """It has every option under a heading, every limit, and the variables that count."""
    with pytest.raises(SystemExit) as caught:
        parse_options(["--help"])
    assert caught.value.code == 0
    told = capsys.readouterr().out
    for name in set(Options._fields) - ONLY_IN_FILES - {"limits"}:
        assert f"--{name.replace('_', '-')}" in told
    for word in ("--limit", "--version", "-c", "$PCCS_URL", "$DSTACK_HOST_SHARED_DIR"):
        assert word in told
    for name in Limits._fields:
        assert name in told


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """It is the installed one's."""
    from importlib.metadata import version

    with pytest.raises(SystemExit) as caught:
        parse_options(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"attestkit {version('attestkit')}\n"


# -- below the command line ------------------------------------------------------------------------


def test_a_configuration_fills_in() -> None:
    """What nobody said comes from it, with its source; what was said stays."""
    found = laid(Options(http="none"), http="0.0.0.0:1", dir="/d", reset=True, data_disks=("/",))
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


@pytest.mark.parametrize(
    ("said", "environ", "expected"),
    [
        (None, {}, "file"),
        ("said", {}, "said"),
        ("said", {"ATTESTKIT_BACKEND": "variable"}, "said"),
        (None, {"ATTESTKIT_BACKEND": "variable"}, None),  # which is read where backends are chosen
        (None, {"ATTESTKIT_BACKEND": ""}, "file"),
    ],
)
def test_the_order(said: str | None, environ: dict[str, str], expected: str | None) -> None:
    """A variable stands between the command line and the file."""
    assert laid(Options(backend=said), environ, backend="file").backend == expected


@pytest.mark.parametrize(
    ("options", "environ"),
    [
        (Options(verifier_pccs="u"), {}),
        (Options(verifier_collateral="c"), {}),
        (Options(), {"PCCS_URL": "u"}),
    ],
)
def test_rivals(options: Options, environ: dict[str, str]) -> None:
    """Who names one source of collateral, or of a seed, does away with the others below."""
    for name in ("verifier_pccs", "verifier_collateral"):
        assert laid(options, environ, **{name: "file"}) == options
    for name in ("seed", "seed_file"):
        for said in (Options(seed="s"), Options(seed_file="f")):
            assert laid(said, **{name: "file"}) == said
    assert laid(Options(), seed="s", seed_file="f").seed_file == "f"  # which is refused later


def test_the_access_log() -> None:
    """On in a file, it can be turned off and on."""
    for said, expected in ((None, True), (False, False), (True, True)):
        assert laid(Options(access_log=said), access_log=True).access_log is expected
    assert laid(Options(access_log=True), access_log=False).access_log is True


def test_limits_of_both() -> None:
    """Each by itself: the command line's go before the file's."""
    options = Options(limits={"body": 1})
    found = with_config(options, {}, {}, {"body": 2, "head": 3}, {})
    assert found.limits == {"body": 1, "head": 3}
