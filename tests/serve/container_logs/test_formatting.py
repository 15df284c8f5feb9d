"""The eight forms of a log, and text that was cut where no character or sequence ends."""

import base64
import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from attestkit.serve.container_logs import formatting as form_module
from attestkit.serve.container_logs.docker_frames import Frame
from attestkit.serve.container_logs.formatting import Form

if TYPE_CHECKING:
    import re

RED = b"\x1b[31mred\x1b[0m\n"
ODD = "naïve €\n".encode() + b"\xff\x00\x80\n"


def written(*frames: Frame, text: bool = False, bare: bool = False, ansi: bool = False) -> bytes:
    """Return what a client gets of a whole log."""
    form = Form(text=text, bare=bare, ansi=ansi)
    return b"".join([*map(form.write, frames), form.end()])


def bare(*pieces: bytes) -> str:
    """Return bare text of frames of one channel."""
    frames = [Frame("stdout", piece) for piece in pieces]
    return written(*frames, text=True, bare=True).decode()


@pytest.mark.parametrize("ansi", [False, True])
@pytest.mark.parametrize(
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
def test_the_eight_forms(*, ansi: bool, text: bool, is_bare: bool, expected: bytes) -> None:
    """Each as documented; escape sequences go from bare text only."""
    if text and is_bare and ansi:
        expected = RED + b"\0\1"
    frames = Frame("stdout", RED), Frame("stderr", b"\0\1")
    assert written(*frames, text=text, bare=is_bare, ansi=ansi) == expected


def test_wrapped_messages_are_json() -> None:
    """Any bytes come through as base64, and as text with replacement characters."""
    frames = [Frame("console", ODD), Frame("stdin", b'"\\/\x7f\n')]
    lines = [json.loads(line) for line in written(*frames).splitlines()]
    assert [(line["channel"], base64.b64decode(line["message"])) for line in lines] == frames
    lines = [json.loads(line) for line in written(*frames, text=True).splitlines()]
    assert [tuple(line.values()) for line in lines] == [
        ("console", "naïve €\n�\0�\n"),
        ("stdin", '"\\/\x7f\n'),
    ]
    assert all(list(line) == ["channel", "message"] for line in lines)


@pytest.mark.parametrize("at", range(1, len(ODD)))
def test_a_character_cut_in_two(at: int) -> None:
    """A long line comes in parts, and its characters are still what they were."""
    assert bare(ODD[:at], ODD[at:]) == ODD.decode("utf-8", "replace")


def test_each_channel_has_its_own_characters() -> None:
    """What another channel wrote in between does not spoil a character."""
    frames = [
        *(Frame("stdout", b"\xe2\x82"), Frame("stderr", b"\xe2"), Frame("stdout", b"\xac\n")),
        Frame("stderr", b"\x82\xac\n"),
    ]
    assert written(*frames, text=True, bare=True).decode() == "€\n€\n"
    lines = written(*frames, text=True).splitlines()
    assert [json.loads(line)["message"] for line in lines] == ["€\n", "€\n"]


def test_a_character_that_never_ends() -> None:
    """The end of the log is the end of waiting."""
    assert bare(b"a\xe2\x82") == "a�"
    assert written(Frame("stdout", b"\xe2"), text=True) == (
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


@pytest.mark.parametrize("sequence", SEQUENCES.values(), ids=SEQUENCES)
def test_escape_sequences_are_removed(sequence: str) -> None:
    """Whole, or cut anywhere, also at the end of the log."""
    log = f"before{sequence}after\n".encode()
    assert bare(log) == "beforeafter\n"
    for at in range(1, len(log)):
        assert bare(log[:at], log[at:]) == "beforeafter\n"
    for size in range(1, len(sequence)):
        assert "\x1b" not in bare(b"before", sequence.encode()[:size])


def test_escapes_without_a_sequence() -> None:
    """An escape character by itself would join with what follows, so it goes too."""
    assert bare(b"a\x1b\n[31mb\n") == "a\n[31mb\n"
    assert bare("a\x1bäb\x1b".encode()) == "aäb"


def test_a_sequence_ends_with_its_line() -> None:
    """A title that was never finished does not hold back the next lines."""
    form = Form(text=True, bare=True, ansi=False)
    assert form.write(Frame("stdout", b"a\x1b]0;title\n")) == b"a0;title\n"
    assert form.write(Frame("stdout", b"next\n")) == b"next\n"


def test_a_sequence_without_an_end() -> None:
    """What goes on and on is not kept forever."""
    form = Form(text=True, bare=True, ansi=False)
    pieces = [form.write(Frame("stdout", b"\x1b]0;" + bytes([65]) * 16384)) for _ in range(8)]
    assert sum(map(len, pieces)) > 0
    assert all(len(channel._begun) <= 65536 for channel in form._channels.values())


@pytest.mark.parametrize("begun", ["\x1b]0;", "\x1b[1;", "\x1b[ ", "\x1b( "])
def test_a_long_sequence_is_not_searched_for_each_piece(
    begun: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container may write a byte at a time: only the first ones are looked at more than once."""
    begins, searched = form_module._BEGUN, list[int]()

    class Counting:
        def search(self, text: str) -> "re.Match[str] | None":
            searched.append(len(text))
            return begins.search(text)

    monkeypatch.setattr(form_module, "_BEGUN", Counting())
    form = Form(text=True, bare=True, ansi=False)
    rest = "1" if "1" in begun or "0" in begun else "/"
    for piece in [begun.encode(), *[rest.encode()] * 1000]:
        assert form.write(Frame("stdout", piece)) == b""
    assert sum(searched) < 20
    assert form.end() == bare(begun.encode() + rest.encode() * 1000).encode()


@pytest.mark.parametrize("at", range(1, 13))
def test_controls_of_8_bits_are_sequences_too(at: int) -> None:
    """U+009B begins what ESC [ does, to terminals that know it; also where a frame cuts it."""
    data = "a\u009b31mred\u009d0;title\u009c\u0085!\n".encode()
    assert bare(data[:at], data[at:]) == "ared!\n"
    kept = written(Frame("stdout", data), text=True, bare=True, ansi=True)
    assert kept == data


@pytest.mark.parametrize("code", range(0x80, 0xA0))
def test_no_control_of_8_bits_is_left(code: int) -> None:
    """Whatever it begins, and does not end."""
    assert chr(code) not in bare(f"a{chr(code)}b\n".encode())


def test_an_error_is_a_line() -> None:
    """An object on a line of its own, wherever the log broke off."""
    for text, is_bare, data, between in (
        *((True, True, b"whole\n", b""), (True, True, b"half", b"\n"), (True, True, b"", b"")),
        *((True, False, b"half", b""), (False, True, b"whole\n", b"\n"), (False, False, b"x", b"")),
    ):
        form = Form(text=text, bare=is_bare, ansi=False)
        before = form.write(Frame("stdout", data)) if data else b""
        error = form.error('broke "off"')
        assert error == between + b'{"error":"broke \\"off\\""}\n'
        assert json.loads((before + error).splitlines()[-1]) == {"error": 'broke "off"'}


PART = st.sampled_from(
    ["\x1b", "[", "]", "(", ";", "3", "m", " ", "\x07", "\\", "é", "x", "P", "$"]
)


@given(st.lists(PART).map("".join), st.lists(st.integers(0, 40), max_size=6))
@example("\x1b(\x1b\x1b", [3])
def test_cuts_do_not_show(text: str, cuts: list[int]) -> None:
    """A line in parts is the same as a whole one, and keeps no escape character."""
    log = text.encode()
    ends = sorted({min(cut, len(log)) for cut in cuts} | {len(log)})
    pieces = [log[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
    assert bare(*pieces) == bare(log)
    assert "\x1b" not in bare(log)


@given(st.lists(st.binary(min_size=1)), st.tuples(st.booleans(), st.booleans(), st.booleans()))
def test_any_bytes_can_be_written(pieces: list[bytes], options: tuple[bool, bool, bool]) -> None:
    """Whatever a container writes, a client gets UTF-8, and JSON where it is wrapped."""
    text, is_bare, ansi = options
    frames = [Frame("stdout", piece) for piece in pieces]
    log = written(*frames, text=text, bare=is_bare, ansi=ansi).decode("utf-8")
    if not is_bare:
        messages = [json.loads(line)["message"] for line in log.split("\n")[:-1]]
        whole = b"".join(pieces)
        if text:
            assert "".join(messages) == whole.decode("utf-8", "replace")
        else:
            assert b"".join(map(base64.b64decode, messages)) == whole
