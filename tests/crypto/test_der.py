"""DER is read strictly: one spelling for each value, and nothing left over."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit._crypto.der import (
    BIT_STRING,
    BOOLEAN,
    INTEGER,
    OCTET_STRING,
    SEQUENCE,
    DerReader,
    context,
    dotted_oid,
)
from attestkit.errors import FormatError


def read(text: str) -> DerReader:
    """Return a reader of bytes in hex."""
    return DerReader(bytes.fromhex(text))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("020100", 0),
        ("02017f", 127),
        ("02020080", 128),
        ("020200d5", 213),
        ("020180", -128),
        ("0202ff7f", -129),
        ("0220" + "7f" * 32, int("7f" * 32, 16)),
    ],
)
def test_numbers(text: str, value: int) -> None:
    """Numbers have a sign, and up to 32 bytes."""
    reader = read(text)
    assert reader.integer() == value
    reader.finish()


@pytest.mark.parametrize("text", ["0200", "02020000", "0202007f", "0202ffff", "0221" + "01" * 33])
def test_numbers_that_are_none(text: str) -> None:
    """Empty, padded and long ones are refused."""
    with pytest.raises(FormatError, match="INTEGER"):
        read(text).integer()


def test_other_values() -> None:
    """Truth, bits and bytes come out as they went in."""
    assert read("0101ff").boolean() is True
    assert read("010100").boolean() is False
    assert read("03020204").bits() == (2, b"\x04")
    assert read("030100").bits() == (0, b"")
    reader = read("0402aabb0500")
    assert reader.tag() == OCTET_STRING
    assert reader.content(OCTET_STRING) == b"\xaa\xbb"
    assert reader.whole(0x05) == b"\x05\x00"
    assert reader.tag() is None
    assert context(3) == 0xA3


@pytest.mark.parametrize(
    ("text", "method"),
    [
        ("010101", DerReader.boolean),
        ("0100", DerReader.boolean),
        ("0102ffff", DerReader.boolean),
        ("0300", DerReader.bits),
        ("03020801", DerReader.bits),
        ("03020204ff", lambda reader: (reader.bits(), reader.finish())),
        ("03020205", DerReader.bits),
        ("030101", DerReader.bits),
    ],
)
def test_values_that_are_none(text: str, method: Callable[[DerReader], object]) -> None:
    """A truth that is neither, bits whose number cannot be, and something behind."""
    with pytest.raises(FormatError):
        method(read(text))


@pytest.mark.parametrize(
    ("text", "offset"),
    [
        ("", 0),
        ("04", 0),
        ("0501", 0),
        ("0480", 1),
        ("048100", 1),
        ("04817f" + "00" * 127, 1),
        ("048200ff" + "00" * 255, 1),
        ("0485" + "0000000001" + "00", 1),
        ("0482ff", 1),
        ("0402aa", 0),
        ("0484ffffffff", 0),
    ],
)
def test_lengths_that_are_none(text: str, offset: int) -> None:
    """Lengths are definite, as short as can be, and end inside; the error has the byte."""
    with pytest.raises(FormatError) as caught:
        read(text).content(OCTET_STRING)
    assert caught.value.offset == offset


@pytest.mark.parametrize("size", [0, 127, 128, 255, 256, 65535, 65536])
def test_lengths_at_their_edges(size: int) -> None:
    """Each size has its own shortest form."""
    width = (size.bit_length() + 7) // 8
    head = bytes([size]) if size < 128 else bytes([0x80 | width]) + size.to_bytes(width, "big")
    assert DerReader(b"\x04" + head + bytes(size)).content(OCTET_STRING) == bytes(size)


def test_an_inner_element_ends_inside_the_outer() -> None:
    """A content cannot reach behind the element it is in."""
    inner = read("3003040500" + "0000000000").enter(SEQUENCE)
    with pytest.raises(FormatError, match="5 bytes wanted, 1 left"):
        inner.content(OCTET_STRING)
    short = read("300104" + "00").enter(SEQUENCE)
    with pytest.raises(FormatError):
        short.content(OCTET_STRING)


@pytest.mark.parametrize(
    ("text", "dotted"),
    [
        ("551d13", "2.5.29.19"),
        ("2b060104019c780102", "1.3.6.1.4.1.3704.1.2"),
        ("00", "0.0"),
        ("7f", "2.47"),
        ("883703", "2.999.3"),
    ],
)
def test_names(text: str, dotted: str) -> None:
    """Names of things are as they are printed."""
    assert dotted_oid(bytes.fromhex(text)) == dotted


@pytest.mark.parametrize("text", ["", "80", "8001", "5580", "558001", "55" + "01" * 64])
def test_names_that_are_none(text: str) -> None:
    """Empty, cut, padded and long ones are refused."""
    with pytest.raises(FormatError, match="OBJECT IDENTIFIER"):
        dotted_oid(bytes.fromhex(text))


@given(
    st.binary(max_size=40),
    st.sampled_from(
        [
            DerReader.integer,
            DerReader.boolean,
            DerReader.bits,
            DerReader.finish,
            lambda reader: reader.content(BIT_STRING),
            lambda reader: reader.enter(SEQUENCE).content(BOOLEAN),
            lambda reader: reader.whole(INTEGER),
        ]
    ),
)
def test_any_bytes(data: bytes, method: Callable[[DerReader], object]) -> None:
    """Whatever comes, it is read inside its bounds or refused with our error."""
    reader = DerReader(data)
    offset: int | None = 0
    try:
        method(reader)
    except FormatError as error:
        offset = error.offset
    assert offset is not None
    assert 0 <= offset <= len(data)
    assert reader.at <= len(data)


@given(st.binary(max_size=80))
def test_any_name(data: bytes) -> None:
    """A name reads as numbers with dots, or is refused."""
    try:
        dotted = dotted_oid(data)
    except FormatError:
        return
    assert all(part.isdigit() for part in dotted.split("."))
