"""Types of ASGI applications, and of guards, which may refuse a request before the application."""

import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
Guard: TypeAlias = Callable[[Scope], None]
Call = TypeVar("Call")


class Access(Protocol):
    """Check of requests by their route."""

    async def check(self, request: Scope, route: str | None) -> None:
        """Raise an error to refuse a request.

        Args:
            request: The ASGI scope.
            route: Name of the route that answers the request; None for an unknown path.
        """


@runtime_checkable
class DirectApp(Protocol[Call]):
    """An ASGI application with a second, synchronous interface for responses that do not block."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request (ASGI); cancelled when the connection is lost."""

    new_id: Callable[[], bytes]
    """Function that returns the id of the next request."""

    def direct(self, target: bytes, content_type: bytes | None) -> Call | None:
        """Return the method of a request target; None if its response may block.

        Args:
            target: Path and query of the request.
            content_type: Content type of the body; None without a body.
        """

    def blocks(self, call: Call) -> bool:
        """Return whether the response of a method that `direct` returned would block at present."""
        ...

    def respond(
        self, found: Call, target: bytes, content_type: bytes, body: bytes | None
    ) -> tuple[int, bytes, Sequence[bytes], int, bytes]:
        """Answer a request to a method that `direct` returned.

        Args:
            found: The method, from `direct`.
            target: Path and query of the request.
            content_type: Value of Content-Type; empty without a body, or without that header.
            body: Body of a POST; None for a GET.

        Returns:
            The HTTP status, the encoded header section, the body in pieces, its length in bytes,
            and the request id.
        """
        ...


def is_unix_peer(scope: Scope) -> bool:
    """Return whether a request came over a unix socket: client and server have no port (ASGI).

    A TCP or vsock peer that resets its connection has no address any more, but the server has.
    """
    server = scope.get("server")
    return scope.get("client") is None and (server is None or server[1] is None)


def security_headers(server: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """Return headers of every response: Server, with the value `server`, and those for browsers."""
    return (
        (b"server", server),
        (b"x-content-type-options", b"nosniff"),
        (b"x-frame-options", b"SAMEORIGIN"),
        (b"permissions-policy", b"interest-cohort=()"),
    )


async def send_response(
    scope: Scope, send: Send, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes
) -> None:
    """Send a complete response; omit the body in response to HEAD.

    `headers` are pairs of a lower-case name and a value; Content-Length is added.
    """
    headers = [*headers, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    content = b"" if scope["method"] == "HEAD" else body
    await send({"type": "http.response.body", "body": content})


def encode_error(text: str) -> bytes:
    """Return the JSON `{"error": text}`, indented by two spaces."""
    return json.dumps({"error": text}, indent=2).encode("ascii")
