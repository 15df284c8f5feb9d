"""Splitting of a container log into frames or lines (Docker's attach stream format).

Without a terminal the log consists of frames: a header of one byte for the channel, three zero
bytes and the length (32 bits, big-endian), then the data. Lines over 16 KiB are split into several
frames. With a terminal it is the raw output on a single channel.
"""

from collections.abc import Iterator
from struct import Struct
from typing import Final, NamedTuple, TypeAlias

from attestkit._sanitize import one_line
from attestkit.errors import BackendError

CHANNELS: Final = ("stdin", "stdout", "stderr")
CONSOLE: Final = "console"

LONGEST: Final = 1024 * 1024
"""Limit of a frame in bytes; the engine itself splits lines at 16 KiB."""

_LONGEST_LINE: Final = 64 * 1024  # of a terminal, before it is split
_ENGINE: Final = 3  # channel of the engine's own errors
_SHOWN: Final = 200  # characters of the engine's error
_HEADER: Final = Struct(">B3sI")


class Frame(NamedTuple):
    """Output of a container on one channel."""

    channel: str
    data: bytes


class FrameSplitter:
    """Splitter for containers without a terminal."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._wanted = _HEADER.size  # bytes until the next frame is complete

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Return the non-empty frames that these bytes complete.

        Raises:
            BackendError: If a frame is malformed, or the engine reports an error.
        """
        self._rest += data
        if len(self._rest) < self._wanted:
            return
        whole, at, end = bytes(self._rest), 0, 0
        while (begin := at + _HEADER.size) <= len(whole):
            kind, zeros, length = _HEADER.unpack_from(whole, at)
            if kind > _ENGINE or zeros != b"\0\0\0" or length > LONGEST:
                header = whole[at:begin].hex()
                problem = f"container log: invalid frame header: {header}"
                raise BackendError(problem, reason="malformed_response")
            end = begin + length
            if end > len(whole):
                break
            at = end
            if kind == _ENGINE:
                text = one_line(whole[begin:end].decode("utf-8", "replace"), _SHOWN)
                raise BackendError(f"container engine: {text}", reason="agent_error")
            if length:
                yield Frame(CHANNELS[kind], whole[begin:end])
        self._wanted = end - at if begin <= len(whole) else _HEADER.size
        self._rest = bytearray(whole[at:])

    def end(self) -> Iterator[Frame]:
        """Return nothing.

        Raises:
            BackendError: If the last frame is incomplete.
        """
        if self._rest:
            raise BackendError("container log: ends inside a frame", reason="truncated")
        return iter(())


class LineSplitter:
    """Splitter for containers with a terminal, into lines."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Return the lines that these bytes complete, and an incomplete line over the limit."""
        whole, at = self._rest + data, 0
        while (end := whole.find(b"\n", at) + 1) > 0:
            yield Frame(CONSOLE, whole[at:end])
            at = end
        self._rest = whole[at:]
        if len(self._rest) > _LONGEST_LINE:
            yield from self.end()

    def end(self) -> Iterator[Frame]:
        """Return the incomplete last line."""
        rest, self._rest = self._rest, b""
        if rest:
            yield Frame(CONSOLE, rest)


Splitter: TypeAlias = FrameSplitter | LineSplitter
