"""What `attestkit.cli.output.console` prints on a terminal; only this file knows its library."""

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

from attestkit.cli.exit_codes import ended_in_order
from attestkit.cli.output.plain_text import Check, printable

__all__ = ["checks", "fields", "lines", "progress", "rows", "steps", "verdict", "warning"]

# A mark that reads without colour, and the colour that it has.
MARKS: Final = {"ok": "green", "!!": "bold red", "--": "dim", "  ": ""}
NARROW: Final = 76  # columns, below which two columns of text do not fit side by side
LONG, HEAD = 400, 160  # characters: what is very long, and how much of it is shown
CELL: Final = 16  # digits of hex in a table that is brief
TITLE: Final = "bold cyan"


def _console(*, stderr: bool = False) -> Console:
    # Markup off: what is shown comes from files of strangers. The library's own way with $NO_COLOR
    # keeps bold and dim.
    colours: Literal["auto"] | None = None if os.environ.get("NO_COLOR") else "auto"
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False, color_system=colours)


def _plain(value: str) -> Text:
    return Text(printable(value))


def fields(title: str | None, values: Mapping[str, str], *, brief: bool = False) -> None:
    """Print a title and a table of two columns; if `brief` very long values are cut off."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in values.items():
        cut = brief and len(value) > LONG
        told = f"{value[:HEAD]}... {len(value):,} characters" if cut else value
        table.add_row(_plain(name), _plain(told))
    console = _console()
    if title is not None:
        console.print(_plain(title), style=TITLE)
    if table.row_count:
        console.print(table)


def rows(columns: Sequence[str], records: Iterable[Sequence[str]], *, brief: bool = False) -> None:
    """Print a table with a header line; if `brief` long hex is cut off."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold")
    for record in records:
        table.add_row(*(_plain(_head(cell) if brief else cell) for cell in record))
    _console().print(table)


def _head(cell: str) -> str:
    """Return enough of long hex to tell it from other."""
    hexadecimal = len(cell) > CELL + 2 and not cell.strip("0123456789abcdef")
    return f"{cell[:CELL]}.." if hexadecimal else cell


def lines(texts: Iterable[str]) -> None:
    """Print sentences, one a line."""
    console = _console()
    for text in texts:
        console.print(_plain(text))


def checks(title: str, found: Sequence[Check], *, first: bool = False) -> None:
    """Print a title and a line a thing: mark, name, text; the text below the name where narrow."""
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
    """Print a title and numbered sentences, which wrap behind their number."""
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
    """Print a verdict behind its mark."""
    line = Text.assemble((f"[{mark}]", MARKS[mark]), " ", _plain(text))
    _console().print(line, style="bold", soft_wrap=True)


def warning(text: str) -> None:
    """Print what nobody should overlook."""
    _console().print(_plain(f"[!!] {text}"), style="bold yellow")


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[[], None]]:
    """Show how many of `total` are done, on stderr; the bar is gone when all are."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with (
        ended_in_order(),
        Progress(
            *columns, TimeRemainingColumn(), console=_console(stderr=True), transient=True
        ) as bar,
    ):
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)
