"""Bodies of requests, read within the limits of one body and of all bodies of a listener."""

from typing import Final

from attestkit.errors import UsageError
from attestkit.serve.config.limits import LimitError
from attestkit.serve.http.asgi import Receive

UNCOUNTED: Final = 64 * 1024
"""Bytes of each body that do not count towards the limit of all bodies."""


class DisconnectedError(Exception):
    """The client disconnected before its request was complete."""


class TooLargeError(UsageError):
    """The body exceeds the limit (413); the rest is not read, so the connection is closed."""

    def __init__(self) -> None:
        super().__init__("failed to read data: payload too large", reason="too_large")


class TooManyBodiesError(LimitError):
    """All bodies together exceed the limit (503); the rest is not read."""

    def __init__(self) -> None:
        super().__init__("request body: too many large requests; retry later", reason="bodies")


class BodyReader:
    """Reads the bodies of all requests of one listener.

    Args:
        limit: Limit of the bytes of all bodies that are being received, without the first 64 KiB of
            each.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.held: int = 0  # bytes that count towards the limit

    async def read(self, receive: Receive, declared: int, most: int) -> bytes:
        """Return the body of a request.

        Args:
            receive: ASGI receive function.
            declared: Content-Length; 0 without one.
            most: Limit of this body in bytes.

        Raises:
            TooLargeError: If the body exceeds `most`.
            TooManyBodiesError: If all bodies together exceed their limit.
            DisconnectedError: If the client disconnects.
        """
        if declared > most:
            raise TooLargeError
        parts: list[bytes] = []
        size = held = 0
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise DisconnectedError
                part: bytes = message.get("body", b"")
                size += len(part)
                if size > most:
                    raise TooLargeError
                if not message.get("more_body", False):
                    return b"".join((*parts, part)) if parts else part
                parts.append(part)
                more = max(0, size - UNCOUNTED) - held
                held += more
                self.held += more
                if self.held > self._limit:
                    raise TooManyBodiesError
        finally:
            self.held -= held
