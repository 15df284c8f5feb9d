"""Pre-serialised JSON response templates, and long texts that they share."""

from binascii import hexlify
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Final, Generic, NamedTuple, TypeVar

from attestkit.serve.rpc.json_codec import PreparedResponse, encode_members, escape

M = TypeVar("M", bound=NamedTuple)
_SHORT: Final = 4096  # bytes that are copied for each response

SMALL: Final = 64 * 1024
"""Bytes up to which pieces are joined: copying them is cheaper than sending them separately."""


class EscapedText(NamedTuple):
    """A text in pieces, with each piece's JSON; long pieces are shared instead of copied."""

    pieces: tuple[str, ...] = ()
    json: tuple[bytes, ...] = ()  # of each piece, without the quotes around the whole text

    @classmethod
    def of(cls, text: str) -> "EscapedText":
        """Return `text` as a text of one piece."""
        return cls((text,), (escape(text),))

    def between(self, before: str, after: str) -> "EscapedText":
        """Return the text that consists of `before`, this text and `after`."""
        return EscapedText(
            (before, *self.pieces, after), (escape(before), *self.json, escape(after))
        )

    def start(self, size: int) -> str:
        """Return the first `size` characters."""
        found: list[str] = []
        for piece in self.pieces:
            if size <= 0:
                break
            found.append(piece[:size])
            size -= len(piece)
        return "".join(found)

    @property
    def length(self) -> int:
        """Number of characters."""
        return sum(map(len, self.pieces))

    def __str__(self) -> str:
        return "".join(self.pieces)


class ResponseTemplate(Generic[M]):
    """Template of responses that differ only in the first bytes of some fields.

    Args:
        message: The common values; for a varying field, the common end of its values.
        varying: Names of the varying fields, in message order; their type is bytes.
        texts: Fields with long texts, which are empty in `message`.
    """

    def __init__(self, message: M, varying: Sequence[str] = (), **texts: EscapedText) -> None:
        self._message = message
        self._varying = varying
        self._texts = texts
        runs: list[list[bytes]] = [[]]
        for name, start, value in encode_members(message):
            if name in varying:
                runs[-1] += (start, value[:1])  # the quote before the hex
                runs.append([value[1:]])
            elif name in texts:
                runs[-1] += (start, b'"', *texts[name].json, b'"')
            else:
                runs[-1] += (start, value)
        runs[0][0] = b"{" + runs[0][0][1:]  # replace the comma
        runs[-1].append(b"}")
        first, *rest = map(_joined, runs)
        # Joined with the first varying value, and with what follows each, if it is short.
        self._before = first.pop() if rest else b""
        self._first = first
        self._rest = [(run.pop(0) if len(run[0]) <= _SHORT else b"", run) for run in rest]

    def render(self, *beginnings: bytes) -> PreparedResponse[M]:
        """Return the response, given the first bytes of each varying field, in message order."""
        json, before = self._first.copy(), self._before
        for beginning, (behind, run) in zip(beginnings, self._rest, strict=True):
            json.append(before + hexlify(beginning) + behind)
            json += run
            before = b""
        return PreparedResponse(json, partial(self._message_of, beginnings))

    def _message_of(self, beginnings: Sequence[bytes]) -> M:
        values: dict[str, Any] = {name: str(text) for name, text in self._texts.items()}
        for name, beginning in zip(self._varying, beginnings, strict=True):
            values[name] = beginning + getattr(self._message, name)
        return self._message._replace(**values)


def _joined(pieces: Iterable[bytes]) -> list[bytes]:
    """Return the pieces with small neighbours joined; at least one piece."""
    joined = [b""]
    for piece in pieces:
        if len(joined[-1]) + len(piece) <= SMALL:
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined
