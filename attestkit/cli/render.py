"""Tables for people and JSON for machines; the only file here that knows the terminal library."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

__all__ = [
    "Check",
    "as_json",
    "checks",
    "fields",
    "lines",
    "progress",
    "rows",
    "steps",
    "verdict",
    "warning",
]

# A mark that reads without colour, and the colour that it has on a terminal.
MARKS: Final = {"ok": "green", "!!": "bold red", "--": "dim", "  ": ""}
NARROW: Final = 76  # columns, below which two columns of text do not fit side by side
MANY: Final = 10  # files, from which on people want to see that something moves


class Check(NamedTuple):
    """One thing that was looked at."""

    mark: str  # of MARKS: in order, broken, not there, neither
    name: str
    text: str


def _console() -> Console:
    # Markup off: what is shown comes from files of strangers. Wide when piped, so nothing folds.
    width = None if sys.stdout.isatty() else 400
    return Console(markup=False, highlight=False, emoji=False, width=width)


def _plain(value: object) -> Text:
    """Return text in which no control character of a hostile file reaches the terminal."""
    text = str(value)
    return Text("".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text))


def as_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object, indented, ASCII only."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def fields(title: str | None, values: Mapping[str, object]) -> None:
    """Print a title and a table of two columns, name and value; rows of None are left out."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in values.items():
        if value is not None:
            table.add_row(_plain(name), _plain(value))
    console = _console()
    if title is not None:
        console.print(_plain(title), style="bold cyan")
    if table.row_count:
        console.print(table)


def rows(columns: Sequence[str], records: Iterable[Sequence[object]]) -> None:
    """Print a table with a header line."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold")
    for record in records:
        table.add_row(*(_plain(value) for value in record))
    _console().print(table)


def lines(texts: Iterable[str]) -> None:
    """Print sentences, one a line."""
    console = _console()
    for text in texts:
        console.print(_plain(text))


def checks(title: str, found: Iterable[Check]) -> None:
    """Print a title and a line a thing: mark, name, text; the text below the name where narrow."""
    console = _console()
    console.print()
    console.print(_plain(title), style="bold cyan")
    found = list(found)
    if not console.is_terminal:
        column = max((len(check.name) for check in found), default=0)
        for check in found:  # nothing folds, and nothing is filled up with spaces
            flat = f"[{check.mark}] {check.name:<{column}}  {check.text}"
            console.print(_plain(flat.rstrip()), soft_wrap=True)
        return
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
    console.print(_plain(title), style="bold cyan")
    if not console.is_terminal:
        for number, sentence in enumerate(sentences, 1):
            console.print(_plain(f"{number}. {sentence}"), soft_wrap=True)
        return
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    for number, sentence in enumerate(sentences, 1):
        table.add_row(f"{number}.", _plain(sentence))
    console.print(table)


def verdict(text: str, *, good: bool) -> None:
    """Print a verdict: a mark that reads without colour, and the text."""
    mark = "ok" if good else "!!"
    line = Text.assemble((f"[{mark}]", MARKS[mark]), " ", _plain(text))
    _console().print(line, style="bold", soft_wrap=True)


def warning(text: str) -> None:
    """Print what nobody should overlook."""
    _console().print(_plain(f"[!!] {text}"), style="bold yellow")


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[], None]]:
    """Show how many of `total` are done, on stderr; from ten on, and on a terminal only.

    Yields a function to be called after each. The bar is gone when all are done.
    """
    # Late: one command has a bar.
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True, markup=False, highlight=False, emoji=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    hidden = total < MANY or not console.is_terminal
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=hidden
    ) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)
