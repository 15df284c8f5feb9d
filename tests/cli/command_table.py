"""The tables of commands in docs/cli.md: from the commands, and from a record of measurements.

`python -m tests.cli.command_table` writes them; a test compares them. The figures are those of
docs/records/commands.json, by `python -m tests.cli.command_times`.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click

from attestkit.cli import COMMANDS, command_tree
from tests.cli import schemas
from tests.long_runs.records import RECORDS

PAGE: Final = Path(__file__).parents[2] / "docs" / "cli.md"
BEGIN: Final = "<!-- table of commands, by tests/cli/command_table.py -->\n"
END: Final = "<!-- end of the table -->\n"
SIZES: Final = "<!-- table of times and sizes, by tests/cli/command_table.py -->\n"


def find_command(name: str) -> click.Command:
    """Return a command of the program."""
    found = command_tree.get_command(click.Context(command_tree), name)
    assert isinstance(found, click.Command)
    return found


def list_programs() -> Iterator[tuple[str, click.Command]]:
    """Yield every command with its words, also those of groups."""
    for name in COMMANDS:
        command = find_command(name)
        if isinstance(command, click.Group):
            yield from ((f"{name} {one}", inner) for one, inner in command.commands.items())
        else:
            yield name, command


def exit_codes(command: click.Command) -> dict[int, str]:
    """Return the meanings of a command's exit codes."""
    found: dict[int, str] = command.exit_codes  # type: ignore[attr-defined]
    return found


def read_record() -> dict[str, Any]:
    """Return the measurements of every command, with commit and machine."""
    found: dict[str, Any] = json.loads((RECORDS / "commands.json").read_text())
    return found


def make_size_table() -> str:
    """Return the table of times and sizes, with the lines around it."""
    record = read_record()
    rows = [
        f"Medians of {record['rounds']} runs at commit {record['commit']} ({record['machine']}):\n",
        "| command | time | processor | memory | help | code | exit codes |",
        "|---|--:|--:|--:|--:|--:|---|",
    ]
    for words, command in list_programs():
        measured = record["commands"][words]
        codes = ", ".join(map(str, exit_codes(command)))
        figures = (
            f"{measured['milliseconds']:,} ms",
            f"{measured['processor_milliseconds']:,} ms",
            f"{measured['megabytes']} MB",
            measured["help_lines"],
            measured["code_lines"],
        )
        rows.append(f"| `{words}` | {' | '.join(map(str, figures))} | {codes} |")
    return "\n".join([SIZES, *rows, "", END])


def make_table() -> str:
    """Return the table, with the lines around it."""
    rows = ["| command | does | `--json` | exit codes |", "|---|---|---|---|"]
    for words, command in list_programs():
        name = words.split()[0]
        schema = f"[schema](schemas/{name}.json)" if name in schemas.read() else ""
        text = command.get_short_help_str(limit=200).removesuffix(".")
        codes = "; ".join(f"{code} {meaning}" for code, meaning in exit_codes(command).items())
        rows.append(f"| `attestkit {words}` | {text} | {schema} | {codes} |")
    return "".join(f"{row}\n" for row in [BEGIN, *rows, "", END.rstrip()]).replace("\n\n|", "\n\n|")


def replace_table(page: str) -> str:
    """Return the page with the present tables."""
    for begin, table in ((BEGIN, make_table()), (SIZES, make_size_table())):
        before, _, rest = page.partition(begin)
        _, _, after = rest.partition(END)
        page = f"{before}{table}{after}"
    return page


if __name__ == "__main__":
    PAGE.write_text(replace_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
