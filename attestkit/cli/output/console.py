"""Output of commands as text or JSON.

Text in a pipe or a file has no colours and no wrapping. On a terminal,
`attestkit.cli.output.terminal` formats it; that module is imported only then. Control characters
are escaped.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final, NamedTuple

from attestkit._sanitize import printable

MANY: Final = 10  # minimum number of files for a progress bar
LONG, HEAD = 400, 160  # characters: longer values are truncated to HEAD
CELL: Final = 16  # hex digits shown in a brief table
TITLE: Final = "bold cyan"


class Check(NamedTuple):
    """One line of a diagnosis or comparison: mark, name and text.

    The mark is `ok`, `!!` (problem), `--` (absent), or two blanks (neutral).
    """

    mark: str  # ok, !! (problem), -- (absent), or two blanks (neutral)
    name: str
    text: str


def as_json(value: Mapping[str, Any]) -> None:
    """Print `value` as a JSON object, indented, ASCII only; bytes are hex, times ISO 8601."""
    sys.stdout.write(json.dumps(value, indent=2, default=_to_text) + "\n")
    sys.stdout.flush()  # as click.echo does


def _to_text(value: bytes | datetime) -> str:
    return value.hex() if isinstance(value, bytes) else value.isoformat()


def fields(title: str | None, values: Mapping[str, object], *, brief: bool = False) -> None:
    """Print a title (unless None) and a table of names and values, without values that are None.

    With `brief`, very long values are truncated on a terminal.
    """
    texts = {name: str(value) for name, value in values.items() if value is not None}
    if brief and sys.stdout.isatty():
        texts = {name: _truncate(text) for name, text in texts.items()}
    if title is not None:
        _line(title, TITLE)
    _table(texts.items())


def rows(
    columns: Sequence[str], records: Iterable[Sequence[object]], *, brief: bool = False
) -> None:
    """Print a table with the titles `columns`; `records` are its rows of cells.

    With `brief`, long hex is truncated on a terminal.
    """
    brief = brief and sys.stdout.isatty()
    cells = [[str(value) for value in record] for record in records]
    _table(([_truncate_hex(cell) for cell in each] if brief else each for each in cells), columns)


def lines(texts: Iterable[str], *, hang: int = 0) -> None:
    """Print each text as a line; on a terminal, wrapped parts are indented by `hang` blanks."""
    for text in texts:
        _line(text, hang=hang)


def checks(title: str, found: Iterable[Check], *, first: bool = False) -> None:
    """Print a title and one line per check; an empty line precedes the title unless `first`."""
    lines([] if first else [""])
    _line(title, TITLE)
    _table((f"[{mark}] {name}", text) for mark, name, text in found)


def steps(title: str, sentences: Iterable[str]) -> None:
    """Print a title and numbered sentences."""
    listed = list(sentences)
    width = len(str(len(listed)))
    lines([""])
    _line(title, TITLE)
    _table(((f"{n:>{width}}.", sentence) for n, sentence in enumerate(listed, 1)), gap=1)


def verdict(text: str, *, good: bool) -> None:
    """Print `text` in one line after a mark: `[ok]` if `good`, else `[!!]`."""
    _line(f"[{'ok' if good else '!!'}] {text}", "bold", wrap=False)


def warning(text: str) -> None:
    """Print `text` to stdout, after the mark `[!!]`."""
    _line(f"[!!] {text}", "bold yellow")


@contextmanager
def progress(
    label: str, total: int | None = None, least: int = MANY, *, shown: bool = True
) -> Iterator[Callable[[], None]]:
    """Context manager: show a progress bar on a terminal at stderr, for `least` items or more.

    Yields a function to be called after each item. The bar is removed on exit.

    Args:
        label: Text beside the bar.
        total: Number of items, or None if unknown.
        least: Number of items below which no bar is shown.
        shown: Whether to show it at all.
    """
    if not shown or (total is not None and total < least) or not sys.stderr.isatty():
        yield lambda: None
        return
    from attestkit.cli.output.terminal import show_progress

    with show_progress(label, total) as advance:
        yield advance


def _truncate(text: str) -> str:
    return f"{text[:HEAD]}... {len(text):,} characters" if len(text) > LONG else text


def _truncate_hex(cell: str) -> str:
    """Truncate `cell` if it is long hex; return other text unchanged."""
    hexadecimal = len(cell) > CELL + 2 and not cell.strip("0123456789abcdef")
    return f"{cell[:CELL]}.." if hexadecimal else cell


def _line(text: str, style: str = "", *, wrap: bool = True, hang: int = 0) -> None:
    if sys.stdout.isatty():
        from attestkit.cli.output.terminal import print_line

        print_line(printable(text), style, wrap=wrap, hang=hang)
    else:
        sys.stdout.write(f"{printable(text).rstrip()}\n")


def _table(records: Iterable[Iterable[str]], header: Sequence[str] = (), *, gap: int = 2) -> None:
    cells = [[printable(cell) for cell in record] for record in records]
    if sys.stdout.isatty() and cells:
        from attestkit.cli.output.terminal import print_table

        print_table(cells, header, gap)
        return
    if header:
        cells.insert(0, list(header))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for record in cells:
        padded = [f"{text:<{width}}" for text, width in zip(record, widths, strict=True)]
        sys.stdout.write(f"{(' ' * gap).join(padded).rstrip()}\n")
