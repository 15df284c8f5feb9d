"""json_depth.c in plain Python: how deep the brackets of JSON nest."""

import re

__all__ = ["json_depth"]

_MARKS = re.compile(rb'"[^"]*"?|[\[{\]}]')  # a string that does not end is one to the end


def json_depth(text: bytes, most: int) -> int:
    """Return the offset of the first bracket that nests deeper than `most` levels; -1: none."""
    if text.count(b"[") + text.count(b"{") <= most:
        return -1
    # Blank out the escapes of strings, so that every quote left is a border of one.
    text = text.replace(b"\\\\", b"__").replace(b'\\"', b"__")
    depth = 0
    for mark in _MARKS.finditer(text):
        first = text[mark.start()]
        if first in b"[{":
            depth += 1
            if depth > most:
                return mark.start()
        elif first != 0x22:  # a quote
            depth -= 1
    return -1
