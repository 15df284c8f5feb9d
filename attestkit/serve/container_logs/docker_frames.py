"""What an engine sends of a log, in the parts that a client is shown one by one.

Without a terminal a container has up to three channels, and the engine sends frames: one byte for
the channel, three of zero, the length in four with the highest first, and so many bytes. A longer
line than 16 KiB comes in several. With a terminal there is one channel, and nothing around it.
"""

from collections.abc import Iterator
from struct import Struct
from typing import Final, NamedTuple, Protocol

from attestkit._sanitize import one_line
from attestkit.errors import BackendError

__all__ = ["CHANNELS", "CONSOLE", "LONGEST", "Frame", "Frames", "Lines", "Splitter"]

CHANNELS: Final = ("stdin", "stdout", "stderr")
CONSOLE: Final = "console"

LONGEST: Final = 1024 * 1024
"""Bytes of a frame; the engine itself cuts lines at 16 KiB, so a longer one is none."""

_LONGEST_LINE: Final = 64 * 1024  # of a terminal, before it is shown in parts
_ENGINE: Final = 3  # the channel on which the engine tells that it failed
_SHOWN: Final = 200  # characters of what the engine says
_HEADER: Final = Struct(">B3sI")


class Frame(NamedTuple):
    """Some bytes that a container wrote to one channel."""

    channel: str
    data: bytes


class Splitter(Protocol):
    """Takes a log as it comes, and gives it back in parts."""

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Return what is complete with these bytes; BackendError where they are no log."""
        ...

    def end(self) -> Iterator[Frame]:
        """Return what is left; BackendError where the log was cut."""
        ...


class Frames:
    """Splits the log of a container without a terminal."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._wanted = _HEADER.size  # bytes, before there is anything to return

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Return the frames that are complete with these bytes, without those that are empty.

        Raises:
            BackendError: They are no frames, or the engine tells that it failed.
        """
        self._rest += data
        if len(self._rest) < self._wanted:
            return
        whole, at, end = bytes(self._rest), 0, 0
        while (begin := at + _HEADER.size) <= len(whole):
            kind, zeros, length = _HEADER.unpack_from(whole, at)
            if kind > _ENGINE or zeros != b"\0\0\0" or length > LONGEST:
                header = whole[at:begin].hex()
                raise BackendError(f"the container engine sends no frames: {header}")
            end = begin + length
            if end > len(whole):
                break
            at = end
            if kind == _ENGINE:
                text = one_line(whole[begin:end].decode("utf-8", "replace"), _SHOWN)
                raise BackendError(f"the container engine failed: {text}")
            if length:
                yield Frame(CHANNELS[kind], whole[begin:end])
        self._wanted = end - at if begin <= len(whole) else _HEADER.size
        self._rest = bytearray(whole[at:])

    def end(self) -> Iterator[Frame]:
        """Return nothing.

        Raises:
            BackendError: The last frame is not complete.
        """
        if self._rest:
            raise BackendError("the log broke off in the middle of a frame")
        return iter(())


class Lines:
    """Splits the log of a container with a terminal, into lines."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Return the lines that are complete with these bytes, or too long to wait for."""
        whole, at = self._rest + data, 0
        while (end := whole.find(b"\n", at) + 1) > 0:
            yield Frame(CONSOLE, whole[at:end])
            at = end
        self._rest = whole[at:]
        if len(self._rest) > _LONGEST_LINE:
            yield from self.end()

    def end(self) -> Iterator[Frame]:
        """Return the line that never ended."""
        rest, self._rest = self._rest, b""
        if rest:
            yield Frame(CONSOLE, rest)
