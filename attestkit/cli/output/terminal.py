"""Terminal output of `attestkit.cli.output.console`, through rich."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from attestkit.cli.exit_codes import clean_up_on_signals

MARKS: Final = {"[ok]": "green", "[!!]": "bold red", "[--]": "dim"}


def _console(*, stderr: bool = False) -> Console:
    # Markup is off: texts are untrusted. rich's own handling of $NO_COLOR keeps bold and dim.
    colours: Literal["auto"] | None = None if os.environ.get("NO_COLOR") else "auto"
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False, color_system=colours)


def _colour_mark(text: str) -> Text:
    mark = text[:4]
    return Text.assemble((mark, MARKS.get(mark, "")), text[4:])


def print_line(text: str, style: str, *, wrap: bool, hang: int) -> None:
    """Print a line of text in a style of rich, such as `bold`; empty: plain.

    With `wrap`, it is wrapped at the width of the terminal, and its parts are indented by `hang`
    blanks.
    """
    console, line = _console(), _colour_mark(text)
    if wrap and hang:
        parts = line[hang:].wrap(console, max(console.width - hang, 1))
        line = line[:hang] + Text("\n" + " " * hang).join(parts)
    console.print(line, style=style, soft_wrap=not wrap)


def print_table(records: Sequence[Sequence[str]], header: Sequence[str], gap: int) -> None:
    """Print records in columns.

    Args:
        records: Rows of cells, at least one.
        header: Titles of the columns. If empty, no title row is printed, and the first column,
            which contains names, is bold.
        gap: Number of blanks between columns.
    """
    table = Table(box=None, show_header=bool(header), pad_edge=False, padding=(0, gap, 0, 0))
    table.header_style = "bold"
    for name in header or records[0]:
        table.add_column(name, overflow="fold")
    if not header:
        table.columns[0].no_wrap = True
        table.columns[0].style = "bold"
    for name, *cells in records:
        table.add_row(_colour_mark(name), *cells)
    _console().print(table)


@contextmanager
def show_progress(label: str, total: int | None) -> Iterator[Callable[[], None]]:
    """Context manager: show a progress bar on stderr, and remove it on exit.

    Yields a function to be called after each item. `label` is beside the bar; `total` is the number
    of items, None if unknown.
    """
    counted = () if total is None else (MofNCompleteColumn(), TimeRemainingColumn())
    columns = (TextColumn("{task.description}"), BarColumn(), *counted)
    with (
        clean_up_on_signals(),
        Progress(*columns, console=_console(stderr=True), transient=True) as bar,
    ):
        task = bar.add_task(label, total=total)
        yield lambda: bar.advance(task)
