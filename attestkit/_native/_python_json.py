"""The agent's JSON and hex in plain Python: what agent_json.c and hex.c do.

The plain reader of the agent's JSON is `event_log.agent_json`, so this one leaves all to it.
"""

import binascii
import re
from typing import Literal

__all__ = ["agent_json_walk", "cpuid", "hexlify", "json_depth", "unhex"]


def agent_json_walk(data: bytes | str) -> Literal["left"]:
    """Leave every text to the parser in `event_log.agent_json`."""
    del data
    return "left"


def unhex(text: bytes | str) -> bytes | None:
    """Return the bytes of hex digits in either case, or None where it is not hex alone."""
    try:
        return binascii.unhexlify(text)
    except ValueError:
        return None


def hexlify(data: bytes) -> bytes:
    """Return the hex digits of bytes, in lower case."""
    return binascii.hexlify(data)


# The CPU as plain Python sees it: not at all.


def cpuid(leaf: int, subleaf: int) -> None:
    """Return None: a CPUID leaf cannot be read from plain Python."""


# json_depth.c in plain Python: how deep the brackets of JSON nest.

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
