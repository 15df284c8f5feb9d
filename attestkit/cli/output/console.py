"""Tables for people and JSON for machines.

Into a pipe or a file text goes as it is, a line each, without colours and without being folded; on
a terminal `attestkit.cli.output.terminal` does it, which is loaded only then.
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

MANY: Final = 10  # files, from which on people want to see that something moves


def _write(texts: Iterable[str]) -> None:
    sys.stdout.writelines(f"{printable(text).rstrip()}\n" for text in texts)


def as_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object, indented, ASCII only."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def fields(title: str | None, values: Mapping[str, object], *, brief: bool = False) -> None:
    """Print a title and a table of two columns, name and value; rows of None are left out.

    If `brief` a terminal gets the head of very long values.
    """
    told = {name: str(value) for name, value in values.items() if value is not None}
    if sys.stdout.isatty():
        from attestkit.cli.output import terminal

        terminal.fields(title, told, brief=brief)
        return
    column = max(map(len, told), default=0)
    _write([] if title is None else [title])
    _write(f"{name:<{column}}  {value}" for name, value in told.items())


def rows(
    columns: Sequence[str], records: Iterable[Sequence[object]], *, brief: bool = False
) -> None:
    """Print a table with a header line; if `brief` a terminal gets the head of long hex."""
    told = [[str(value) for value in record] for record in records]
    if sys.stdout.isatty():
        from attestkit.cli.output import terminal

        terminal.rows(columns, told, brief=brief)
        return
    told.insert(0, list(columns))
    widths = [max(map(len, column)) for column in zip(*told, strict=True)]
    for record in told:
        padded = (f"{text:<{width}}" for text, width in zip(record, widths, strict=True))
        _write(["  ".join(padded)])


def lines(texts: Iterable[str]) -> None:
    """Print sentences, one a line."""
    if sys.stdout.isatty():
        from attestkit.cli.output import terminal

        terminal.lines(texts)
        return
    _write(texts)


def checks(title: str, found: Iterable[Check], *, first: bool = False) -> None:
    """Print a title and a line a thing: mark, name, text; the text below the name where narrow.

    An empty line comes before it, unless it is the first.
    """
    told = list(found)
    if sys.stdout.isatty():
        from attestkit.cli.output import terminal

        terminal.checks(title, told, first=first)
        return
    column = max((len(check.name) for check in told), default=0)
    _write([title] if first else ["", title])
    _write(f"[{mark}] {name:<{column}}  {text}" for mark, name, text in told)


def steps(title: str, sentences: Iterable[str]) -> None:
    """Print a title and numbered sentences, which wrap behind their number."""
    if sys.stdout.isatty():
        from attestkit.cli.output import terminal

        terminal.steps(title, sentences)
        return
    _write(["", title])
    _write(f"{number}. {sentence}" for number, sentence in enumerate(sentences, 1))


def verdict(text: str, *, good: bool) -> None:
    """Print a verdict: a mark that reads without colour, and the text."""
    mark = "ok" if good else "!!"
    if sys.stdout.isatty():
        from attestkit.cli.output import terminal

        terminal.verdict(mark, text)
        return
    _write([f"[{mark}] {text}"])


def warning(text: str) -> None:
    """Print what nobody should overlook."""
    if sys.stdout.isatty():
        from attestkit.cli.output import terminal

        terminal.warning(text)
        return
    _write([f"[!!] {text}"])


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[[], None]]:
    """Show how many of `total` are done, on stderr; from ten on, and on a terminal only.

    None is a number that nobody knows yet.

    Yields a function to be called after each. The bar is gone when all are done.
    """
    if (total is not None and total < MANY) or not sys.stderr.isatty():
        yield lambda: None
        return
    from attestkit.cli.output import terminal

    with terminal.progress(what, total) as advance:
        yield advance
