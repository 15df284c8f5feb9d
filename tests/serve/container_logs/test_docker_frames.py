"""A log comes in pieces that know nothing of frames or lines; what they show is always the same."""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.errors import BackendError
from attestkit.serve.container_logs.docker_frames import (
    CHANNELS,
    CONSOLE,
    LONGEST,
    Frame,
    Frames,
    Lines,
    Splitter,
)

SAMPLE = bytes.fromhex(
    "01000000 00000005 6f7574310a"  # "out1\n", as dockerd 26.1 sends it
    "02000000 00000005 657272310a"
    "01000000 00000004 6e6f6e6c"
)
SHOWN = [Frame("stdout", b"out1\n"), Frame("stderr", b"err1\n"), Frame("stdout", b"nonl")]


def framed(frames: Iterable[Frame]) -> bytes:
    """Return frames as an engine sends them."""
    return b"".join(
        bytes([CHANNELS.index(channel), 0, 0, 0]) + len(data).to_bytes(4, "big") + data
        for channel, data in frames
    )


def split(splitter: Splitter, pieces: Iterable[bytes]) -> list[Frame]:
    """Return everything that these pieces show."""
    shown = [frame for piece in pieces for frame in splitter.feed(piece)]
    return [*shown, *splitter.end()]


def test_a_real_sample() -> None:
    """Two channels, and a last line that never ended."""
    assert framed(SHOWN) == SAMPLE
    assert split(Frames(), [SAMPLE]) == SHOWN


@pytest.mark.parametrize("size", range(1, len(SAMPLE)))
def test_pieces_of_any_size(size: int) -> None:
    """Where the pieces are cut does not show."""
    pieces = [SAMPLE[at : at + size] for at in range(0, len(SAMPLE), size)]
    assert split(Frames(), pieces) == SHOWN


@pytest.mark.parametrize("size", range(len(SAMPLE)))
def test_a_log_that_was_cut(size: int) -> None:
    """What was whole is shown; the rest is an error, unless the cut was between two frames."""
    whole = [0, 13, 26].count(size)
    splitter = Frames()
    shown = list(splitter.feed(SAMPLE[:size]))
    assert shown == SHOWN[: sum(size >= end for end in (13, 26))]
    if whole:
        assert list(splitter.end()) == []
    else:
        with pytest.raises(BackendError, match="broke off in the middle of a frame"):
            splitter.end()


def test_stdin_and_empty_frames() -> None:
    """There is a third channel, and a frame of nothing is nothing."""
    frames = [Frame("stdin", b"in"), Frame("stdout", b""), Frame("stderr", b"err")]
    assert split(Frames(), [framed(frames)]) == [frames[0], frames[2]]


@pytest.mark.parametrize(
    "header",
    [
        "0400000000000001",
        "ff00000000000001",
        "0100000100000001",
        "0101000000000001",
        "3137350a6f757431",
    ],
)
def test_what_is_no_frame(header: str) -> None:
    """A channel that nobody knows, or other bytes than zeros: what came before is shown still."""
    frames = Frames().feed(framed(SHOWN) + bytes.fromhex(header) + b"x" * 100)
    assert [next(frames) for _ in SHOWN] == SHOWN
    with pytest.raises(BackendError, match=f"sends no frames: {header}"):
        next(frames)


def test_a_frame_that_is_too_long() -> None:
    """The longest is taken, one byte more is refused before any of it has come."""
    longest = Frame("stdout", bytes(LONGEST))
    assert split(Frames(), [framed([longest])]) == [longest]
    with pytest.raises(BackendError, match="sends no frames: 0100000000100001"):
        list(Frames().feed(framed([Frame("stdout", bytes(LONGEST + 1))])[:8]))


def test_the_engine_says_that_it_failed() -> None:
    """A frame of its own channel is an error, with the engine's words."""
    words = b"Error grabbing logs: unexpected EOF\n"
    with pytest.raises(BackendError, match=r"engine failed: Error grabbing logs: unexpected EOF$"):
        split(Frames(), [SAMPLE, b"\3\0\0\0", len(words).to_bytes(4, "big"), words])


def test_lines_of_a_terminal() -> None:
    """A line is shown when it is complete, the last one when there is no more."""
    lines = Lines()
    assert list(lines.feed(b"one\r\ntw")) == [Frame(CONSOLE, b"one\r\n")]
    assert list(lines.feed(b"o\r\n\r\nthree")) == [
        *(Frame(CONSOLE, b"two\r\n"), Frame(CONSOLE, b"\r\n")),
    ]
    assert list(lines.end()) == [Frame(CONSOLE, b"three")]
    assert list(lines.end()) == []


def test_a_terminal_without_lines() -> None:
    """What never ends is not kept forever."""
    lines = Lines()
    shown = [frame for _ in range(100) for frame in lines.feed(b"\x1b[2J" * 1000)]
    assert [len(frame.data) for frame in shown] == [68000] * 5
    assert len(b"".join(frame.data for frame in [*shown, *lines.end()])) == 400_000


PIECES = st.lists(st.binary(max_size=40), max_size=20)


@given(st.lists(st.tuples(st.sampled_from(CHANNELS), st.binary(min_size=1))), st.data())
def test_frames_come_back(frames: list[Any], data: Any) -> None:
    """Any frames, in pieces of any sizes."""
    log = framed(Frame(*frame) for frame in frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(log)), max_size=10)))
    pieces = [log[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(log)], strict=True)]
    assert split(Frames(), pieces) == [Frame(*frame) for frame in frames]


@given(PIECES)
def test_lines_lose_nothing(pieces: list[bytes]) -> None:
    """All bytes come back, in order, none of them held once its line is complete."""
    shown = split(Lines(), pieces)
    assert b"".join(frame.data for frame in shown) == b"".join(pieces)
    assert all(b"\n" not in frame.data[:-1] for frame in shown)


@given(PIECES)
def test_any_bytes_raise_only_our_error(pieces: list[bytes]) -> None:
    """Whatever an engine sends, there are frames or a BackendError."""
    with suppress(BackendError):
        split(Frames(), pieces)
