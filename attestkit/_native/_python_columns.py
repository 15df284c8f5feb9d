"""The columns of quote_columns.c in pure Python."""

from array import array
from itertools import pairwise
from typing import TYPE_CHECKING

from attestkit._native._python_quote import quote_layout, quote_layout_among
from attestkit._native._status import Status, numbered, refuse_one
from attestkit.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Iterator

_TD_10, _TD_15 = 584, 648

Found = tuple[int, int]  # offset of a quote, size of its body
Rows = tuple[bytes, bytes, bytes, bytes]


def _given(data: bytes, starts: "array[int]") -> "Iterator[Found]":
    """Check the quotes at given offsets, 64 bits each, and yield what was found of each."""
    for number, start in enumerate(starts):
        if start >= len(data) or (number > 0 and start <= starts[number - 1]):
            raise refuse_one(Status.OFFSETS, number, start)
    for number, (start, end) in enumerate(pairwise([*starts, len(data)])):
        quote = data[start:end]
        try:
            layout = quote_layout(quote)
        except FormatError as error:
            raise _numbered(error, number, start) from None
        if quote[4] == 0:
            raise refuse_one(Status.ENCLAVE, number, start + 4)
        yield start, layout[1]


def _found(data: bytes) -> "Iterator[Found]":
    """Check contiguous quotes, and yield what was found of each."""
    start = number = 0
    while start < len(data):
        try:
            layout, end = quote_layout_among(data, start)
        except FormatError as error:
            raise _numbered(error, number, 0) from None
        if data[start + 4] == 0:
            raise refuse_one(Status.ENCLAVE, number, start + 4)
        yield start, layout[1]
        start = end
        number += 1


def _numbered(error: FormatError, number: int, start: int) -> FormatError:
    return numbered(error, number, start + (error.offset or 0))


def quote_rows(data: bytes, starts: bytes | None) -> Rows:
    """Check quotes of TDs; return the data, and the offsets, versions and body types of the quotes.

    Args:
        data: The quotes.
        starts: Their ascending offsets, 64 bits each in native byte order; None: the quotes are
            contiguous.

    Returns:
        `data`; offsets as in `starts`; a byte per quote: version 4 or 5; a byte: body type 2 or 3.

    Raises:
        FormatError: For the first invalid offset, else for the first quote that is malformed or of
            an SGX enclave.
    """
    found = list(_found(data) if starts is None else _given(data, array("Q", starts)))
    return (
        data,
        array("Q", [start for start, _ in found]).tobytes(),
        bytes([data[start] for start, _ in found]),
        bytes([3 if size == _TD_15 else 2 for _, size in found]),
    )


class Column:
    """Descriptor of a column: one field of all quotes, or four adjacent ones, created on first use.

    The class that uses it must have the result of `quote_rows` in the attribute `_rows`.

    Args:
        at: Offset of the first field in the body of a quote.
        width: Size of a field in bytes.
        count: Number of adjacent fields, which become a tuple of columns if it is over 1.
    """

    def __init__(self, at: int, width: int, count: int = 1) -> None:
        self._cuts = [(at + width * number, width) for number in range(count)]

    def __set_name__(self, _: type, name: str) -> None:
        self._name = name

    def __get__(self, owner: object, _: type | None = None) -> object:
        if owner is None:
            raise AttributeError("column: available on instances only")
        # This descriptor has no __set__, so the instance attribute takes precedence from now on.
        attributes = vars(owner)
        columns = [_gather(attributes["_rows"], *cut) for cut in self._cuts]
        found = attributes[self._name] = tuple(columns) if len(columns) > 1 else columns[0]
        return found


def _gather(rows: Rows, at: int, width: int) -> memoryview:
    data, starts, versions, body_types = rows
    fields = []
    for start, version, body_type in zip(array("Q", starts), versions, body_types, strict=True):
        body = start + (54 if version == 5 else 48)
        exists = at < _TD_10 or body_type == 3
        fields.append(data[body + at : body + at + width] if exists else bytes(width))
    flat = memoryview(b"".join(fields))
    # A memoryview cannot have the shape (0, width).
    return flat.cast("B", (len(fields), width)) if fields else flat
