"""The fast path for columns of common quotes accepts nothing that the general parser rejects."""

from array import array
from typing import Any

import pytest

from attestkit import _native
from attestkit._native import _python_columns as python_core
from attestkit.errors import FormatError
from attestkit.quote import Quote
from tests.samples.quotes import made_quote, starts_of

compiled = pytest.mark.skipif(_native.CORE != "compiled", reason=_native.CORE_REASON)

CORES: list[Any] = [_native] + [python_core] * (_native.CORE == "compiled")
SHORTEST = made_quote(auth=b"")
USUAL = made_quote(
    certification=(5, bytes(range(40)))
)  # the common layout, for which the core has a fast path
LENGTHS = (0, 2, 4, 632, 633, 634, 764, 766, 767, 768, 1218, 1219, 1252, 1253, 1254, 1255, 1256)
FORGED = made_quote(key=bytes(64), auth=bytes(32))
FORGED = FORGED[:1090] + bytes(64) + FORGED[1154:]


class Columns:
    """Columns of a field in all bodies, of one in some bodies, and of four fields."""

    column0 = _native.Column(520, 64)
    column1 = _native.Column(600, 48)
    column2 = _native.Column(328, 48, 4)
    _rows: Any


def check_rows(quotes: list[bytes]) -> None:
    """Check that both cores accept and reject what `Quote.parse` does."""
    data, starts = b"".join(quotes), array("Q", starts_of(quotes)).tobytes()
    for offsets in (None, starts):
        results: list[object] = []
        for core in CORES:
            try:
                results.append(core.quote_rows(data, offsets))
            except FormatError as error:
                results.append((error.message, error.offset, error.reason))
        assert results[1:] in ([], results[:1])
    try:
        rows = [Quote.parse(quote) for quote in quotes]
    except FormatError:
        assert isinstance(results[0], tuple)
        assert len(results[0]) == 3
    else:
        assert results[0] == (data, starts, bytes([row.version for row in rows]), bytes([2] * 3))


@pytest.mark.parametrize("bit", range(8))
def test_quote_rows_checks_every_byte(bit: int) -> None:
    """A changed bit is detected among quotes with equal key binding and length."""
    all_bits = bit in (0, 7)
    for at in range(len(USUAL)) if all_bits else LENGTHS:
        changed = bytearray(USUAL)
        changed[at] ^= 1 << bit
        check_rows([USUAL, USUAL, bytes(changed)])
        check_rows([USUAL, bytes(changed), USUAL])


@pytest.mark.parametrize("size", [1, 7, 8, 9, 63, 64, 65, 71, 72, 73, 130])
def test_quote_rows_checks_every_padding_byte(size: int) -> None:
    """Padding is checked even if all quotes have equal padding."""
    padded = USUAL + bytes(size)
    for at in range(len(USUAL), len(padded)):
        changed = padded[:at] + b"\4" + padded[at + 1 :]
        check_rows([padded, padded, changed])
        check_rows([padded, changed, padded])
    for other in range(0, 2 * size, max(1, size // 8)):
        check_rows([padded, USUAL + bytes(other), padded])
        check_rows([padded, padded, USUAL + bytes(other)])


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
def test_quote_rows_checks_every_quote_itself(other: bytes) -> None:
    """A quote that differs from the previous one in length, key or type is read correctly."""
    for quotes in ([USUAL, USUAL, other], [USUAL, other, other], [other, USUAL, USUAL]):
        check_rows(quotes)
        check_rows([quote + bytes(70) for quote in quotes])


def test_quote_rows_checks_end_of_each_quote() -> None:
    """A quote that overlaps the next start is rejected."""
    for size in range(1, len(USUAL)):
        starts = array("Q", [0, len(USUAL), len(USUAL) + size]).tobytes()
        with pytest.raises(FormatError) as caught:
            _native.quote_rows(USUAL * 3, starts)
        assert caught.value.message.startswith("quote 1: ")


@compiled
def test_column_with_inconsistent_rows_fails() -> None:
    """With manipulated rows no byte outside the data is read."""
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
    "arguments",
    [(), (0,), (-1, 8), (0, -8), (0, 8, 4), (0, 48, 3), (0, 649), (0, "8"), (0, 48, 4, 1)],
)
def test_column_of_invalid_field_fails(arguments: Any) -> None:
    """A column has one field or four fields of 48 bytes, inside the body."""
    with pytest.raises((TypeError, ValueError)):
        _native.Column(*arguments)
    with pytest.raises(AttributeError):
        _native.Column(0, 8).__get__(Columns())  # __set_name__ was not called
    for outside in ((641, 8), (649, 8), (600, 64), (0, 24), (0, 0), (393, 48, 4)):
        made = type("Columns", (), {"column": _native.Column(*outside)})()
        made._rows = _native.quote_rows(SHORTEST, None)
        with pytest.raises(ValueError, match="no field"):
            _ = made.column
