"""Output of commands as text or JSON.

Text in a pipe or a file has no colours and no wrapping. On a terminal,
`attestkit.cli.output.terminal` formats it; that module is imported only then.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from attestkit.cli.output.plain_text import Check, printable

__all__ = [
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

MANY: Final = 10  # minimum number of files for a progress bar


def _write(texts: Iterable[str]) -> None:
    sys.stdout.writelines(f"{printable(text).rstrip()}\n" for text in texts)


def as_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object, indented, ASCII only."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def fields(title: str | None, values: Mapping[str, object], *, brief: bool = False) -> None:
    """Print a title and a table of names and values, without values that are None.

    With `brief`, very long values are truncated on a terminal.
    """
    texts = {name: str(value) for name, value in values.items() if value is not None}
    if sys.stdout.isatty():
        from attestkit.cli.output import terminal

        terminal.fields(title, texts, brief=brief)
        return
    column = max(map(len, texts), default=0)
    _write([] if title is None else [title])
    _write(f"{name:<{column}}  {value}" for name, value in texts.items())


def rows(
    columns: Sequence[str], records: Iterable[Sequence[object]], *, brief: bool = False
) -> None:
    """Print a table with a header; with `brief`, long hex is truncated on a terminal."""
    cells = [[str(value) for value in record] for record in records]
    if sys.stdout.isatty():
        from attestkit.cli.output import terminal

        terminal.rows(columns, cells, brief=brief)
        return
    cells.insert(0, list(columns))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for record in cells:
        padded = (f"{text:<{width}}" for text, width in zip(record, widths, strict=True))
        _write(["  ".join(padded)])


def lines(texts: Iterable[str]) -> None:
    """Print texts, one per line."""
    if sys.stdout.isatty():
        from attestkit.cli.output import terminal

        terminal.lines(texts)
        return
    _write(texts)


def checks(title: str, found: Iterable[Check], *, first: bool = False) -> None:
    """Print a title and one line per check: mark, name and text.

    An empty line precedes the title unless `first`. A narrow terminal has the text below the name.
    """
    listed = list(found)
    if sys.stdout.isatty():
        from attestkit.cli.output import terminal

        terminal.checks(title, listed, first=first)
        return
    column = max((len(check.name) for check in listed), default=0)
    _write([title] if first else ["", title])
    _write(f"[{mark}] {name:<{column}}  {text}" for mark, name, text in listed)


def steps(title: str, sentences: Iterable[str]) -> None:
    """Print a title and numbered sentences."""
    if sys.stdout.isatty():
        from attestkit.cli.output import terminal

        terminal.steps(title, sentences)
        return
    _write(["", title])
    _write(f"{number}. {sentence}" for number, sentence in enumerate(sentences, 1))


def verdict(text: str, *, good: bool) -> None:
    """Print a verdict with a mark that does not depend on colour."""
    mark = "ok" if good else "!!"
    if sys.stdout.isatty():
        from attestkit.cli.output import terminal

        terminal.verdict(mark, text)
        return
    _write([f"[{mark}] {text}"])


def warning(text: str) -> None:
    """Print a warning."""
    if sys.stdout.isatty():
        from attestkit.cli.output import terminal

        terminal.warning(text)
        return
    _write([f"[!!] {text}"])


@contextmanager
def progress(label: str, total: int | None) -> Iterator[Callable[[], None]]:
    """Show a progress bar on stderr, on a terminal only, and not for fewer than 10 items.

    Yields a function to be called after each item. The bar is removed at the end.

    Args:
        label: Text beside the bar.
        total: Number of items, or None if unknown.
    """
    if (total is not None and total < MANY) or not sys.stderr.isatty():
        yield lambda: None
        return
    from attestkit.cli.output import terminal

    with terminal.progress(label, total) as advance:
        yield advance
