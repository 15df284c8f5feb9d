"""How large an input may be before its reader refuses it for that, and does not read it.

What is refused for its size or its count costs next to nothing, however dear it is to read.
"""

import re
from bisect import bisect_left
from typing import Final

from attestkit.errors import AttestKitError
from tests.bounds.parsers import Parser
from tests.bounds.shapes import Shape

__all__ = ["enters", "largest", "refusal", "shortened"]

# How readers say that something is too long or too much: not how deep it nests, which is said of
# its first bytes, and not what a value must be.
_TOO_MUCH: Final = re.compile(
    r"\b(?:more than|over) [\d,]+\b|\bat most [\d,]+ (?:bytes|hashes)\b"
    r"|\b(?:longer|larger)\b|\btoo (?:many|long|large)\b|exceeds the limit|out of range",
    re.IGNORECASE,
)


def refusal(parser: Parser, data: bytes) -> str:
    """Return why `data` is refused; nothing if it is not."""
    try:
        parser.read(data)
    except AttestKitError as error:
        return str(error)
    return ""


def enters(parser: Parser, data: bytes) -> bool:
    """Tell whether `data` is read: to its end, or to where something but its amount is wrong."""
    return not _TOO_MUCH.search(refusal(parser, data))


def shortened(make: Shape, most: int) -> int:
    """Return about the largest size at which a shape has no more than `most` bytes."""
    size = most
    while size > 0 and (length := len(make(size))) > most:
        size = size * most // length
    length = len(make(size))
    if len(make(size - size // 64)) < length:
        return size
    # A shape may end at a count: what is beyond would be the same input again.
    return bisect_left(range(size), length, key=lambda less: len(make(less)))


def largest(parser: Parser, make: Shape, most: int) -> int:
    """Return the largest size up to `most` bytes that is read; 0 if none is."""
    size = shortened(make, most)
    if enters(parser, make(size)):
        return size
    beyond = bisect_left(range(size), 1, key=lambda less: not enters(parser, make(less)))
    return max(beyond - 1, 0)
