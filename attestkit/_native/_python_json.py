"""The functions of agent_json.c and hex.c in pure Python.

The pure Python parser of the agent's event log is `event_log.agent_json`.
"""

import binascii
import re
from typing import Literal


def agent_json_walk(data: bytes | str) -> Literal["left"]:
    """Return "left": every text is left to `event_log.agent_json`."""
    del data
    return "left"


def unhex(text: bytes | str) -> bytes | None:
    """Return the bytes of hex digits in upper or lower case, or None if the text is not hex."""
    try:
        return binascii.unhexlify(text)
    except ValueError:
        return None


def hexlify(data: bytes) -> bytes:
    """Return the bytes in hex, in lower case."""
    return binascii.hexlify(data)


# CPUID in pure Python: not available.


def cpuid(leaf: int, subleaf: int) -> None:
    """Return None: pure Python cannot execute CPUID."""


# The nesting depth of JSON brackets (json_depth.c) in pure Python.

_MARKS = re.compile(rb'"[^"]*"?|[\[{\]}]')  # an unterminated string extends to the end


def json_depth(text: bytes, most: int) -> int:
    """Return the offset of the first bracket nested deeper than `most` levels, or -1."""
    if text.count(b"[") + text.count(b"{") <= most:
        return -1
    # Remove escapes, so that every remaining quotation mark starts or ends a string.
    text = text.replace(b"\\\\", b"__").replace(b'\\"', b"__")
    depth = 0
    for mark in _MARKS.finditer(text):
        first = text[mark.start()]
        if first in b"[{":
            depth += 1
            if depth > most:
                return mark.start()
        elif first != 0x22:  # a quotation mark
            depth -= 1
    return -1
