"""Views: coroutine functions that answer GET requests outside of services.

A response is complete or a stream of pieces. Pieces are produced at the client's speed, and end
when it disconnects. Errors are raised before the response.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

Header: TypeAlias = tuple[bytes, bytes]
Pieces: TypeAlias = AsyncGenerator[bytes, None]


ENDLESS: Final = "attestkit.endless"
"""Key of the ASGI message http.response.start: whether the response is endless."""


class ViewRequest(NamedTuple):
    """Request to a view."""

    name: str = ""  # last path segment, decoded, of a named view
    query: bytes = b""  # raw query string
    client: str = ""  # IP address of the client; empty on a unix socket


class ViewResponse(NamedTuple):
    """Response of a view; its pieces are closed when the client disconnects.

    An `endless` response continues until then, or until the server shuts down.
    """

    content_type: bytes
    body: bytes | Pieces
    headers: Sequence[Header] = ()
    endless: bool = False


class View(NamedTuple):
    """Handler of GET requests for a path; `show` raises an AttestKitError for an error response.

    If `named` is true, the path is a prefix: the view of /logs/ serves /logs/<name>, and
    `ViewRequest.name` is that last segment.
    """

    show: Callable[[Any, ViewRequest], Awaitable[ViewResponse]]  # first: context of the application
    named: bool = False
