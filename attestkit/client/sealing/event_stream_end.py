"""The end of a stream of server-sent events, which no encryption of single chunks protects."""

from typing import Final

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
    """Finds out whether a stream of events has reached the end that its API defines.

    It has if `data: [DONE]`, or the name of a last event, is in its last event.
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
        """Take some bytes of the stream, cut anywhere."""
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
        """Return whether the event is a last one after this line, a comment or empty perhaps."""
        if not line or line.startswith(b":"):
            return self._last
        name, _, value = line.partition(b":")
        final = line in _MARKS or (name == b"event" and value.strip(b" ") in _FINAL)
        return final or (self._last and not self._between)
