"""Messages of a local key provider: the vectors, every cut length, and limits."""

import json
import socket
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.errors import FormatError
from attestkit.kms.local_provider.sealed_key import (
    MAX_FRAME,
    MAX_QUOTE,
    SealedKey,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
    read_size,
    receive_message,
    send_message,
)
from tests.raising import raises
from tests.runner.cases import every_case
from tests.vectors import load, needs_shared

GROUPS = load("kms.json").get("groups", {})
FRAMES = GROUPS.get("local_frames", {}).get("rows", [])
BAD_FRAMES = GROUPS.get("local_bad_frames", {}).get("rows", [])


def split(frame: str) -> bytes:
    """Return the message of a frame in hex, after a check of its length."""
    data = bytes.fromhex(frame)
    assert read_size(data[:4]) == len(data) - 4
    return data[4:]


@needs_shared
@pytest.mark.parametrize("row", FRAMES, ids=lambda row: row["id"])
def test_frames_equal_vectors(row: dict[str, Any]) -> None:
    """Request and response are those of the vectors, byte for byte, and are read back."""
    quote, request, response = bytes.fromhex(row["quote"]), row["request"], row["response"]
    assert encode_request(quote) == split(request)
    assert decode_request(split(request)) == quote
    answer = SealedKey(*(bytes.fromhex(row[name]) for name in SealedKey._fields))
    assert encode_response(answer) == split(response)
    assert decode_response(split(response)) == answer


@needs_shared
@pytest.mark.parametrize("row", BAD_FRAMES, ids=lambda row: row["id"])
def test_bad_frames_of_vectors(row: dict[str, Any]) -> None:
    """Frames are refused, by their length alone if it is out of range, or accepted."""
    frame = bytes.fromhex(row["frame"])
    if len(frame) == 4:
        with raises(FormatError, "wrong_size"):
            read_size(frame)
    elif row["expect"] == "accepted":
        assert decode_request(split(row["frame"])) == b"\1"
    else:
        with pytest.raises(FormatError):
            decode_request(split(row["frame"]))


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_messages_round_trip(first: bytes, second: bytes) -> None:
    """All bytes are preserved, also with white space and other members."""
    assert decode_request(encode_request(first)) == first
    answer = SealedKey(first, second)
    assert decode_response(encode_response(answer)) == answer
    spaced = json.dumps({"x": {"y": [[]]}, **{k: list(v) for k, v in answer._asdict().items()}})
    assert decode_response(f" {spaced}\n".encode()) == answer


@every_case(
    ("message", "reason"),
    [
        (b"", "syntax"),
        (b"[]", "wrong_type"),
        (b"{}", "wrong_type"),
        (b'{"quote":null}', "wrong_type"),
        (b'{"quote":[1.0]}', "wrong_type"),
        (b'{"quote":[true]}', "wrong_type"),
        (b'{"quote":[-1]}', "wrong_type"),
        (b'{"quote":[256]}', "wrong_type"),
        (b'{"quote":["1"]}', "wrong_type"),
        (b'{"quote":[1],"quote":[2]}', "duplicate"),
        (b'{"quote":[1],"\\u0071uote":[2]}', "duplicate"),
        (b'{"quote":[01]}', "wrong_type"),
        (b'{"quote":[1 2]}', "wrong_type"),
        (b'{"quote":[1,]}', "wrong_type"),
        (b'{"quote":[,]}', "wrong_type"),
        (b'{"quote":[1]}x', "syntax"),
        (b'{"quote":[1],"x":NaN}', "syntax"),
        (b'{"quote":[1],"x":"\xff"}', "encoding"),
        (b'{"x":' + b"[" * 300 + b"]" * 300 + b"}", "too_deep"),
        (b'{"quote":[1],"x":"' + b"y" * (1 << 16) + b'"}', "too_large"),
        (b'{"quote":' + b"[[]," * 20_000 + b"[]" + b"]" * 20_000 + b"}", "too_large"),
    ],
)
def test_malformed_message_is_rejected(message: bytes, reason: Any) -> None:
    """Each kind of malformed message has its reason; none is in the error's chain."""
    with raises(FormatError, reason):
        decode_request(message)


@pytest.mark.parametrize(
    "message", [encode_request(b"\0\x01\xff"), encode_response(SealedKey(b"\1", b"\2"))]
)
def test_every_prefix_of_a_message_is_rejected(message: bytes) -> None:
    """A message that is cut anywhere is malformed."""
    for size in range(len(message)):
        for decode in (decode_request, decode_response):
            with pytest.raises(FormatError):
                decode(message[:size])


def test_sizes_are_limited() -> None:
    """A quote has at most 1 MiB, a message 8 MiB."""
    largest = bytes(MAX_QUOTE)
    assert decode_request(encode_request(largest)) == largest
    with raises(FormatError, "too_large"):
        decode_request(encode_request(largest + b"\0"))
    with raises(FormatError, "too_large"):
        decode_request(b" " * MAX_FRAME + b" ")
    assert read_size(MAX_FRAME.to_bytes(4, "big")) == MAX_FRAME
    for head in (b"", b"\0\0\1", bytes(4), (MAX_FRAME + 1).to_bytes(4, "big"), b"\xff" * 4):
        with raises(FormatError, "wrong_size"):
            read_size(head)


def test_messages_over_a_socket() -> None:
    """A message is received in one piece or byte by byte; a cut one is an error."""
    message = encode_request(bytes(range(256)) * 40)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        deadline = time.monotonic() + 30
        send_message(ours, message, deadline)
        assert receive_message(theirs, deadline) == message
        for byte in b"\0\0\0\2{}":
            ours.sendall(bytes([byte]))
        assert receive_message(theirs, deadline) == b"{}"
        with pytest.raises(TimeoutError):
            receive_message(theirs, time.monotonic() - 1)
        ours.sendall(b"\0\0\0\2{")
        ours.close()
        with raises(FormatError, "truncated"):
            receive_message(theirs, deadline)
