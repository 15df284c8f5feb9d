"""A bound on how deep JSON of strangers may nest, to be asked for before any parser sees it.

Python's parsers recurse in C up to the interpreter's recursion limit. That limit is the process's,
and libraries raise it (one that Ethereum tools import does, to 100,000), after which two hundred
thousand brackets overflow the C stack and end the process.
"""

import re
from typing import Final

from attestkit.errors import FormatError

__all__ = ["MAX_DEPTH", "check_depth"]

MAX_DEPTH: Final = 200  # levels; the deepest real document has nine
_MARKS: Final = re.compile(r'"[^"]*"?|[\[{\]}]')  # a string that does not end is one to the end


def check_depth(text: str | bytes) -> None:
    """Refuse text whose brackets nest deeper than 200 levels; it need not be JSON.

    It takes time in proportion to the text, whatever that is: quotes that do not close included.

    Raises:
        FormatError: It nests deeper.
    """
    if isinstance(text, bytes):
        if text.count(b"[") + text.count(b"{") <= MAX_DEPTH:
            return
        text = text.decode("latin-1")  # brackets and quotes are the same in UTF-8
    elif text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    # Blank out the escapes of strings, so that every quote left is a border of one.
    text = text.replace("\\\\", "__").replace('\\"', "__")
    depth = 0
    for mark in _MARKS.finditer(text):
        first = text[mark.start()]
        if first in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise FormatError(f"JSON nests deeper than {MAX_DEPTH} levels", offset=mark.start())
        elif first != '"':
            depth -= 1
