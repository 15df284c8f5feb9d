"""Help and options of all commands agree."""

import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from tests.cli.command_table import list_programs

# Their options are too many for a screen.
LONG = {"measure", "serve"}
PROGRAMS = dict(list_programs())


def _options(name: str) -> Iterator[tuple[str, click.Option]]:
    """Yield the option `name` of every command that has it."""
    for words, command in PROGRAMS.items():
        for parameter in command.params:
            if isinstance(parameter, click.Option) and name in parameter.opts:
                yield words, parameter


@pytest.mark.parametrize("words", sorted(PROGRAMS.keys() - {"serve"}))
def test_help_fits_screen(words: str) -> None:
    """Help has at most 80 columns, and but for `measure` at most 50 lines; options have a text."""
    command = PROGRAMS[words]
    context = click.Context(command, info_name=f"attestkit {words}", terminal_width=80)
    lines = command.get_help(context).splitlines()
    assert max(map(len, lines)) <= 80
    assert (len(lines) > 50) == (words in LONG), len(lines)
    for parameter in command.params:
        assert not isinstance(parameter, click.Option) or parameter.help, parameter.name


def test_help_loads_no_format() -> None:
    """The modules of the commands, which --help imports, import neither evidence nor verifier."""
    text = (
        "import sys; from attestkit.cli import commands; from pkgutil import iter_modules\n"
        "for one in iter_modules(commands.__path__, 'attestkit.cli.commands.'):\n"
        "    __import__(one.name); print(one.name, *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", text], stdout=subprocess.PIPE, check=True)
    found = [line.split() for line in done.stdout.decode().splitlines()]
    assert len(found) > 20
    heavy = {"attestkit.attestation", "attestkit.quote", "attestkit.tpm", "attestkit.verifier"}
    assert [name for name, *loaded in found if heavy & {*loaded}] == []


@pytest.mark.parametrize(
    ("name", "metavars"),
    [
        ("--nonce", {"HEX"}),
        ("--report-data", {"HEX"}),
        ("--text", {"TEXT"}),
        ("--file", {"FILE"}),
        ("--at", {"TIME"}),
        ("--policy", {"NAME|FILE", "[ROLE=]FILE"}),
        ("--trust-anchor", {"FILE"}),
        ("--collateral", {"FILE"}),
        ("--pccs", {"URL"}),
        ("--app-id", {"HEX"}),
        ("--kms-root-key", {"HEX"}),
        ("--save-bundle", {"FILE"}),
    ],
)
def test_option_has_same_values_in_every_command(name: str, metavars: set[str]) -> None:
    """An option that several commands have takes the same kind of value."""
    found = dict(_options(name))
    assert len(found) > 1 or name == "--save-bundle"
    assert {option.metavar for option in found.values()} <= metavars
    assert len({str(option.type) for option in found.values()}) == 1


def test_json_and_output_are_the_same_in_every_command() -> None:
    """--json is a flag with one text, and --output has the short form -o."""
    assert {(option.is_flag, option.help) for _, option in _options("--json")} == {
        (True, "Write JSON to stdout.")
    }
    for words, option in _options("--output"):
        assert "-o" in option.opts, words


def test_no_option_is_an_abbreviation_of_another_command() -> None:
    """A short option means the same wherever it is."""
    short: dict[str, set[str]] = {}
    for command in PROGRAMS.values():
        for parameter in command.params:
            for name in parameter.opts:
                if len(name) == 2 and name.startswith("-"):
                    short.setdefault(name, set()).add(max(parameter.opts, key=len))
    assert {name: names for name, names in short.items() if len(names) > 1} == {}
