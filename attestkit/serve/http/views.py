"""What GET shows besides methods: a view is a coroutine from a request to an answer.

An answer is whole, or comes piece by piece; a client that reads slowly slows the pieces down, and
one that goes away ends them. What is wrong with a request is raised before the answer.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

__all__ = ["ENDLESS", "Answer", "Asked", "Header", "Pieces", "View"]

Header: TypeAlias = tuple[bytes, bytes]
Pieces: TypeAlias = AsyncGenerator[bytes, None]


ENDLESS: Final = "attestkit.endless"
"""The member of a response's start, as ASGI has it, that says whether the answer is endless."""


class Asked(NamedTuple):
    """What a view is asked for."""

    name: str = ""  # of a named view: the last segment of the path, decoded
    query: bytes = b""  # as it came
    client: str = ""  # the address of who asks; nothing on a unix socket


class Answer(NamedTuple):
    """What a view shows. The pieces are closed when the client is gone.

    An `endless` answer goes on until then; it is ended in good order when the server stops.
    """

    content_type: bytes
    body: bytes | Pieces
    headers: Sequence[Header] = ()
    endless: bool = False


class View(NamedTuple):
    """Something to look at with GET; raises an AttestKitError where there is nothing to show.

    One that is `named` stands for all paths of one more segment than its own, as in /logs/<name>.
    """

    show: Callable[[Any, Asked], Awaitable[Answer]]  # first what the application works on
    named: bool = False
