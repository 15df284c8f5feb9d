"""Identifiers in the bytes of an answer, as a client can read them: members `id` of any JSON.

An answer is looked up by its identifier, so that none may have one that is not seen here. What
could hide one, such as escapes in the name of the member, is noted; makers of JSON never write it.
"""

import re
from typing import Final

MAX_IDENTIFIERS: Final = 4096
"""Identifiers of one answer that are kept."""

_GAP: Final = 64  # bytes of space around the colon
_LONGEST: Final = 200  # bytes of an identifier
_WINDOW: Final = 512  # bytes; more than any match has
_FOUND: Final = re.compile(
    rb'"id"[ \t]{0,%d}:[ \t]{0,%d}"([^"\\\r\n]{1,%d})"' % (_GAP, _GAP, _LONGEST)
)
_HIDDEN: Final = re.compile(
    rb'"id"[ \t]*(?:[\r\n]|:[ \t]*[\r\n])'  # lines of `data` may be joined
    rb'|"id"(?:[ \t]{%d}|[ \t]*:[ \t]{%d})'
    % (_GAP + 1, _GAP + 1)
    + rb'|"id"[ \t]*:[ \t]*"[^"\\\r\n]*\\'
    + rb'|"id"[ \t]*:[ \t]*"[^"\\\r\n]{%d}' % (_LONGEST + 1)
    + rb'|"(?:\\u0069(?:d|\\u0064)|i\\u0064)"'
)
_UTF16_OR_32: Final = (b"\xfe\xff", b"\xff\xfe", b"\0")


class IdentifierScan:
    """Finds the identifiers of one answer while it is received.

    Attributes:
        found: The identifiers.
        hides: Whether the answer may have others, which are not found.
    """

    __slots__ = ("_start", "_tail", "found", "hides")

    def __init__(self) -> None:
        self.found: set[str] = set()
        self.hides: bool = False
        self._start, self._tail = b"", b""

    def feed(self, data: bytes) -> None:
        """Take some bytes of the body."""
        if len(self._start) < 4:
            self._start += data[: 4 - len(self._start)]
            self.hides |= self._start.startswith(_UTF16_OR_32) or b"\0" in self._start
        window = self._tail + data
        for match in _FOUND.finditer(window):
            self.found.add(match[1].decode("utf-8", "replace"))
        self.hides |= _HIDDEN.search(window) is not None or len(self.found) > MAX_IDENTIFIERS
        self._tail = window[-_WINDOW:]
