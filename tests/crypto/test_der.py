"""DER is read strictly: one encoding per value, and no trailing bytes."""

from collections.abc import Callable

import pytest

from attestkit._crypto.der import (
    OCTET_STRING,
    SEQUENCE,
    DerReader,
    context,
    dotted_oid,
)
from attestkit.errors import FormatError
from tests.raising import raises
from tests.runner.cases import every_case


def reader_of(text: str) -> DerReader:
    """Return a reader of bytes given in hex."""
    return DerReader(bytes.fromhex(text))


@every_case(
    ("text", "value"),
    [
        ("020100", 0),
        ("02020080", 128),
        ("020200d5", 213),
        ("020180", -128),
        ("0220" + "7f" * 32, int("7f" * 32, 16)),
    ],
)
def test_read_integer_returns_signed_value(text: str, value: int) -> None:
    """Integers are signed, of up to 32 bytes."""
    reader = reader_of(text)
    assert reader.integer() == value
    reader.finish()


@every_case("text", ["0200", "02020000", "0202007f", "0202ffff", "0221" + "01" * 33])
def test_read_integer_of_invalid_encoding_fails(text: str) -> None:
    """Empty, padded and oversized integers are rejected."""
    with raises(FormatError, "wrong_size", "not_canonical", offset=0):
        reader_of(text).integer()


def test_read_of_other_types_returns_values() -> None:
    """Booleans, bit strings and octet strings are read."""
    assert reader_of("0101ff").boolean() is True
    assert reader_of("010100").boolean() is False
    assert reader_of("03020204").bits() == (2, b"\x04")
    assert reader_of("030100").bits() == (0, b"")
    reader = reader_of("0402aabb0500")
    assert reader.tag() == OCTET_STRING
    assert reader.content(OCTET_STRING) == b"\xaa\xbb"
    assert reader.whole(0x05) == b"\x05\x00"
    assert reader.tag() is None
    assert context(3) == 0xA3


@every_case(
    ("text", "method"),
    [
        ("010101", DerReader.boolean),
        ("0100", DerReader.boolean),
        ("0102ffff", DerReader.boolean),
        ("0300", DerReader.bits),
        ("03020801", DerReader.bits),
        ("03020204ff", lambda reader: (reader.bits(), reader.finish())),
        ("03020205", DerReader.bits),
    ],
)
def test_read_of_invalid_value_fails(text: str, method: Callable[[DerReader], object]) -> None:
    """Other booleans, invalid unused-bit counts, and trailing bytes are rejected."""
    with pytest.raises(FormatError):
        method(reader_of(text))


@every_case(
    ("text", "offset"),
    [
        ("", 0),
        ("0501", 0),
        ("0480", 1),
        ("04817f" + "00" * 127, 1),
        ("048200ff" + "00" * 255, 1),
        ("0485" + "0000000001" + "00", 1),
        ("0482ff", 1),
        ("0484ffffffff", 0),
    ],
)
def test_read_of_invalid_length_fails_naming_offset(text: str, offset: int) -> None:
    """Lengths are definite, minimal, and within the data."""
    with pytest.raises(FormatError) as caught:
        reader_of(text).content(OCTET_STRING)
    assert caught.value.offset == offset


@every_case("size", [0, 127, 128, 255, 256, 65535, 65536])
def test_read_of_length_at_encoding_boundary(size: int) -> None:
    """Each length has one minimal encoding."""
    width = (size.bit_length() + 7) // 8
    head = bytes([size]) if size < 128 else bytes([0x80 | width]) + size.to_bytes(width, "big")
    assert DerReader(b"\x04" + head + bytes(size)).content(OCTET_STRING) == bytes(size)


def test_read_of_inner_element_past_outer_end_fails() -> None:
    """Content cannot extend past the enclosing element."""
    inner = reader_of("3003040500" + "0000000000").enter(SEQUENCE)
    with raises(FormatError, "truncated", message="DER: 5 bytes expected, 1 left"):
        inner.content(OCTET_STRING)
    short = reader_of("300104" + "00").enter(SEQUENCE)
    with raises(FormatError, "truncated"):
        short.content(OCTET_STRING)


@every_case(
    ("text", "dotted"),
    [
        ("551d13", "2.5.29.19"),
        ("2b060104019c780102", "1.3.6.1.4.1.3704.1.2"),
        ("7f", "2.47"),
        ("883703", "2.999.3"),
    ],
)
def test_read_oid_returns_dotted_name(text: str, dotted: str) -> None:
    """Object identifiers are returned in dotted notation."""
    assert dotted_oid(bytes.fromhex(text)) == dotted


@every_case("text", ["", "80", "8001", "5580", "558001", "55" + "01" * 64])
def test_read_oid_of_invalid_encoding_fails(text: str) -> None:
    """Empty, truncated, padded and oversized identifiers are rejected."""
    with raises(FormatError, "syntax", "not_canonical"):
        dotted_oid(bytes.fromhex(text))
