"""Tests of the reader of protobuf messages: wire types, varints, and bounds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit._formats import protobuf
from attestkit._formats.protobuf import (
    BYTES,
    FIXED32,
    FIXED64,
    VARINT,
    ProtobufField,
    ProtobufReader,
    encode_bytes_field,
    encode_number_field,
    encode_varint,
)
from attestkit.errors import FormatError
from tests.raising import raises
from tests.runner.cases import every_case

# Message of protobuf.dev, Encoding: Test1 {a: 150}, Test2 {b: "testing"}, then fixed numbers.
MESSAGE = bytes.fromhex("089601120774657374696e671d0100000021ff00000000000000")


def read(data: bytes) -> list[ProtobufField]:
    """Return the fields of a message."""
    return ProtobufReader(data).read_fields()


def test_reader_returns_fields_of_each_wire_type() -> None:
    """Varints, bytes and fixed numbers are read in their order."""
    assert read(MESSAGE) == [
        ProtobufField(1, VARINT, 150, 0),
        ProtobufField(2, BYTES, b"testing", 3),
        ProtobufField(3, FIXED32, 1, 12),
        ProtobufField(4, FIXED64, 255, 17),
    ]


@every_case("size", [size for size in range(1, len(MESSAGE)) if size not in {3, 12, 17}])
def test_reader_refuses_message_cut_in_a_field(size: int) -> None:
    """Every prefix that ends inside a field is refused."""
    with raises(FormatError, "truncated"):
        read(MESSAGE[:size])


@every_case(
    ("data", "reason"),
    [
        ("8000", "not_canonical"),  # tag 0 in two bytes
        ("088100", "not_canonical"),  # 1 in two bytes
        ("08000a", "truncated"),
        ("0000", "wrong_value"),  # field 0
        ("088080808080808080808001", "wrong_value"),  # 71 bits
        ("08ffffffffffffffffff02", "wrong_value"),  # 65 bits
        ("f8ffffffffffffffff0100", "wrong_value"),  # a field of over 29 bits
        ("0b0c", "unsupported"),  # a group
        ("0e", "unsupported"),
        ("0f", "unsupported"),
        ("0aff01", "truncated"),
        ("0affffffffffffffffff01", "truncated"),  # 2^64 - 1 bytes
    ],
)
def test_reader_refuses_malformed_fields(data: str, reason: str) -> None:
    """Each rule of the wire format has its reason."""
    with raises(FormatError, reason):
        read(bytes.fromhex(data))


def test_reader_bounds_the_number_of_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    """More fields than the limit are refused."""
    monkeypatch.setattr(protobuf, "MAX_FIELDS", 3)
    assert len(read(b"\x08\0" * 3)) == 3
    with raises(FormatError, "too_many"):
        read(b"\x08\0" * 4)


def test_field_refuses_another_type() -> None:
    """A field of bytes is not a number, and a number must fit."""
    number, text, fixed, _ = read(MESSAGE)
    assert number.number_value("a", 8) == 150
    assert text.bytes_value("b") == b"testing"
    for wrong in (lambda: number.bytes_value("a"), lambda: text.number_value("b")):
        with raises(FormatError, "wrong_type"):
            wrong()
    with raises(FormatError, "wrong_type"):
        fixed.number_value("c")
    with raises(FormatError, "wrong_value"):
        number.number_value("a", 7)


@given(
    st.lists(
        st.tuples(
            st.integers(1, (1 << 29) - 1), st.binary(max_size=200) | st.integers(0, (1 << 64) - 1)
        )
    )
)
def test_written_fields_are_read_again(fields: list[tuple[int, bytes | int]]) -> None:
    """Written fields are read as the same numbers and bytes."""
    data = b"".join(
        encode_bytes_field(number, value)
        if isinstance(value, bytes)
        else encode_number_field(number, value)
        for number, value in fields
    )
    assert [(one.number, one.value) for one in read(data)] == fields


@given(st.integers(0, (1 << 64) - 1))
def test_varint_is_read_again(value: int) -> None:
    """Every number of 64 bits has one varint."""
    encoded = encode_varint(value)
    assert len(encoded) <= 10
    assert ProtobufReader(encoded).varint() == value
