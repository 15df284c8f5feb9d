"""A client that calls an ASGI application in this process."""

import asyncio
import json
from collections.abc import Iterable
from typing import Any, NamedTuple, cast

from attestkit.serve.http.asgi import App, Scope

JSON_TYPE = "application/json"
BINARY_TYPE = "application/octet-stream"


class Response(NamedTuple):
    """A response of the application."""

    status: int
    headers: dict[str, str]  # without the request's id, which differs each time
    body: bytes
    request_id: str = ""

    def json(self) -> Any:
        """Return the body as JSON."""
        return json.loads(self.body)

    def error(self) -> str:
        """Return the text of an error; check its documented format."""
        found = self.json()
        assert list(found) == ["error"]
        assert self.body == json.dumps(found, indent=2).encode()
        assert self.headers["content-type"] == JSON_TYPE
        text: str = found["error"]
        return text


class Client:
    """A client of one application that checks the invariants of every response."""

    def __init__(self, app: App, loop: asyncio.AbstractEventLoop) -> None:
        self.app = app
        self.loop = loop
        self.read = 0  # bytes of the last request that the application read
        self.peer: tuple[str, int] | None = None  # address of the client; None on a unix socket

    def get(self, target: str, **headers: str) -> Response:
        """GET a path, with its query."""
        return self.request("GET", target, headers=headers)

    def post(self, path: str, message: object = None) -> Response:
        """POST a message as JSON."""
        body = json.dumps({} if message is None else message).encode()
        return self.request("POST", path, body, {"content-type": JSON_TYPE})

    def request(
        self,
        verb: str,
        target: str,
        body: bytes | Iterable[bytes] = b"",
        headers: dict[str, str] | None = None,
    ) -> Response:
        """Send a request; a body in several parts has no Content-Length."""
        return self.loop.run_until_complete(self.send(verb, target, body, headers))

    async def send(
        self,
        verb: str,
        target: str,
        body: bytes | Iterable[bytes] = b"",
        headers: dict[str, str] | None = None,
    ) -> Response:
        """Send a request within the running loop."""
        path, _, query = target.partition("?")
        sent = {"host": "localhost", **(headers or {})}
        if isinstance(body, bytes):
            sent.setdefault("content-length", str(len(body)))
        scope = {
            "type": "http",
            "method": verb,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [(n.replace("_", "-").encode(), v.encode()) for n, v in sent.items()],
            "client": self.peer,
        }
        parts = [body] if isinstance(body, bytes) else body
        return await self._call(scope, parts)

    def disconnect(self, path: str) -> list[Any]:
        """Disconnect in the middle of a request; return the messages that are sent."""
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "raw_path": path.encode(), "headers": []}
        call = self.app({**scope, "query_string": b""}, receive, send)
        self.loop.run_until_complete(cast("Any", call))
        return sent

    async def _call(self, scope: Scope, parts: Iterable[bytes]) -> Response:
        self.read = 0
        coming = iter(parts)
        messages: list[Any] = []

        async def receive() -> dict[str, Any]:
            part = next(coming, None)
            self.read += len(part or b"")
            return {"type": "http.request", "body": part or b"", "more_body": part is not None}

        async def send(message: Any) -> None:
            messages.append(message)

        await self.app(scope, receive, send)
        start, *pieces = messages
        assert [piece["type"] for piece in pieces] == ["http.response.body"] * len(pieces)
        assert [piece.get("more_body", False) for piece in pieces][-1:] == [False]
        assert all(piece["more_body"] for piece in pieces[:-1])
        headers = {name.decode(): value.decode() for name, value in start["headers"]}
        assert len(headers) == len(start["headers"])
        request_id = headers.pop("x-request-id", "")
        body = b"".join(piece["body"] for piece in pieces)
        if scope["method"] == "HEAD":
            assert body == b""
        else:
            assert headers["content-length"] == str(len(body))
        return Response(start["status"], headers, body, request_id)
