"""The eight output formats of a container log, with characters and escape sequences split."""

import base64
import json
from itertools import starmap
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from attestkit.serve.container_logs import formatting as form_module
from attestkit.serve.container_logs.formatting import LogFormatter
from attestkit.serve.container_logs.view import Frame
from tests.runner.cases import every_case

if TYPE_CHECKING:
    import re

RED = b"\x1b[31mred\x1b[0m\n"
ODD = "naïve €\n".encode() + b"\xff\x00\x80\n"


def format_log(*frames: Frame, text: bool = False, bare: bool = False, ansi: bool = False) -> bytes:
    """Return a complete log as sent to the client."""
    formatter = LogFormatter(text=text, bare=bare, ansi=ansi)
    return b"".join([*starmap(formatter.write, frames), formatter.end()])


def format_bare(*pieces: bytes) -> str:
    """Return the bare text of frames of one channel."""
    frames = [Frame("stdout", piece) for piece in pieces]
    return format_log(*frames, text=True, bare=True).decode()


@every_case("ansi", [False, True])
@every_case(
    ("text", "is_bare", "expected"),
    [
        (
            *(False, False),
            b"""{"channel":"stdout","message":"G1szMW1yZWQbWzBtCg=="}
{"channel":"stderr","message":"AAE="}
""",
        ),
        (
            *(True, False),
            rb"""{"channel":"stdout","message":"\u001b[31mred\u001b[0m\n"}
{"channel":"stderr","message":"\u0000\u0001"}
""",
        ),
        (False, True, b"G1szMW1yZWQbWzBtCg==AAE="),
        (True, True, b"red\n\0\1"),
    ],
)
def test_format_all_combinations(*, ansi: bool, text: bool, is_bare: bool, expected: bytes) -> None:
    """Each format is as documented; escape sequences are removed from bare text only."""
    if text and is_bare and ansi:
        expected = RED + b"\0\1"
    frames = Frame("stdout", RED), Frame("stderr", b"\0\1")
    assert format_log(*frames, text=text, bare=is_bare, ansi=ansi) == expected


def test_format_wrapped_messages_are_json() -> None:
    """Wrapped messages are base64, or text with replacement characters."""
    frames = [Frame("console", ODD), Frame("stdin", b'"\\/\x7f\n')]
    lines = [json.loads(line) for line in format_log(*frames).splitlines()]
    assert [(line["channel"], base64.b64decode(line["message"])) for line in lines] == frames
    lines = [json.loads(line) for line in format_log(*frames, text=True).splitlines()]
    assert [tuple(line.values()) for line in lines] == [
        ("console", "naïve €\n�\0�\n"),
        ("stdin", '"\\/\x7f\n'),
    ]
    assert all(list(line) == ["channel", "message"] for line in lines)


@every_case("at", range(1, len(ODD)))
def test_format_split_character(at: int) -> None:
    """A character split between two frames is decoded."""
    assert format_bare(ODD[:at], ODD[at:]) == ODD.decode("utf-8", "replace")


def test_format_channels_decode_separately() -> None:
    """A frame of another channel does not disturb a split character."""
    frames = [
        *(Frame("stdout", b"\xe2\x82"), Frame("stderr", b"\xe2"), Frame("stdout", b"\xac\n")),
        Frame("stderr", b"\x82\xac\n"),
    ]
    assert format_log(*frames, text=True, bare=True).decode() == "€\n€\n"
    lines = format_log(*frames, text=True).splitlines()
    assert [json.loads(line)["message"] for line in lines] == ["€\n", "€\n"]


def test_format_incomplete_character_at_end() -> None:
    """An incomplete character at the end of the log is replaced."""
    assert format_bare(b"a\xe2\x82") == "a�"
    assert format_log(Frame("stdout", b"\xe2"), text=True) == (
        '{"channel":"stdout","message":"�"}\n'.encode()
    )


SEQUENCES = {
    "colour": "\x1b[1;38;5;208m",
    "colour with colons": "\x1b[38:2::1:2:3m",
    "cursor": "\x1b[?25l",
    "erase": "\x1b[2K",
    "soft reset": "\x1b[!p",
    "title": "\x1b]0;a title\x07",
    "title ended by ST": "\x1b]2;a title\x1b\\",
    "link": "\x1b]8;id=1;https://example.com/?a=[b]\x1b\\",
    "device control": "\x1bP1$r0m\x1b\\",
    "application": "\x1b_Gf=100;AAAA\x1b\\",
    "privacy": "\x1b^note\x1b\\",
    "character set": "\x1b(B",
    "announcer": "\x1b G",
    "keypad": "\x1b=",
    "index": "\x1bD",
    "reset": "\x1bc",
}


@every_case("sequence", SEQUENCES.values(), ids=SEQUENCES)
def test_format_removes_escape_sequences(sequence: str) -> None:
    """A sequence is removed, wherever it is split or truncated."""
    log = f"before{sequence}after\n".encode()
    assert format_bare(log) == "beforeafter\n"
    for at in range(1, len(log)):
        assert format_bare(log[:at], log[at:]) == "beforeafter\n"
    for size in range(1, len(sequence)):
        assert "\x1b" not in format_bare(b"before", sequence.encode()[:size])


def test_format_removes_lone_escape() -> None:
    """An escape character without a sequence is removed."""
    assert format_bare(b"a\x1b\n[31mb\n") == "a\n[31mb\n"
    assert format_bare("a\x1bäb\x1b".encode()) == "aäb"


def test_format_unterminated_sequence_ends_with_line() -> None:
    """An unterminated sequence does not delay the next line."""
    formatter = LogFormatter(text=True, bare=True, ansi=False)
    assert formatter.write("stdout", b"a\x1b]0;title\n") == b"a0;title\n"
    assert formatter.write("stdout", b"next\n") == b"next\n"


def test_format_endless_sequence_is_bounded() -> None:
    """The buffer for an unterminated sequence is bounded."""
    formatter = LogFormatter(text=True, bare=True, ansi=False)
    pieces = [formatter.write("stdout", b"\x1b]0;" + bytes([65]) * 16384) for _ in range(8)]
    assert sum(map(len, pieces)) > 0
    assert all(len(channel._begun) <= 65536 for channel in formatter._channels.values())


@pytest.mark.parametrize("begun", ["\x1b]0;", "\x1b[1;", "\x1b[ ", "\x1b( "])
def test_format_long_sequence_takes_linear_time(
    begun: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the first pieces of a sequence are searched more than once."""
    begins, searched = form_module._BEGUN, list[int]()

    class Counting:
        def search(self, text: str, start: int) -> "re.Match[str] | None":
            searched.append(len(text))
            return begins.search(text, start)

    monkeypatch.setattr(form_module, "_BEGUN", Counting())
    formatter = LogFormatter(text=True, bare=True, ansi=False)
    rest = "1" if "1" in begun or "0" in begun else "/"
    for piece in [begun.encode(), *[rest.encode()] * 1000]:
        assert formatter.write("stdout", piece) == b""
    assert sum(searched) < 20
    assert formatter.end() == format_bare(begun.encode() + rest.encode() * 1000).encode()


@every_case("at", range(1, 13))
def test_format_removes_c1_sequences(at: int) -> None:
    """U+009B is equivalent to ESC [; it is removed even if split."""
    data = "a\u009b31mred\u009d0;title\u009c\u0085!\n".encode()
    assert format_bare(data[:at], data[at:]) == "ared!\n"
    kept = format_log(Frame("stdout", data), text=True, bare=True, ansi=True)
    assert kept == data


@every_case("code", range(0x80, 0xA0))
def test_format_removes_c1_controls(code: int) -> None:
    """No C1 control character remains in bare text."""
    assert chr(code) not in format_bare(f"a{chr(code)}b\n".encode())


def test_format_error_is_a_json_line() -> None:
    """An error is a JSON object on its own line, also after an unterminated line."""
    for text, is_bare, data, between in (
        *((True, True, b"whole\n", b""), (True, True, b"half", b"\n"), (True, True, b"", b"")),
        *((True, False, b"half", b""), (False, True, b"whole\n", b"\n"), (False, False, b"x", b"")),
    ):
        formatter = LogFormatter(text=text, bare=is_bare, ansi=False)
        before = formatter.write("stdout", data) if data else b""
        error = formatter.error('broke "off"')
        assert error == between + b'{"error":"broke \\"off\\""}\n'
        assert json.loads((before + error).splitlines()[-1]) == {"error": 'broke "off"'}


PART = st.sampled_from(
    ["\x1b", "[", "]", "(", ";", "3", "m", " ", "\x07", "\\", "é", "x", "P", "$"]
)


@given(st.lists(PART).map("".join), st.lists(st.integers(0, 40), max_size=6))
@example("\x1b(\x1b\x1b", [3])
@example("\x1b(\x1b[\x1b", [4])
def test_format_any_split_gives_same_text(text: str, cuts: list[int]) -> None:
    """Splitting a line does not change the output, which has no escape character."""
    log = text.encode()
    ends = sorted({min(cut, len(log)) for cut in cuts} | {len(log)})
    pieces = [log[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
    assert format_bare(*pieces) == format_bare(log)
    assert "\x1b" not in format_bare(log)
