"""Tables for people and JSON for machines; the only file here that knows the terminal library."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["as_json", "fields", "lines", "rows"]


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


def fields(title: str, values: Mapping[str, object]) -> None:
    """Print a title and a table of two columns, name and value; rows of None are left out."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in values.items():
        if value is not None:
            table.add_row(_plain(name), _plain(value))
    console = _console()
    console.print(_plain(title), style="bold cyan")
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
