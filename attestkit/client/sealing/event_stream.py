"""Server-sent events (WHATWG HTML, 9.2), as services stream their answers.

Lines end with LF or CRLF. Comments and unknown fields are dropped.
"""

from typing import Final, NamedTuple

from attestkit.errors import ServiceError

MAX_EVENT: Final = 16 << 20
"""Maximum size of an event in bytes."""

_FIELDS: Final = ("event", "id")


class StreamEvent(NamedTuple):
    """One server-sent event."""

    fields: tuple[tuple[str, str], ...]  # `event` and `id`, as far as it has them
    data: str | None  # lines of `data`, joined by LF; None if it has none

    def encode(self) -> bytes:
        """Return the event in UTF-8; each line of its data becomes a line `data: ...`."""
        lines = [f"{name}: {value}\n" for name, value in self.fields]
        if self.data is not None:
            lines += [f"data: {line}\n" for line in self.data.split("\n")]
        return "".join((*lines, "\n")).encode()


class EventSplitter:
    """Splits bytes, as they arrive, into events."""

    def __init__(self) -> None:
        self._line = bytearray()  # begun
        self._lines: list[bytes] = []  # of the event that has begun
        self._size = 0  # bytes of both

    def feed(self, data: bytes) -> list[StreamEvent]:
        """Return the events that the next bytes of the stream complete.

        Args:
            data: The next bytes, cut anywhere; those of an incomplete event are kept.

        Raises:
            ServiceError: If an event is over 16 MiB, or not UTF-8 (reason `sealing`).
        """
        found: list[StreamEvent] = []
        *ended, rest = data.split(b"\n")
        for part in ended:
            self._grow(len(part) + 1)
            self._line += part
            line = bytes(self._line).removesuffix(b"\r")
            self._line.clear()
            if line:
                self._lines.append(line)
                continue
            if self._lines and (event := _decode(self._lines)) is not None:
                found.append(event)
            self._lines, self._size = [], 0
        self._grow(len(rest))
        self._line += rest
        return found

    def finish(self) -> None:
        """Check that the last event is complete.

        Raises:
            ServiceError: If the stream ends inside of an event (reason `sealing`).
        """
        if self._lines or self._line.strip():
            message = "stream: ends inside an event; the answer is incomplete"
            raise ServiceError(message, reason="sealing")

    def _grow(self, size: int) -> None:
        self._size += size
        if self._size > MAX_EVENT:
            message = f"stream: an event is over {MAX_EVENT} bytes"
            raise ServiceError(message, reason="sealing")


def _decode(lines: list[bytes]) -> StreamEvent | None:
    """Return the event that consists of `lines`, without their line ends.

    None if they are only comments and unknown fields.
    """
    try:
        texts = [line.decode() for line in lines]
    except UnicodeDecodeError as error:
        raise ServiceError("stream: events must be UTF-8", reason="sealing") from error
    pairs = []
    for text in texts:
        name, _, value = text.partition(":")
        pairs.append((name, value.removeprefix(" ")))
    fields = tuple([(name, value) for name, value in pairs if name in _FIELDS])
    data = [value for name, value in pairs if name == "data"]
    if not fields and not data:
        return None
    return StreamEvent(fields, "\n".join(data) if data else None)


_MARKS: Final = (b"data: [DONE]", b"data:[DONE]")  # chat completions and completions
_FINAL: Final = frozenset(
    {
        b"response.completed",  # responses
        b"response.failed",
        b"response.incomplete",
        b"message_stop",  # messages
        b"error",
    }
)
_LONGEST: Final = 64  # bytes of a line of which any may be a mark


class EventStreamEnd:
    """Detects whether a stream of events has reached the end that its API defines.

    At the end, the last event has `data: [DONE]` or the name of a final event.
    """

    def __init__(self) -> None:
        self._line = bytearray()  # the beginning of the line that is being read
        self._last = False  # whether the event that was read last is a last one
        self._between = True  # whether the next line begins an event

    @property
    def complete(self) -> bool:
        """Whether the stream may end here."""
        return self._is_last(bytes(self._line))

    def feed(self, data: bytes) -> None:
        """Take `data`, the next bytes of the stream, cut anywhere."""
        *lines, rest = data.replace(b"\r", b"").split(b"\n")
        for part in lines:
            self._keep(part)
            line = bytes(self._line)
            self._last = self._is_last(line)
            if not line.startswith(b":"):
                self._between = not line
            self._line.clear()
        self._keep(rest)

    def _keep(self, part: bytes) -> None:
        self._line += part[: _LONGEST - len(self._line)]

    def _is_last(self, line: bytes) -> bool:
        """Return whether the current event is a final one, now that `line` is part of it."""
        if not line or line.startswith(b":"):
            return self._last
        name, _, value = line.partition(b":")
        final = line in _MARKS or (name == b"event" and value.strip(b" ") in _FINAL)
        return final or (self._last and not self._between)
