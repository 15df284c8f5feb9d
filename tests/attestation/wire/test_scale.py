"""SCALE numbers, bytes and vectors are read strictly and written in their shortest form."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit.attestation.wire import scale
from attestkit.attestation.wire.scale import ScaleReader
from attestkit.errors import FormatError, UsageError
from tests.raising import raises

COMPACT = [
    (0, "00"),
    (1, "04"),
    (63, "fc"),
    (64, "0101"),
    (16_383, "fdff"),
    (16_384, "02000100"),
    (2**30 - 1, "feffffff"),
    (2**30, "0300000040"),
    (2**32 - 1, "03ffffffff"),
]


@pytest.mark.parametrize(("value", "encoded"), COMPACT)
def test_compact_number_round_trips_in_shortest_form(value: int, encoded: str) -> None:
    """A compact number is written in its shortest form and read back."""
    assert scale.encode_compact(value).hex() == encoded
    assert ScaleReader(bytes.fromhex(encoded)).compact() == value


LONGER = ["0100", "fd00", "02000000", "feff0000", "0300000000", "03ffffff3f"]


@pytest.mark.parametrize(
    ("encoded", "reason"),
    [
        *((encoded, "not_canonical") for encoded in LONGER),
        ("070000000001", "wrong_value"),
        ("ff", "wrong_value"),
    ],
)
def test_compact_number_over_long_or_too_large_fails(encoded: str, reason: str) -> None:
    """An overlong number, or one of 2**32 or more, is rejected at its start."""
    with raises(FormatError, reason, offset=0):
        ScaleReader(bytes.fromhex(encoded)).compact()


@pytest.mark.parametrize("encoded", ["", "01", "0200", "020000", "03", "03000000"])
def test_compact_number_truncated_fails(encoded: str) -> None:
    """A truncated number is rejected."""
    with raises(FormatError, "truncated", offset=min(len(encoded) // 2, 1)):
        ScaleReader(bytes.fromhex(encoded)).compact()


def test_scale_values_round_trip_in_order() -> None:
    """Values are read in the order in which they were written."""
    document = b"".join(
        [
            b"\x07",
            scale.encode_u32(0x01020304),
            scale.encode_blob(b"abc"),
            scale.encode_text("grün"),
            scale.encode_vector([scale.encode_u32(1), scale.encode_u32(2)]),
        ]
    )
    reader = ScaleReader(document)
    assert (reader.u8(), reader.u32()) == (7, 0x01020304)
    assert (reader.blob(), reader.text()) == (b"abc", "grün")
    assert reader.vector(ScaleReader.u32) == (1, 2)
    assert reader.remaining == 0


def test_scale_text_of_invalid_utf8_fails() -> None:
    """The error names the first invalid byte."""
    with raises(FormatError, "encoding", offset=3):
        ScaleReader(scale.encode_blob(b"ab\xff")).text()


def test_scale_vector_count_over_remaining_bytes_fails() -> None:
    """A count larger than the remaining bytes is rejected before any item is read."""
    reader = ScaleReader(scale.encode_compact(2**32 - 1) + bytes(8))
    with raises(FormatError, "truncated", offset=0):
        reader.vector(ScaleReader.u8)


def test_scale_vector_over_65536_items_fails() -> None:
    """65,536 items are read, one more is not."""
    reader = ScaleReader(scale.encode_compact(65_536) + bytes(65_536))
    assert len(reader.vector(ScaleReader.u8)) == 65_536
    reader = ScaleReader(scale.encode_compact(65_537) + bytes(65_537))
    with raises(FormatError, "too_many", offset=0):
        reader.vector(ScaleReader.u8)


@pytest.mark.parametrize("value", [-1, 2**32])
def test_scale_write_of_out_of_range_number_is_usage_error(value: int) -> None:
    """A number out of its range cannot be written."""
    with raises(UsageError, "out_of_range"):
        scale.encode_u32(value)


@settings(deadline=None)  # shared machines are slow
@given(st.integers(0, 2**32 - 1))
def test_compact_number_round_trips(value: int) -> None:
    """Every compact number is read back equal."""
    assert ScaleReader(scale.encode_compact(value)).compact() == value
