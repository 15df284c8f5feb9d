"""Binary messages are proto3's, whatever comes in, and cost what their bytes cost."""

import subprocess
import sys
from contextlib import suppress
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.errors import FormatError
from attestkit.serve.rpc import protobuf_codec
from attestkit.serve.rpc.json_codec import Prepared
from attestkit.serve.rpc.messages import (
    AppInfo,
    EmitEventArgs,
    GetKeyArgs,
    GetKeyResponse,
    GetQuoteResponse,
    GetTlsKeyArgs,
    RawQuoteArgs,
    VerifyResponse,
    fields_of,
)
from attestkit.serve.rpc.protobuf_codec import decode, encode_error
from tests.serve.protobuf import MESSAGES, any_message
from tests.untyped import untyped

WHOLE = GetTlsKeyArgs("a", ("b", "", "ц"), True, False, True, 0, 2**64 - 1, True)
WHOLE_HEX = "0a01611201621200 1202d186 1801 2801 3000 38ffffffffffffffffff01 4001"


def encode(message: "NamedTuple | Prepared[Any] | None") -> bytes:
    """Return a response's pieces as one."""
    return b"".join(protobuf_codec.encode(message))


def test_whole_message() -> None:
    """Every kind of field, each with its number; a zero that is present differs from none."""
    assert encode(WHOLE) == bytes.fromhex(WHOLE_HEX)
    assert decode(GetTlsKeyArgs, bytes.fromhex(WHOLE_HEX)) == WHOLE
    assert decode(GetTlsKeyArgs, b"").not_before is None
    assert decode(GetTlsKeyArgs, b"\x30\x00").not_before == 0


def test_defaults_are_not_written() -> None:
    """A message of defaults has no bytes, and so has the answer of a method without one."""
    assert [encode(message()) for message in MESSAGES] == [b""] * len(MESSAGES)
    assert encode(None) == b""
    assert encode(VerifyResponse(valid=False)) == b""
    assert encode(VerifyResponse(valid=True)) == b"\x08\x01"


@given(any_message())
def test_message_comes_back(message: Any) -> None:
    """What is written is read as it was, with the very types that methods count on."""
    found = decode(type(message), encode(message))
    assert found == message
    assert type(found) is type(message)
    for field, value in zip(fields_of(type(message)), found, strict=True):
        kind = tuple if field.repeated else field.kind
        assert type(value) is kind or (field.optional and value is None)


@given(any_message(), st.binary(max_size=20), st.integers(100, 2**29 - 1))
def test_unknown_fields_are_skipped(message: Any, data: bytes, number: int) -> None:
    """Fields of later releases may stand before, behind and between the known ones."""
    unknown = _varint(number << 3 | 2) + _varint(len(data)) + data
    assert decode(type(message), unknown + encode(message) + unknown) == message


def _varint(number: int) -> bytes:
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def test_last_of_several_counts() -> None:
    """A field that comes twice has its last value, as protobuf has it."""
    assert decode(GetKeyArgs, b"\x0a\x01a\x0a\x01b") == GetKeyArgs("b")


def test_cut_message_is_refused_or_shorter() -> None:
    """Cut anywhere, the bytes are a message with fewer fields, or none."""
    body = bytes.fromhex(WHOLE_HEX)
    taken = 0
    for end in range(len(body)):
        with suppress(FormatError):
            assert decode(GetTlsKeyArgs, body[:end]) != WHOLE
            taken += 1
    assert taken == 9  # as many as there are borders of fields


@pytest.mark.parametrize(
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
def test_what_is_no_message_is_refused(body: bytes) -> None:
    """Cut, malformed, nested too deep, JSON, or text that is not UTF-8: one error of ours."""
    with pytest.raises(FormatError, match=r"^the body is not a protobuf message GetKeyArgs$"):
        decode(GetKeyArgs, body)


@given(st.sampled_from(MESSAGES), st.binary())
def test_any_bytes_raise_only_our_error(message: Any, body: bytes) -> None:
    """Whatever comes in, the decoder gives a message or a FormatError."""
    with suppress(FormatError):
        assert type(decode(message, body)) is message


def test_bytes_need_not_be_text() -> None:
    """Only texts are UTF-8."""
    assert decode(RawQuoteArgs, b"\x0a\x01\xff") == RawQuoteArgs(b"\xff")


def test_prepared_response_is_encoded_once() -> None:
    """An answer that does not change is encoded when it is first asked for, and kept."""
    info = Prepared((), lambda: AppInfo(app_id=b"\x01", app_name="ц"))
    assert info.protobuf is None
    assert encode(info) == encode(info.message)
    assert protobuf_codec.encode(info) is protobuf_codec.encode(info)


def test_long_answers_are_one_piece() -> None:
    """The library's bytes go to the socket as they are."""
    response = GetQuoteResponse(bytes(5000), "ц" * 30_000)
    [whole] = protobuf_codec.encode(response)
    assert len(whole) == 5000 + 60_000 + 7


@given(st.text(st.characters(exclude_categories=())))
def test_error_is_a_text_with_number_one(text: str) -> None:
    """An error is a message with one text; what UTF-8 cannot write is replaced."""
    shown = text.encode("utf-8", "replace")
    want = b"\x0a" + _varint(len(shown)) + shown if text else b""
    assert encode_error(text) == want


def test_text_without_utf8_is_no_answer() -> None:
    """Half a surrogate pair is refused before anything is sent."""
    with pytest.raises(UnicodeEncodeError):
        encode(EmitEventArgs("\ud800"))


def test_keys_are_not_printed() -> None:
    """What an error of the library could print of a message is nothing of ours."""
    with pytest.raises(TypeError) as caught:
        encode(GetKeyResponse(key=untyped("secret")))
    assert "secret" not in str(caught.value)


def test_library_is_loaded_for_those_who_ask() -> None:
    """A server that nobody asks for protobuf does not have the library."""
    program = (
        "import sys, attestkit.serve.listener_apps, attestkit.serve.rpc.dispatcher as rpc; "
        "print('google.protobuf' in sys.modules, bool(rpc.protobuf()), "
        "'google.protobuf' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "True", "True"]
