"""Help and options of all commands agree."""

import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Final

import click
import pytest

from attestkit.__main__ import main
from attestkit.serve.config import command_line
from tests.cli.command_table import list_programs
from tests.runner.cases import every_case

# Options whose values differ between commands, and why.
EXCEPTIONS: Final = {
    "--policy": "`connect` and `curl` take one for each role of a service, and words of their own"
}
PROGRAMS = dict(list_programs())


def _options(name: str) -> Iterator[tuple[str, click.Option]]:
    """Yield the option `name` of every command that has it."""
    for words, command in PROGRAMS.items():
        for parameter in command.params:
            if isinstance(parameter, click.Option) and name in parameter.opts:
                yield words, parameter


@every_case("words", sorted(PROGRAMS.keys() - {"serve"}))
def test_help_fits_screen(words: str) -> None:
    """Help has at most 80 columns and 50 lines, that of `measure` 40; options have a text."""
    command = PROGRAMS[words]
    context = click.Context(command, info_name=f"attestkit {words}", terminal_width=80)
    lines = command.get_help(context).splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= (40 if words == "measure" else 50)
    for parameter in command.params:
        assert not isinstance(parameter, click.Option) or parameter.help, parameter.name


def test_help_all_has_the_options_that_help_leaves_out(capsys: pytest.CaptureFixture[str]) -> None:
    """`measure` and `serve` name --help-all in --help, and list every option there."""
    found = {}
    for words in (["measure", "--help"], ["measure", "--help-all"]):
        assert main(words) == 0
        found[" ".join(words)] = capsys.readouterr().out
    for words in (["serve", "--help"], ["serve", "--help-all"]):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 0
        found[" ".join(words)] = capsys.readouterr().out
    names = {name for name, words, *_ in _kinds() if words == "measure"}
    for command, every in (("measure", names), ("serve", {*command_line.option_names()})):
        short, whole = (
            {*re.findall(r"(?<![\w-])--?[a-z][\w-]*", found[f"{command} {option}"])}
            for option in ("--help", "--help-all")
        )
        assert "--help-all" in short
        assert every <= whole | {"-h", "--help"}
        assert len(every - short) > 15


def test_completion_has_the_options_that_help_leaves_out() -> None:
    """The shell completes every option."""
    command = PROGRAMS["measure"]
    found = command.shell_complete(click.Context(command), "--")
    assert {"--pic", "--svsm", "--help-all"} <= {item.value for item in found}


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


def _kinds() -> Iterator[tuple[str, str, str | None, str]]:
    """Yield option, command, metavar, and kind (flag, value, or values) of every option."""
    for words, command in PROGRAMS.items():
        context = click.Context(command)
        for one in command.params:
            if isinstance(one, click.Option):
                kind = "flag" if one.is_flag else "values" if one.multiple else "value"
                metavar = None if one.is_flag else one.make_metavar(context)
                yield from ((name, words, metavar, kind) for name in one.opts)
    for action in command_line._parser()._actions:
        kind = "flag" if action.nargs == 0 else "value"
        kind = "values" if type(action).__name__ == "_AppendAction" else kind
        yield from ((name, "serve", str(action.metavar), kind) for name in action.option_strings)


def test_option_has_one_kind_of_value_in_every_command() -> None:
    """An option has the same metavar and kind in every command, but for reasoned exceptions."""
    found: dict[str, set[tuple[str | None, str]]] = {}
    commands: dict[str, list[str]] = {}
    for name, words, metavar, kind in _kinds():
        found.setdefault(name, set()).add((None if kind == "flag" else metavar, kind))
        commands.setdefault(name, []).append(words)
    assert {name for name, kinds in found.items() if len(kinds) > 1} == EXCEPTIONS.keys()
    assert sum(len(words) > 1 for words in commands.values()) > 50
    assert {"keys fetch", "serve"} == {*commands["--kms-url"]}


def test_option_has_one_type_in_every_command() -> None:
    """The commands but `serve` convert the value of an option in the same way."""
    found: dict[str, set[str]] = {}
    for command in PROGRAMS.values():
        for one in command.params:
            found.setdefault(max(one.opts, key=len), set()).add(str(one.type))
    # `key` derives keys of more algorithms than `verify-key` verifies.
    assert {name for name, types in found.items() if len(types) > 1} == {"--algorithm"}


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
