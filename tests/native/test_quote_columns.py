"""The core's short way through the usual quote accepts nothing that the long one refuses."""

from array import array
from typing import Any

import pytest

from attestkit import _native
from attestkit._native import _python_columns as plain
from attestkit.errors import FormatError
from attestkit.quote import Quote
from tests.quotes import made_quote, starts_of

compiled = pytest.mark.skipif(_native.CORE != "compiled", reason=_native.CORE_REASON)

CORES: list[Any] = [_native] + [plain] * (_native.CORE == "compiled")
SHORTEST = made_quote(auth=b"")
USUAL = made_quote(certification=(5, bytes(range(40))))  # as nearly all are: the core has a way
LENGTHS = (0, 2, 4, 632, 633, 634, 764, 766, 767, 768, 1218, 1219, 1252, 1253, 1254, 1255, 1256)
FORGED = made_quote(key=bytes(64), auth=bytes(32))
FORGED = FORGED[:1090] + bytes(64) + FORGED[1154:]


class Columns:
    """Columns of a field that all bodies have, of one that only some have, and of four."""

    column0 = _native.Column(520, 64)
    column1 = _native.Column(600, 48)
    column2 = _native.Column(328, 48, 4)
    _rows: Any


def judged(quotes: list[bytes]) -> None:
    """Check that a core accepts and refuses what `Quote.parse` does one by one, and its twin."""
    data, starts = b"".join(quotes), array("Q", starts_of(quotes)).tobytes()
    for where in (None, starts):
        said: list[object] = []
        for core in CORES:
            try:
                said.append(core.quote_rows(data, where))
            except FormatError as error:
                said.append((error.message, error.offset, error.reason))
        assert said[1:] in ([], said[:1])
    try:
        rows = [Quote.parse(quote) for quote in quotes]
    except FormatError:
        assert isinstance(said[0], tuple)
        assert len(said[0]) == 3
    else:
        assert said[0] == (data, starts, bytes([row.version for row in rows]), bytes([2] * 3))


@pytest.mark.parametrize("bit", range(8))
def test_no_byte_is_taken_on_trust(bit: int) -> None:
    """Among quotes whose binding is known and whose length is foreseen each byte is looked at."""
    all_bits = bit in (0, 7)
    for at in range(len(USUAL)) if all_bits else LENGTHS:
        changed = bytearray(USUAL)
        changed[at] ^= 1 << bit
        judged([USUAL, USUAL, bytes(changed)])
        judged([USUAL, bytes(changed), USUAL])


@pytest.mark.parametrize("size", [1, 7, 8, 9, 63, 64, 65, 71, 72, 73, 130])
def test_no_zero_is_taken_on_trust(size: int) -> None:
    """Where quotes have as many zeros behind them as each other, each zero is looked at."""
    padded = USUAL + bytes(size)
    for at in range(len(USUAL), len(padded)):
        changed = padded[:at] + b"\4" + padded[at + 1 :]
        judged([padded, padded, changed])
        judged([padded, changed, padded])
    for other in range(0, 2 * size, max(1, size // 8)):
        judged([padded, USUAL + bytes(other), padded])
        judged([padded, padded, USUAL + bytes(other)])


@pytest.mark.parametrize(
    "other",
    [
        made_quote(certification=(5, bytes(41))),
        made_quote(certification=(5, bytes(40) + b"\4")),
        made_quote(certification=(5, b"")),
        made_quote(certification=(0, b"")),
        made_quote(certification=(6, b"")),
        made_quote(key=bytes(64), auth=bytes(32)),
        FORGED,
        USUAL.ljust(131072, b"\0"),
        USUAL.ljust(131073, b"\0"),
    ],
)
def test_no_quote_is_taken_for_the_one_before(other: bytes) -> None:
    """Quotes that are longer, shorter, of another key or of none are looked at as they are."""
    for quotes in ([USUAL, USUAL, other], [USUAL, other, other], [other, USUAL, USUAL]):
        judged(quotes)
        judged([quote + bytes(70) for quote in quotes])


def test_no_end_is_taken_on_trust() -> None:
    """A quote that another starts inside of is refused, though all its bytes are there."""
    for size in range(1, len(USUAL)):
        starts = array("Q", [0, len(USUAL), len(USUAL) + size]).tobytes()
        with pytest.raises(FormatError, match="quote 1: "):
            _native.quote_rows(USUAL * 3, starts)


@compiled
def test_a_column_is_one_of_rows_that_belong_to_the_data() -> None:
    """Whatever somebody puts into columns by force, no byte outside of the data is read."""
    made = Columns()
    data, starts, versions, body_types = _native.quote_rows(SHORTEST * 2, None)
    with pytest.raises(AttributeError, match="no quotes"):
        _ = made.column0
    for rows, error in (
        ((data[:-1], starts, versions, body_types), ValueError),
        ((data[:1225], starts, versions, body_types), ValueError),
        ((b"", starts, versions, body_types), ValueError),
        ((data, b"\xff" * 16, versions, body_types), ValueError),
        ((data, array("Q", [0, 1227]).tobytes(), versions, body_types), ValueError),
        ((data, starts[:8], versions, body_types), ValueError),
        ((data, starts, versions[:1], body_types), ValueError),
        ((data, starts, versions, body_types[:1]), ValueError),
        ((data, starts, versions, None), TypeError),
        ((bytearray(data), starts, versions, body_types), TypeError),
        ((data, starts, versions), TypeError),
    ):
        made._rows = rows
        for number in range(3):
            with pytest.raises(error):
                getattr(made, f"column{number}")
    made._rows = list(rows)
    with pytest.raises(AttributeError, match="no quotes"):
        _ = made.column0


@compiled
@pytest.mark.parametrize(
    "place", [(), (0,), (-1, 8), (0, -8), (0, 8, 4), (0, 48, 3), (0, 649), (0, "8"), (0, 48, 4, 1)]
)
def test_fields_that_columns_cannot_be_of(place: Any) -> None:
    """A column of the core is of one field, or of four of 48 bytes, which are inside bodies."""
    with pytest.raises((TypeError, ValueError)):
        _native.Column(*place)
    with pytest.raises(AttributeError):
        _native.Column(0, 8).__get__(Columns())  # has not been told its name
    for outside in ((641, 8), (649, 8), (600, 64), (0, 24), (0, 0), (393, 48, 4)):
        made = type("Columns", (), {"column": _native.Column(*outside)})()
        made._rows = _native.quote_rows(SHORTEST, None)
        with pytest.raises(ValueError, match="no field"):
            _ = made.column
