"""quote_columns.c in plain Python: the fields of many quotes, turned into columns."""

from array import array
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from attestkit._native._python_quote import Layout, quote_layout, quote_layout_among
from attestkit._native._status import refuse_one
from attestkit.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["quote_columns"]

# Fields of a body, in its order; the last two are those of TDX 1.5.
_WIDTHS = (16, 48, 48, 8, 8, 8, 48, 48, 48, 48, 48, 48, 48, 48, 64, 16, 48)
_CUTS = tuple(pairwise(accumulate(_WIDTHS, initial=0)))
_TD_15 = 648

Row = tuple[bytes, ...]


def _row(data: bytes, start: int, layout: Layout) -> Row:
    body, size = layout[:2]
    fields = data[body : body + size].ljust(_TD_15, b"\0")
    kind = b"\3" if size == _TD_15 else b"\2"
    version, tee_type = data[start : start + 1], data[start + 4 : start + 5]
    return version, tee_type, kind, *[fields[a:b] for a, b in _CUTS]


def _given(data: bytes, starts: "array[int]") -> "Iterator[Row]":
    """Make rows of quotes of which is known where they start."""
    for number, start in enumerate(starts):
        if start >= len(data) or (number > 0 and start <= starts[number - 1]):
            raise refuse_one(29, number, start)
    for number, (start, end) in enumerate(pairwise([*starts, len(data)])):
        quote = data[start:end]
        try:
            layout = quote_layout(quote)
        except FormatError as error:
            raise _numbered(error, number, start) from None
        if quote[4] == 0:
            raise refuse_one(28, number, start + 4)
        yield _row(quote, 0, layout)


def _found(data: bytes, starts: "array[int]") -> "Iterator[Row]":
    """Make rows of quotes that lie one behind the other, and note where they start."""
    start = 0
    while start < len(data):
        number = len(starts)
        try:
            layout, end = quote_layout_among(data, start)
        except FormatError as error:
            raise _numbered(error, number, 0) from None
        if data[start + 4] == 0:
            raise refuse_one(28, number, start + 4)
        starts.append(start)
        yield _row(data, start, layout)
        start = end


def _numbered(error: FormatError, number: int, start: int) -> FormatError:
    message = f"quote {number}: {error.message}"
    return FormatError(message, offset=start + (error.offset or 0), reason=error.reason)


def quote_columns(data: bytes, starts: bytes | None) -> tuple[memoryview, int, bytes]:
    """Check quotes of TDs; return their columns, how many they are, and where they start.

    Raises:
        FormatError: the first start that is misplaced, else the first quote that is refused.
    """
    at = array("Q", starts or b"")
    rows = list(_found(data, at) if starts is None else _given(data, at))
    columns = [b"".join(column) for column in zip(*rows, strict=True)]
    return memoryview(b"".join(columns)), len(rows), at.tobytes()
