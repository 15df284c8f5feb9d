"""Terminal output of `attestkit.cli.output.console`, through rich."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, Literal

from rich.console import Console
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from attestkit.cli.exit_codes import clean_up_on_signals
from attestkit.cli.output.plain_text import Check, printable

__all__ = ["checks", "fields", "lines", "progress", "rows", "steps", "verdict", "warning"]

# Colours of the marks.
MARKS: Final = {"ok": "green", "!!": "bold red", "--": "dim", "  ": ""}
NARROW: Final = 76  # terminal width below which texts go below their names
LONG, HEAD = 400, 160  # characters: values longer than LONG are truncated to HEAD
CELL: Final = 16  # hex digits shown in a brief table
TITLE: Final = "bold cyan"


def _console(*, stderr: bool = False) -> Console:
    # Markup is off: texts are untrusted. rich's own handling of $NO_COLOR keeps bold and dim.
    colours: Literal["auto"] | None = None if os.environ.get("NO_COLOR") else "auto"
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False, color_system=colours)


def _plain(value: str) -> Text:
    return Text(printable(value))


def fields(title: str | None, values: Mapping[str, str], *, brief: bool = False) -> None:
    """Print a title and a table of two columns; with `brief`, truncate very long values."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in values.items():
        truncated = brief and len(value) > LONG
        text = f"{value[:HEAD]}... {len(value):,} characters" if truncated else value
        table.add_row(_plain(name), _plain(text))
    console = _console()
    if title is not None:
        console.print(_plain(title), style=TITLE)
    if table.row_count:
        console.print(table)


def rows(columns: Sequence[str], records: Iterable[Sequence[str]], *, brief: bool = False) -> None:
    """Print a table with a header; with `brief`, truncate long hex."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold")
    for record in records:
        table.add_row(*(_plain(_truncate_hex(cell) if brief else cell) for cell in record))
    _console().print(table)


def _truncate_hex(cell: str) -> str:
    """Truncate long hex; return other text unchanged."""
    hexadecimal = len(cell) > CELL + 2 and not cell.strip("0123456789abcdef")
    return f"{cell[:CELL]}.." if hexadecimal else cell


def lines(texts: Iterable[str]) -> None:
    """Print texts, one per line."""
    console = _console()
    for text in texts:
        console.print(_plain(text))


def checks(title: str, found: Sequence[Check], *, first: bool = False) -> None:
    """Print a title and one line per check; a narrow terminal has texts below names."""
    console = _console()
    if not first:
        console.print()
    console.print(_plain(title), style=TITLE)
    if console.width < NARROW:
        for check in found:
            line = Text.assemble((f"[{check.mark}]", MARKS[check.mark]), " ", _plain(check.name))
            console.print(line)
            console.print(Padding(_plain(check.text), (0, 0, 0, 5)))
        return
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for check in found:
        mark = Text(f"[{check.mark}]", style=MARKS[check.mark])
        table.add_row(mark, _plain(check.name), _plain(check.text))
    console.print(table)


def steps(title: str, sentences: Iterable[str]) -> None:
    """Print a title and numbered sentences with a hanging indent."""
    console = _console()
    console.print()
    console.print(_plain(title), style=TITLE)
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    for number, sentence in enumerate(sentences, 1):
        table.add_row(f"{number}.", _plain(sentence))
    console.print(table)


def verdict(mark: str, text: str) -> None:
    """Print a mark and a verdict."""
    line = Text.assemble((f"[{mark}]", MARKS[mark]), " ", _plain(text))
    _console().print(line, style="bold", soft_wrap=True)


def warning(text: str) -> None:
    """Print a warning."""
    _console().print(_plain(f"[!!] {text}"), style="bold yellow")


@contextmanager
def progress(label: str, total: int | None) -> Iterator[Callable[[], None]]:
    """Show a progress bar on stderr, and remove it at the end."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with (
        clean_up_on_signals(),
        Progress(
            *columns, TimeRemainingColumn(), console=_console(stderr=True), transient=True
        ) as bar,
    ):
        task = bar.add_task(label, total=total)
        yield lambda: bar.advance(task)
