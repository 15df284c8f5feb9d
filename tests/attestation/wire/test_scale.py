"""SCALE: numbers, bytes and vectors read strictly, written in the one shortest form."""

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit.attestation.wire import scale
from attestkit.attestation.wire.scale import ScaleReader
from attestkit.errors import FormatError, UsageError

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
def test_compact_numbers_have_one_form(value: int, encoded: str) -> None:
    """A compact number is written in its shortest form and read back."""
    assert scale.compact(value).hex() == encoded
    assert ScaleReader(bytes.fromhex(encoded)).compact() == value


@pytest.mark.parametrize(
    "encoded",
    ["0100", "fd00", "02000000", "feff0000", "0300000000", "03ffffff3f", "070000000001", "ff"],
)
def test_longer_and_larger_compact_numbers_are_refused(encoded: str) -> None:
    """A number in a longer form than needed, or of 2**32 and more, is refused where it starts."""
    with pytest.raises(FormatError) as caught:
        ScaleReader(bytes.fromhex(encoded)).compact()
    assert caught.value.offset == 0


@pytest.mark.parametrize("encoded", ["", "01", "0200", "020000", "03", "03000000"])
def test_cut_compact_numbers_are_refused(encoded: str) -> None:
    """A number that ends before its last byte is refused."""
    with pytest.raises(FormatError, match="wanted"):
        ScaleReader(bytes.fromhex(encoded)).compact()


def test_values_come_back_in_order() -> None:
    """What is written one after another is read one after another."""
    whole = b"".join(
        [
            b"\x07",
            scale.u32(0x01020304),
            scale.u64(2**64 - 1),
            scale.boolean(True),
            scale.blob(b"abc"),
            scale.text("grün"),
            scale.vector([scale.u32(1), scale.u32(2)]),
            scale.option(None),
            scale.option(scale.text("x")),
            b"rest",
        ]
    )
    reader = ScaleReader(whole)
    assert (reader.u8(), reader.u32(), reader.u64()) == (7, 0x01020304, 2**64 - 1)
    assert reader.boolean()
    assert (reader.blob(), reader.text()) == (b"abc", "grün")
    assert reader.vector(reader.u32) == (1, 2)
    assert reader.option(reader.text) is None
    assert reader.option(reader.text) == "x"
    assert reader.remaining == 4
    assert reader.rest() == b"rest"
    assert reader.remaining == 0


@pytest.mark.parametrize("method", ["boolean", "option"])
def test_marks_other_than_0_and_1_are_refused(method: str) -> None:
    """A boolean or option mark is 0 or 1; the error names the byte."""
    reader = ScaleReader(b"\1\2")
    reader.u8()
    with pytest.raises(FormatError) as caught:
        reader.option(reader.u8) if method == "option" else reader.boolean()
    assert caught.value.offset == 1


def test_text_must_be_utf8() -> None:
    """The error names the first byte that is not UTF-8."""
    with pytest.raises(FormatError) as caught:
        ScaleReader(scale.blob(b"ab\xff")).text()
    assert caught.value.offset == 3


def test_a_vector_cannot_announce_more_items_than_bytes() -> None:
    """A count that the rest cannot hold is refused before any item is read."""
    reader = ScaleReader(scale.compact(2**32 - 1) + bytes(8))
    with pytest.raises(FormatError, match="4294967295 items"):
        reader.vector(reader.u8)


def test_items_are_limited() -> None:
    """65,536 items are read, one more is not."""
    reader = ScaleReader(scale.compact(65_536) + bytes(65_536))
    assert len(reader.vector(reader.u8)) == 65_536
    reader = ScaleReader(scale.compact(65_537) + bytes(65_537))
    with pytest.raises(FormatError, match="65537 items are more than 65536"):
        reader.vector(reader.u8)


@pytest.mark.parametrize("value", [-1, 2**32])
def test_values_that_do_not_fit_are_refused(value: int) -> None:
    """A number out of its range cannot be written."""
    with pytest.raises(UsageError):
        scale.u32(value)


def test_half_a_surrogate_pair_cannot_be_written() -> None:
    """Text without a UTF-8 form is the caller's mistake."""
    with pytest.raises(UsageError, match="surrogate"):
        scale.text("\ud800")


@settings(deadline=None)  # machines are busy
@given(st.binary(max_size=40))
def test_any_bytes_raise_only_format_errors(data: bytes) -> None:
    """Reading anything either works or is a FormatError, and never goes past the end."""
    reader = ScaleReader(data)
    for read in (reader.compact, reader.text, reader.boolean, lambda: reader.vector(reader.blob)):
        with suppress(FormatError):
            read()
        assert 0 <= reader.at <= len(data)


@settings(deadline=None)  # machines are busy
@given(st.integers(0, 2**32 - 1))
def test_every_compact_number_survives(value: int) -> None:
    """Writing and reading is the identity."""
    assert ScaleReader(scale.compact(value)).compact() == value
