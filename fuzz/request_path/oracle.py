"""Which requests a client's bytes are, read at once by the parser alone.

What the server reads, in whatever pieces it comes and with what it changes in heads, must be these.
"""

import contextlib
import re
from typing import Final, NamedTuple

import httptools

__all__ = ["Request", "requests_in"]

_UPGRADE: Final = re.compile(rb"upgrade:", re.IGNORECASE)
_LETTERS: Final = b"upgradeinoUPGRADEINO"
_PLAIN: Final = bytes.maketrans(_LETTERS, b"*" * len(_LETTERS))


class Request(NamedTuple):
    """A whole request."""

    method: bytes
    target: bytes
    body: bytes

    def plain(self) -> "Request":
        """Return it without the letters that differ where one has a wish and the other has not.

        The body may end in the middle of such a word.
        """
        return self._replace(body=self.body.translate(_PLAIN))


class _Reader:
    """Keeps what the parser tells."""

    def __init__(self) -> None:
        self.parser: httptools.HttpRequestParser = httptools.HttpRequestParser(self)
        self.found: list[Request] = []
        self.target = self.body = b""

    def on_message_begin(self) -> None:
        self.target = self.body = b""

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        found = Request(self.parser.get_method(), self.target, self.body)
        self.found.append(found.plain())


def requests_in(sent: bytes) -> list[Request]:
    """Return the whole requests, up to what is none; see `Request.plain`."""
    reader = _Reader()
    with contextlib.suppress(httptools.HttpParserError, httptools.HttpParserUpgrade):
        reader.parser.feed_data(_UPGRADE.sub(b"ignored:", sent))
    return reader.found
