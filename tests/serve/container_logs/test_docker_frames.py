"""Splitting a container log into frames or lines, independently of how it arrives in pieces."""

from collections.abc import Iterable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from attestkit.errors import BackendError
from attestkit.serve.container_logs.view import (
    CHANNELS,
    CONSOLE,
    LONGEST,
    Frame,
    FrameSplitter,
    LineSplitter,
    Splitter,
)
from tests.raising import raises
from tests.runner.cases import every_case
from tests.serve.docker.engine import encode_frames

SAMPLE = bytes.fromhex(
    "01000000 00000005 6f7574310a"  # "out1\n", as sent by dockerd 26.1
    "02000000 00000005 657272310a"
    "01000000 00000004 6e6f6e6c"
)
FRAMES = [Frame("stdout", b"out1\n"), Frame("stderr", b"err1\n"), Frame("stdout", b"nonl")]


def split_pieces(splitter: Splitter, pieces: Iterable[bytes]) -> list[Frame]:
    """Return all frames of these pieces."""
    found = [frame for piece in pieces for frame in splitter.feed(piece)]
    return [*found, *splitter.end()]


def test_split_frames_of_dockerd_sample() -> None:
    """Frames of two channels, and an unterminated last line."""
    assert encode_frames(FRAMES) == SAMPLE
    assert split_pieces(FrameSplitter(), [SAMPLE]) == FRAMES


@every_case("size", range(len(SAMPLE)))
def test_split_frames_truncated_log(size: int) -> None:
    """Complete frames are returned; a truncated one is an error."""
    complete = [0, 13, 26].count(size)
    splitter = FrameSplitter()
    found = list(splitter.feed(SAMPLE[:size]))
    assert found == FRAMES[: sum(size >= end for end in (13, 26))]
    if complete:
        assert list(splitter.end()) == []
    else:
        with raises(BackendError, "truncated"):
            splitter.end()


def test_split_frames_stdin_and_empty() -> None:
    """Channel 0 is stdin; empty frames are skipped."""
    frames = [Frame("stdin", b"in"), Frame("stdout", b""), Frame("stderr", b"err")]
    assert split_pieces(FrameSplitter(), [encode_frames(frames)]) == [frames[0], frames[2]]


@every_case(
    "header",
    [
        "0400000000000001",
        "ff00000000000001",
        "0100000100000001",
        "0101000000000001",
        "3137350a6f757431",
    ],
)
def test_split_frames_invalid_header_is_refused(header: str) -> None:
    """Frames before an invalid header are returned, then an error with the header."""
    frames = FrameSplitter().feed(encode_frames(FRAMES) + bytes.fromhex(header) + b"x" * 100)
    assert [next(frames) for _ in FRAMES] == FRAMES
    with raises(BackendError, "malformed_response") as caught:
        next(frames)
    assert str(caught.value).endswith(f": {header}")


def test_split_frames_too_long_is_refused() -> None:
    """A frame over the limit is refused by its header."""
    longest = Frame("stdout", bytes(LONGEST))
    assert split_pieces(FrameSplitter(), [encode_frames([longest])]) == [longest]
    with raises(BackendError, "malformed_response") as caught:
        list(FrameSplitter().feed(encode_frames([Frame("stdout", bytes(LONGEST + 1))])[:8]))
    assert str(caught.value).endswith(": 0100000000100001")


def test_split_frames_engine_error() -> None:
    """A frame of channel 3 is an error with the engine's message."""
    message = b"Error grabbing logs: unexpected EOF\n"
    with raises(BackendError, "agent_error") as caught:
        split_pieces(
            FrameSplitter(), [SAMPLE, b"\3\0\0\0", len(message).to_bytes(4, "big"), message]
        )
    assert str(caught.value) == "container engine: Error grabbing logs: unexpected EOF"


def test_split_lines() -> None:
    """A complete line is returned at once, the last one at the end of the log."""
    lines = LineSplitter()
    assert list(lines.feed(b"one\r\ntw")) == [Frame(CONSOLE, b"one\r\n")]
    assert list(lines.feed(b"o\r\n\r\nthree")) == [
        *(Frame(CONSOLE, b"two\r\n"), Frame(CONSOLE, b"\r\n")),
    ]
    assert list(lines.end()) == [Frame(CONSOLE, b"three")]
    assert list(lines.end()) == []


def test_split_lines_without_newline_is_bounded() -> None:
    """Text without newlines is returned in parts of bounded size."""
    lines = LineSplitter()
    found = [frame for _ in range(100) for frame in lines.feed(b"\x1b[2J" * 1000)]
    assert [len(frame.data) for frame in found] == [68000] * 5
    assert len(b"".join(frame.data for frame in [*found, *lines.end()])) == 400_000


PIECES = st.lists(st.binary(max_size=40), max_size=20)


@given(st.lists(st.tuples(st.sampled_from(CHANNELS), st.binary(min_size=1))), st.data())
def test_split_frames_round_trip(frames: list[Any], data: Any) -> None:
    """Any frames, in pieces of any size, are restored."""
    log = encode_frames(Frame(*frame) for frame in frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(log)), max_size=10)))
    pieces = [log[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(log)], strict=True)]
    assert split_pieces(FrameSplitter(), pieces) == [Frame(*frame) for frame in frames]


@given(PIECES)
def test_split_lines_keeps_all_bytes(pieces: list[bytes]) -> None:
    """All bytes are returned in order, at most one line at a time."""
    found = split_pieces(LineSplitter(), pieces)
    assert b"".join(frame.data for frame in found) == b"".join(pieces)
    assert all(b"\n" not in frame.data[:-1] for frame in found)
