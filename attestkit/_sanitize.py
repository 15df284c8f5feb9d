"""Untrusted text in error messages: escaped, on one line, and cut to a maximum length.

Error messages appear in logs, on terminals and in responses. A line break could forge a log line,
an escape sequence could control a terminal, and a long text could fill a disk. So untrusted text in
them is escaped, on one line, and cut to a maximum length.
"""

import re
from collections.abc import Iterable
from typing import Final

_MOST: Final = 64  # characters
_SECRET: Final = re.compile(r"[0-9A-Fa-f]{32,}")  # a seed, or most of one that is mistyped
_LARGE: Final = 10**20  # more than 64 bits


def shown(value: object, most: int = _MOST) -> str:
    """Return text in quotes with unprintable characters escaped, or the digits of a number.

    Args:
        value: Untrusted value. An integer of more than 64 bits is not written out, which Python
            refuses above 4,300 digits: "a number of over 64 bits" is returned. Of a value that is
            neither text nor a number, the name of the type is returned.
        most: Maximum number of characters of a text; dots after the quotes replace the rest.
    """
    if isinstance(value, str):
        return repr(value) if len(value) <= most else f"{value[:most]!r}..."
    if isinstance(value, float):
        return repr(value)
    if not isinstance(value, int):
        return type(value).__name__
    return str(value) if -_LARGE < value < _LARGE else "a number of over 64 bits"


def key(name: str, most: int = _MOST) -> str:
    """Return the name of a TOML or JSON key for an error text: escaped, cut to `most` characters.

    A name that is cut ends in dots. There are no quotes around it.
    """
    return ascii(name[:most])[1:-1] + ("..." if len(name) > most else "")


def near(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean ...?" with up to three similar known names, or an empty string."""
    from difflib import get_close_matches  # lazy: only needed for mistyped names

    names = {one.lower(): one for one in known}
    found = [names[one] for one in get_close_matches(name[:_MOST].lower(), names)]
    return f"; did you mean {' or '.join(found)}?" if found else ""


def one_line(text: str, most: int) -> str:
    """Return text on one line, cut to `most` characters; spaces replace unprintable ones."""
    text = "".join(letter if letter.isprintable() else " " for letter in text[: 20 * most])
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 3]}..."


def printable(text: str, most: int | None = None) -> str:
    """Return text with unprintable characters escaped, cut to `most` characters (None: not cut).

    Its full length is appended to a text that is cut. Unprintable characters include control
    characters and bidirectional control characters.
    """
    cut = text
    if most is not None and len(text) > most:
        cut = f"{text[:most]} ... {len(text)} characters"
    if cut.isprintable():  # fast, for long hex
        return cut
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in cut)


def without_hex(text: str) -> str:
    """Return text with `<hex, not shown>` for each run of 32 or more hex digits: maybe a seed."""
    return _SECRET.sub("<hex, not shown>", text)
