"""Answers from parts that are there before: what many of them have in common is encoded once."""

from binascii import hexlify
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Final, Generic, NamedTuple, TypeVar

from attestkit.serve.rpc.json_codec import Prepared, encode_members, escaped

__all__ = ["SMALL", "Form", "LongText"]

M = TypeVar("M", bound=NamedTuple)
_SHORT: Final = 4096  # bytes that are copied with each answer

SMALL: Final = 64 * 1024
"""Bytes up to which it is cheaper to copy pieces into one than to send them as two."""


class LongText(NamedTuple):
    """A text in pieces, with their JSON; pieces are shared where copying them would be dear."""

    pieces: tuple[str, ...] = ()
    json: tuple[bytes, ...] = ()  # of each piece, without the quotes around the whole

    @classmethod
    def of(cls, text: str) -> "LongText":
        """Return a text in one piece."""
        return cls((text,), (escaped(text),))

    def between(self, before: str, after: str) -> "LongText":
        """Return this text with others around it."""
        return LongText(
            (before, *self.pieces, after), (escaped(before), *self.json, escaped(after))
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
        """How many characters it has."""
        return sum(map(len, self.pieces))

    def __str__(self) -> str:
        return "".join(self.pieces)


class Form(Generic[M]):
    """Answers of one kind that differ in the beginnings of a few byte strings alone.

    Args:
        message: What they have in common; of a field that varies, what each of them ends with.
        varying: The fields that vary, in their order.
        texts: Fields with long texts, which are empty in `message`.
    """

    def __init__(self, message: M, varying: Sequence[str] = (), **texts: LongText) -> None:
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
        runs[0][0] = b"{" + runs[0][0][1:]  # where the others have a comma
        runs[-1].append(b"}")
        first, *rest = map(_joined, runs)
        # What stands right before the first that varies, and what right behind each: in one piece.
        self._before = first.pop() if rest else b""
        self._first = first
        self._rest = [(run.pop(0) if len(run[0]) <= _SHORT else b"", run) for run in rest]

    def fill(self, *beginnings: bytes) -> Prepared[M]:
        """Return the answer in which the fields that vary begin so."""
        json, before = self._first.copy(), self._before
        for beginning, (behind, run) in zip(beginnings, self._rest, strict=True):
            json.append(before + hexlify(beginning) + behind)
            json += run
            before = b""
        return Prepared(json, partial(self._message_of, beginnings))

    def _message_of(self, beginnings: Sequence[bytes]) -> M:
        values: dict[str, Any] = {name: str(text) for name, text in self._texts.items()}
        for name, beginning in zip(self._varying, beginnings, strict=True):
            values[name] = beginning + getattr(self._message, name)
        return self._message._replace(**values)


def _joined(pieces: Iterable[bytes]) -> list[bytes]:
    """Return the pieces with small neighbours joined, at least one."""
    joined = [b""]
    for piece in pieces:
        if len(joined[-1]) + len(piece) <= SMALL:
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined
