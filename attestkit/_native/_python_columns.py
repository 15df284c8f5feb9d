"""quote_columns.c in plain Python: the fields of many quotes, turned into columns."""

from array import array
from itertools import pairwise
from typing import TYPE_CHECKING

from attestkit._native._python_quote import quote_layout, quote_layout_among
from attestkit._native._status import refuse_one
from attestkit.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Column", "quote_rows"]

_TD_10, _TD_15 = 584, 648

Found = tuple[int, int]  # where a quote starts, the size of its body
Rows = tuple[bytes, bytes, bytes, bytes]


def _given(data: bytes, starts: "array[int]") -> "Iterator[Found]":
    """Check quotes of which is known where they start."""
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
        yield start, layout[1]


def _found(data: bytes) -> "Iterator[Found]":
    """Check quotes that lie one behind the other."""
    start = number = 0
    while start < len(data):
        try:
            layout, end = quote_layout_among(data, start)
        except FormatError as error:
            raise _numbered(error, number, 0) from None
        if data[start + 4] == 0:
            raise refuse_one(28, number, start + 4)
        yield start, layout[1]
        start = end
        number += 1


def _numbered(error: FormatError, number: int, start: int) -> FormatError:
    message = f"quote {number}: {error.message}"
    return FormatError(message, offset=start + (error.offset or 0), reason=error.reason)


def quote_rows(data: bytes, starts: bytes | None) -> Rows:
    """Check quotes of TDs; return data, where they start, their versions and their body types.

    Raises:
        FormatError: the first start that is misplaced, else the first quote that is refused.
    """
    found = list(_found(data) if starts is None else _given(data, array("Q", starts)))
    return (
        data,
        array("Q", [start for start, _ in found]).tobytes(),
        bytes([data[start] for start, _ in found]),
        bytes([3 if size == _TD_15 else 2 for _, size in found]),
    )


class Column:
    """A field of all quotes, or four side by side, gathered when first asked for; then kept.

    It is for a class whose objects have in their `_rows` what `quote_rows` returned.
    """

    def __init__(self, at: int, width: int, count: int = 1) -> None:
        self._cuts = [(at + width * number, width) for number in range(count)]

    def __set_name__(self, _: type, name: str) -> None:
        self._name = name

    def __get__(self, owner: object, _: type | None = None) -> object:
        if owner is None:
            raise AttributeError("a column is one of certain quotes")
        # Where Python finds it without coming here, as this has no __set__.
        kept = vars(owner)
        made = [_gathered(kept["_rows"], *cut) for cut in self._cuts]
        found = kept[self._name] = tuple(made) if len(made) > 1 else made[0]
        return found


def _gathered(rows: Rows, at: int, width: int) -> memoryview:
    data, starts, versions, body_types = rows
    fields = []
    for start, version, body_type in zip(array("Q", starts), versions, body_types, strict=True):
        body = start + (54 if version == 5 else 48)
        there = at < _TD_10 or body_type == 3
        fields.append(data[body + at : body + at + width] if there else bytes(width))
    flat = memoryview(b"".join(fields))
    # Python has no views of no rows with a width.
    return flat.cast("B", (len(fields), width)) if fields else flat
