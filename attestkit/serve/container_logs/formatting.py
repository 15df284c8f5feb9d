"""Formatting of container logs: text or base64, bare or JSON, with or without ANSI escapes."""

import codecs
import re
from binascii import b2a_base64
from collections.abc import Callable
from typing import Final

import msgspec

_LONGEST_BEGUN: Final = 64 * 1024  # characters of an incomplete escape sequence
_ESCAPE: Final = "\x1b"
# Start of an escape sequence (ECMA-48) at the end of a frame, but not at the end of a line.
_BEGUN: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*|[\]PX^_][^\x07\x1b\n]*\x1b?|[ -/]+\x1b?)?\Z")
# Designation of a character set whose final character is the ESC of what looks like a sequence.
_CHARACTER_SET: Final = re.compile(r"\x1b[()]\x1b")
_C1: Final = re.compile("[\x80-\x9f]")
_C1_AS_ESCAPES: Final = {code: _ESCAPE + chr(code - 0x40) for code in range(0x80, 0xA0)}
_STRING: Final = re.compile(r"[^\x07\x1b\n]*")
_PARAMETERS: Final = re.compile(r"[0-?]*")
_INTERMEDIATES: Final = re.compile(r"[ -/]*")

_json = msgspec.json.Encoder().encode


class LogFormatter:
    """Formatter of log frames, each of which is output of a container on one channel.

    The engine splits lines at 16 KiB, possibly inside a character or an escape sequence. With
    `text`, such an incomplete end of a frame is kept until the next frame of the same channel.

    Args:
        text: Write messages as text, with U+FFFD for invalid UTF-8; otherwise in base64.
        bare: Write only the messages; otherwise a line `{"channel":"...","message":"..."}` for
            each.
        ansi: Keep escape sequences, which are otherwise removed if `text` and `bare` are set.
    """

    def __init__(self, *, text: bool, bare: bool, ansi: bool) -> None:
        self._text = text
        self._bare = bare
        self._strip = _stripper() if text and bare and not ansi else None
        self._channels: dict[str, _Decoder] = {}
        self._in_line = False

    def write(self, channel: str, data: bytes) -> bytes:
        """Return the payload `data` of a frame of `channel`, formatted; b"" if nothing is complete.

        With `text`, an incomplete UTF-8 character at the end of `data` is left out, and so is an
        incomplete escape sequence if these are removed: the channel's next frame continues it, and
        `end` returns what is left.
        """
        if not self._text:
            return self._message(channel, b2a_base64(data, newline=False))
        decoder = self._channels.get(channel)
        if decoder is None:
            decoder = self._channels[channel] = _Decoder(self._strip)
        return self._message(channel, self._encode(decoder.feed(data)))

    def end(self) -> bytes:
        """Return the incomplete ends of all channels, formatted; call it after the last frame."""
        return b"".join(
            self._message(name, self._encode(channel.feed(b"", final=True)))
            for name, channel in self._channels.items()
        )

    def error(self, text: str) -> bytes:
        """Return the line `{"error":TEXT}`, after a line end if the output is inside a line."""
        return b'%s{"error":%s}\n' % (b"\n" if self._in_line else b"", _json(text))

    def _encode(self, text: str) -> bytes:
        if self._bare or not text:
            return text.encode("utf-8")
        return _json(text)[1:-1]

    def _message(self, channel: str, message: bytes) -> bytes:
        if not message:
            return b""
        if self._bare:
            self._in_line = not message.endswith(b"\n")
            return message
        return b'{"channel":"%s","message":"%s"}\n' % (channel.encode("ascii"), message)


class _Decoder:
    """Incremental text decoder of one channel.

    `strip` removes escape sequences from a text; None keeps them.
    """

    __slots__ = ("_begun", "_decode", "_strip")

    def __init__(self, strip: Callable[[str], str] | None) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._strip = strip
        self._begun = ""

    def feed(self, data: bytes, *, final: bool = False) -> str:
        """Return `data` as text up to an incomplete character or escape sequence at its end.

        The next call continues that end; with `final`, return it too.
        """
        text = self._decode(data, final)
        if self._strip is None:
            return text
        if _C1.search(text):  # ECMA-48 defines an equivalent escape sequence for each
            text = text.translate(_C1_AS_ESCAPES)
        if self._begun:
            whole = self._begun + text
            if not final and len(whole) <= _LONGEST_BEGUN and _goes_on(self._begun, text):
                self._begun = whole
                return ""
            text, self._begun = whole, ""
        if _ESCAPE not in text:
            return text
        ends = (found.end() for found in _CHARACTER_SET.finditer(text))
        begun = None if final else _BEGUN.search(text, max(ends, default=0))
        if begun is not None and len(text) - begun.start() <= _LONGEST_BEGUN:
            text, self._begun = text[: begun.start()], begun[0]
        return self._strip(text)


def _goes_on(begun: str, text: str) -> bool:
    """Return whether `text` only continues the incomplete escape sequence `begun`.

    The text may arrive byte by byte; searching the whole sequence each time would be quadratic.
    """
    last = begun[-1]
    if last == _ESCAPE:
        return False
    rest = _INTERMEDIATES if " " <= last <= "/" else _PARAMETERS
    return (_STRING if begun[1] in "]PX^_" else rest).fullmatch(text) is not None


def _stripper() -> Callable[[str], str]:
    from wcwidth import strip_sequences  # lazy: only for bare text

    # Unknown sequences keep their escape character, which could combine with later text.
    return lambda text: strip_sequences(text).replace(_ESCAPE, "")
