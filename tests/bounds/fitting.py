"""Sizes of input that a parser reads, instead of rejecting them for their size.

A rejection for size or count costs almost nothing, and must not be measured as a parse.
"""

from bisect import bisect_left
from typing import Final

from attestkit.errors import AttestKitError
from tests.bounds.parsers import Parser
from tests.bounds.shapes import Shape

TOO_MUCH: Final = frozenset(
    {"out_of_range", "too_large", "too_long", "too_many", "too_many_records"}
)
"""Reasons of input with too many bytes or items; nesting is detected within the first bytes."""


def refusal(parser: Parser, data: bytes) -> str | None:
    """Return the reason of the parser's error; None if it accepts `data`."""
    try:
        parser.read(data)
    except AttestKitError as error:
        return error.reason
    return None


def enters(parser: Parser, data: bytes) -> bool:
    """Return whether `data` is read to its end, or to an error other than its amount."""
    return refusal(parser, data) not in TOO_MUCH


def shortened(make: Shape, most: int) -> int:
    """Return about the largest size at which a shape has at most `most` bytes."""
    size = most
    while size > 0 and (length := len(make(size))) > most:
        size = size * most // length
    length = len(make(size))
    if len(make(size - size // 64)) < length:
        return size
    # A shape may have a maximum; a larger size would give the same input again.
    return bisect_left(range(size), length, key=lambda less: len(make(less)))


def largest(parser: Parser, make: Shape, most: int, *, parts: int | None = None) -> int:
    """Return the largest size up to `most` bytes that is read; 0 if none.

    With `parts` it is at most one of so many parts of the first size too small, which takes fewer
    attempts.
    """
    size = shortened(make, most)
    if enters(parser, make(size)):
        return size
    within = max(1, size // parts) if parts else 1
    return _last(parser, make, range(0, size, within)) or _last(parser, make, range(within))


def _last(parser: Parser, make: Shape, sizes: range) -> int:
    """Return the last of increasing sizes that is read; 0 if none."""
    beyond = bisect_left(sizes, 1, key=lambda size: not enters(parser, make(size)))
    return sizes[beyond - 1] if beyond else 0
