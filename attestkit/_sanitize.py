"""A stranger's words in the text of an error: on one line, printable, and not long.

Texts of errors get into logs, onto terminals and into answers. A line end in one forges a line of a
log, an escape sequence rules a terminal, and a text of a megabyte fills both.
"""

import re
from collections.abc import Iterable
from typing import Final

__all__ = ["key", "near", "one_line", "shown", "without_hex"]

_MOST: Final = 64  # characters
_SECRET: Final = re.compile(r"[0-9A-Fa-f]{32,}")  # as a seed is written; with a slip, most of it
_LARGE: Final = 10**20  # more than 64 bits


def shown(value: str | int, most: int = _MOST) -> str:
    """Return text in quotes with what cannot be printed escaped, or a number.

    Args:
        value: What a stranger wrote.
        most: Characters of a text; of a longer one the rest is left out. A number of more than 64
            bits is only called so.
    """
    if isinstance(value, str):
        return repr(value) if len(value) <= most else f"{value[:most]!r}..."
    return str(value) if -_LARGE < value < _LARGE else "a number of over 64 bits"


def key(name: str, most: int = _MOST) -> str:
    """Return a key of a file without quotes, in ASCII, the rest escaped; long ones are cut."""
    return ascii(name[:most])[1:-1] + ("..." if len(name) > most else "")


def near(name: str, known: Iterable[str]) -> str:
    """Return for the end of a clause which known names are nearest: up to three, or nothing."""
    from difflib import get_close_matches  # late: only whoever mistypes pays

    names = {one.lower(): one for one in known}
    found = [names[one] for one in get_close_matches(name[:_MOST].lower(), names)]
    return f"; did you mean {' or '.join(found)}?" if found else ""


def one_line(text: str, most: int) -> str:
    """Return text on one line, with blanks for what cannot be printed, cut to `most` characters."""
    text = "".join(letter if letter.isprintable() else " " for letter in text[: 20 * most])
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 3]}..."


def without_hex(text: str) -> str:
    """Return text without what may be a seed that was put in the wrong place: 32 hex digits on."""
    return _SECRET.sub("<hex, not shown>", text)
