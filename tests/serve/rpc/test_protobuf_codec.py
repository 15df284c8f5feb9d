"""Protobuf codec: proto3 encoding, strict decoding, bounded memory."""

from contextlib import suppress
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.errors import FormatError
from attestkit.serve.rpc import protobuf_codec
from attestkit.serve.rpc.json_codec import PreparedResponse
from attestkit.serve.rpc.message_fields import fields_of
from attestkit.serve.rpc.messages import (
    AppInfo,
    EmitEventArgs,
    GetKeyArgs,
    GetKeyResponse,
    GetQuoteResponse,
    GetTlsKeyArgs,
    VerifyResponse,
)
from attestkit.serve.rpc.protobuf_codec import decode, encode_error
from tests.raising import raises
from tests.runner.cases import every_case
from tests.serve.protobuf import MESSAGES, any_message
from tests.untyped import untyped

WHOLE = GetTlsKeyArgs("a", ("b", "", "ц"), True, False, True, 0, 2**64 - 1, True)
WHOLE_HEX = "0a01611201621200 1202d186 1801 2801 3000 38ffffffffffffffffff01 4001"


def encode(message: "NamedTuple | PreparedResponse[Any] | None") -> bytes:
    """Return a response's pieces, joined."""
    return b"".join(protobuf_codec.encode(message))


def test_complete_message() -> None:
    """Every kind of field is encoded; a present zero differs from an absent field."""
    assert encode(WHOLE) == bytes.fromhex(WHOLE_HEX)
    assert decode(GetTlsKeyArgs, bytes.fromhex(WHOLE_HEX)) == WHOLE
    assert decode(GetTlsKeyArgs, b"").not_before is None
    assert decode(GetTlsKeyArgs, b"\x30\x00").not_before == 0


def test_encode_defaults_is_empty() -> None:
    """Default values have no bytes, nor has a missing response."""
    assert [encode(message()) for message in MESSAGES] == [b""] * len(MESSAGES)
    assert encode(None) == b""
    assert encode(VerifyResponse(valid=False)) == b""
    assert encode(VerifyResponse(valid=True)) == b"\x08\x01"


@given(any_message())
def test_round_trip(message: Any) -> None:
    """Decoding an encoded message gives equal values of equal types."""
    found = decode(type(message), encode(message))
    assert found == message
    assert type(found) is type(message)
    for field, value in zip(fields_of(type(message)), found, strict=True):
        kind = tuple if field.repeated else field.kind
        assert type(value) is kind or (field.optional and value is None)


@given(any_message(), st.binary(max_size=20), st.integers(100, 2**29 - 1))
def test_decode_unknown_fields_are_skipped(message: Any, data: bytes, number: int) -> None:
    """Unknown fields before and after known ones are skipped."""
    unknown = _varint(number << 3 | 2) + _varint(len(data)) + data
    assert decode(type(message), unknown + encode(message) + unknown) == message


def _varint(number: int) -> bytes:
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def test_decode_repeated_scalar_uses_last() -> None:
    """The last value of a repeated scalar field applies."""
    assert decode(GetKeyArgs, b"\x0a\x01a\x0a\x01b") == GetKeyArgs("b")


def test_decode_truncated_message() -> None:
    """A truncated message is refused, or has fewer fields."""
    body = bytes.fromhex(WHOLE_HEX)
    taken = 0
    for end in range(len(body)):
        with suppress(FormatError):
            assert decode(GetTlsKeyArgs, body[:end]) != WHOLE
            taken += 1
    assert taken == 9  # the number of field boundaries


@every_case(
    "body",
    [
        b"\x0a",
        b"\x0a\x05abc",
        b"\xff" * 11,
        b"\x00",
        b"\x0e",
        b"\x0b" * 200,
        b"\x0a\xff\xff\xff\xff\x0f",
        b"{}",
        b'{"path":"a"}',
        b"\x0a\x01\xff",
        b"\x0a\x03\xed\xa0\x80",
    ],
)
def test_decode_malformed_message_is_refused(body: bytes) -> None:
    """Malformed messages have one reason."""
    with raises(FormatError, "syntax"):
        decode(GetKeyArgs, body)


@every_case(
    "field",
    [
        b"\x08\x01",
        b"\x09" + bytes(8),
        b"\x0b\x0c",
        b"\x0d" + bytes(4),
        b"\x10\x00",
        b"\x22\x01a",
        b"\x23\x24",
        b"\x25" + bytes(4),
        b"\x29" + bytes(8),
    ],
)
@every_case("size", [0, 4097, 1 << 20])
def test_decode_field_of_other_wire_type_is_refused(field: bytes, size: int) -> None:
    """A known field of another wire type is refused in a body of any size, wherever it is."""
    filler = b"\x7a" + _varint(size) + bytes(size)  # an unknown field
    valid = encode(WHOLE)
    assert decode(GetTlsKeyArgs, valid + filler) == WHOLE
    for body in (field + filler + valid, valid + filler + field, filler + field):
        with raises(FormatError, "wrong_type"):
            decode(GetTlsKeyArgs, body)


@every_case("message", MESSAGES)
def test_decode_refuses_other_wire_types_of_every_field(message: type[NamedTuple]) -> None:
    """Every field of every message has one wire type."""
    for number in [field.number for field in fields_of(message) if field.number]:
        end_of_group = _varint(number << 3 | 4)
        values = {0: b"\0", 1: bytes(8), 2: b"\0", 3: end_of_group, 5: bytes(4)}
        taken = 0
        for wire_type, value in values.items():
            with suppress(FormatError):
                decode(message, _varint(number << 3 | wire_type) + value)
                taken += 1
        assert taken == 1


def test_encode_prepared_response_is_cached() -> None:
    """A prepared response is encoded once."""
    info = PreparedResponse((), lambda: AppInfo(app_id=b"\x01", app_name="ц"))
    assert info.protobuf is None
    assert encode(info) == encode(info.message)
    assert protobuf_codec.encode(info) is protobuf_codec.encode(info)


def test_encode_long_response_is_one_piece() -> None:
    """The library's bytes are sent without a copy."""
    response = GetQuoteResponse(bytes(5000), "ц" * 30_000)
    [whole] = protobuf_codec.encode(response)
    assert len(whole) == 5000 + 60_000 + 7


@given(st.text(st.characters(exclude_categories=())))
def test_encode_error(text: str) -> None:
    """An error is a message with one text; unencodable characters are replaced."""
    shown = text.encode("utf-8", "replace")
    want = b"\x0a" + _varint(len(shown)) + shown if text else b""
    assert encode_error(text) == want


def test_encode_lone_surrogate_is_refused() -> None:
    """A lone surrogate is refused before anything is sent."""
    with pytest.raises(UnicodeEncodeError):
        encode(EmitEventArgs("\ud800"))


def test_repr_hides_keys() -> None:
    """The repr of a protobuf message contains no key."""
    with pytest.raises(TypeError) as caught:
        encode(GetKeyResponse(key=untyped("secret")))
    assert "secret" not in str(caught.value)
