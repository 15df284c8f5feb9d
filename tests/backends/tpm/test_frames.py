"""Frames of commands and responses are parsed strictly, and encoding restores them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.backends.tpm.frames import (
    MAX_FRAME,
    Authorization,
    ResponseAuthorization,
    TpmCommand,
    TpmResponse,
    frame_size,
    password,
)
from attestkit.backends.tpm.nv_commands import NvPublic
from attestkit.errors import FormatError, UsageError
from attestkit.tpm.handles import PASSWORD_SESSION
from tests.raising import raises
from tests.runner.cases import every_case

SESSION = Authorization(0x02000000, bytes(range(64)), 1, b"\1" * 64)
COMMAND = TpmCommand(0x14E, (0x01500000, 0x01500001), b"\4\0\0\0", (SESSION, password(b"pw")))
ANSWER = ResponseAuthorization(bytes(range(64)), 1, b"\2" * 64)
RESPONSE = TpmResponse(0, 0x80000000, b"parameters", (ANSWER,))


def test_command_has_bytes_of_specification() -> None:
    """Startup, and a command with an empty password (TPM 2.0 Library, Part 1, section 18)."""
    assert TpmCommand(0x144, (), b"\0\0").encode().hex() == "80010000000c000001440000"
    extend = TpmCommand(0x182, (8,), b"\0\0\0\0", (password(),)).encode()
    assert extend.hex() == ("80020000001f00000182000000080000000940000009000000000000000000")
    assert password() == Authorization(PASSWORD_SESSION, b"", 0, b"")


def test_command_round_trips() -> None:
    """A command is read again with its handles and authorizations."""
    assert TpmCommand.parse(COMMAND.encode(), 2) == COMMAND
    plain = TpmCommand(0x17E, (), b"selection")
    assert TpmCommand.parse(plain.encode(), 0) == plain


def test_response_round_trips() -> None:
    """A response is read again with its handle, parameters and authorizations."""
    assert TpmResponse.parse(RESPONSE.encode(), returns_handle=True) == RESPONSE
    for response in (TpmResponse(0x18B), TpmResponse(0, None, b"data"), TpmResponse(0)):
        assert TpmResponse.parse(response.encode()) == response


def test_frame_cut_at_any_length_is_refused() -> None:
    """Every prefix of a frame is truncated; nothing may follow it."""
    for size in range(len(COMMAND.encode())):
        with raises(FormatError, "truncated"):
            TpmCommand.parse(COMMAND.encode()[:size], 2)
    for size in range(len(RESPONSE.encode())):
        with raises(FormatError, "truncated"):
            TpmResponse.parse(RESPONSE.encode()[:size], returns_handle=True)
    with raises(FormatError, "trailing_data"):
        TpmCommand.parse(COMMAND.encode() + b"\0", 2)
    with raises(FormatError, "trailing_data"):
        TpmResponse.parse(RESPONSE.encode() + b"\0", returns_handle=True)


def resized(frame: bytes) -> bytes:
    """Return a frame with its own size in the header."""
    return frame[:2] + len(frame).to_bytes(4, "big") + frame[6:]


def test_content_cut_at_any_length_is_refused() -> None:
    """A frame of consistent size is refused if a part of its content is missing."""
    raw = RESPONSE.encode()
    for size in range(10, len(raw) - 1):
        if size == 10 + 4 + 4 + len(RESPONSE.parameters):
            continue  # without its authorizations, which a password session may lack
        with raises(FormatError, "truncated"):
            TpmResponse.parse(resized(raw[:size]), returns_handle=True)
    raw = COMMAND.encode()
    parameters = len(raw) - len(COMMAND.parameters)
    for size in range(10, parameters):
        with raises(FormatError, "truncated"):
            TpmCommand.parse(resized(raw[:size]), 2)


@every_case(
    ("frame", "reason"),
    [
        (b"\x80\x03\0\0\0\x0a\0\0\0\0", "wrong_value"),
        (b"\x00\xc4\0\0\0\x0a\0\0\0\x1e", "unsupported_version"),
        (b"\x80\x02\0\0\0\x0a\0\0\1\x8b", "wrong_value"),
        (b"\x80\x01\0\0\0\x0b\0\0\1\x8b\0", "trailing_data"),
        (b"\x80\x01\0\0\x10\x01\0\0\0\0" + bytes(4087), "too_large"),
        (b"\x80\x02\0\0\0\x12\0\0\0\0\0\0\0\0\0\x41\0\0", "too_large"),
        (b"\x80\x02\0\0\0\x22\0\0\0\0\0\0\0\0" + bytes(20), "too_many"),
    ],
)
def test_malformed_response_is_refused(frame: bytes, reason: str) -> None:
    """Tags, sizes and counts are checked."""
    with raises(FormatError, reason):
        TpmResponse.parse(frame)


@pytest.mark.parametrize(
    ("area", "reason"),
    [
        (b"\0\0\0\x09\x40\0\0\x09\0\x41\0\0\0", "too_large"),
        (b"\0\0\0\x08\x40\0\0\x09\0\0\0\0\0", "inconsistent"),
        (b"\0\0\0\x24" + 4 * b"\x40\0\0\x09\0\0\0\0\0", "too_many"),
    ],
)
def test_malformed_authorizations_are_refused(area: bytes, reason: str) -> None:
    """The area of a command has whole entries, at most three."""
    with raises(FormatError, reason):
        TpmCommand.parse(resized(b"\x80\x02" + bytes(8) + area), 0)


def test_frame_beyond_the_limit_is_not_encoded() -> None:
    """A frame has at most 4096 bytes."""
    most = MAX_FRAME - 10
    assert len(TpmCommand(1, (), bytes(most)).encode()) == MAX_FRAME
    with raises(UsageError, "too_large"):
        TpmCommand(1, (), bytes(most + 1)).encode()
    with raises(UsageError, "too_large"):
        TpmResponse(0, None, bytes(most + 1)).encode()


def test_frame_size_is_bounded() -> None:
    """A header announces 10 to 4096 bytes."""
    for size in (10, MAX_FRAME):
        assert frame_size(b"\x80\1" + size.to_bytes(4, "big") + bytes(4)) == size
    for size, reason in ((0, "wrong_size"), (9, "wrong_size"), (MAX_FRAME + 1, "too_large")):
        with raises(FormatError, reason):
            frame_size(b"\x80\1" + size.to_bytes(4, "big") + bytes(4))
    with raises(FormatError, "truncated"):
        frame_size(b"\x80\1\0\0\0\x0a\0\0\0")


small = st.binary(max_size=64)
words = st.integers(0, 2**32 - 1)
sessions = st.builds(Authorization, words, small, st.integers(0, 255), small)


@given(words, st.lists(words, max_size=3), st.binary(max_size=500), st.lists(sessions, max_size=3))
def test_every_command_round_trips(
    code: int, handles: list[int], parameters: bytes, authorizations: list[Authorization]
) -> None:
    """Parsing an encoded command restores it."""
    command = TpmCommand(code, tuple(handles), parameters, tuple(authorizations))
    assert TpmCommand.parse(command.encode(), len(handles)) == command


answers = st.builds(ResponseAuthorization, small, st.integers(0, 255), small)


@given(st.none() | words, st.binary(max_size=500), st.lists(answers, max_size=3))
def test_every_response_round_trips(
    handle: int | None, parameters: bytes, authorizations: list[ResponseAuthorization]
) -> None:
    """Parsing an encoded response restores it."""
    response = TpmResponse(0, handle, parameters, tuple(authorizations))
    found = TpmResponse.parse(response.encode(), returns_handle=handle is not None)
    assert found == response


def test_nv_public_is_parsed_strictly() -> None:
    """The public area of an NV index is refused at every cut length, and with bytes after it."""
    public = NvPublic(0x01400001, "sha256", 0x00020002, bytes(32), 2600)
    raw = public.encode()
    assert NvPublic.parse(raw) == public
    for size in range(len(raw)):
        with raises(FormatError, "truncated"):
            NvPublic.parse(raw[:size])
    with raises(FormatError, "trailing_data"):
        NvPublic.parse(raw + b"\0")
    with raises(FormatError, "unsupported_algorithm"):
        NvPublic.parse(raw[:4] + b"\0\x10" + raw[6:])
    with raises(UsageError, "unsupported_algorithm"):
        public._replace(name_alg="md5").encode()
    with raises(UsageError, "out_of_range"):
        public._replace(size=65536).encode()
