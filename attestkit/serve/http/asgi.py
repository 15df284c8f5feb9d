"""The types of an ASGI application, and of what may refuse a request before it."""

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

__all__ = ["App", "DirectApp", "Guard", "Receive", "Scope", "Send"]

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
Guard: TypeAlias = Callable[[Scope], None]
Call = TypeVar("Call")


@runtime_checkable
class DirectApp(Protocol[Call]):
    """An application that also answers without ASGI's messages, where the answer need not wait."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, as ASGI has it."""
        ...

    new_id: Callable[[], bytes]
    """Returns the id of the next request."""

    def direct(self, target: bytes, content_type: bytes | None) -> Call | None:
        """Return the call that a target leads to, None if its answer might wait."""
        ...

    def blocks(self, call: Call) -> bool:
        """Tell whether the answer would wait, as things are now."""
        ...

    def respond(
        self, found: Call, target: bytes, content_type: bytes, body: bytes | None
    ) -> tuple[int, bytes, Sequence[bytes], int, bytes]:
        """Answer a request to what `direct` returned; `body` is None for GET."""
        ...
