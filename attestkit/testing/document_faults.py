"""ASGI application of a test server that records requests, and injects faults into documents.

Attributes of `DocumentFaults` select the deviation; the next request has it.
"""

import json
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from attestkit._formats.canonical_json import canonical_json
from attestkit.client.asgi import AsgiApp, Message, Receive, Scope, Send
from attestkit.client.document import PATH


@dataclass
class ReceivedRequest:
    """A request that reached the app."""

    method: str  # "WEBSOCKET" of a WebSocket
    path: str
    query: str
    headers: tuple[tuple[str, str], ...] = field(repr=False)  # names in lower case
    body_size: int = 0  # bytes that the app has read


class DocumentFaults:
    """An application in front of another one.

    Args:
        app: The application.
        attest: Returns an application with the document; None: without a document.
    """

    def __init__(self, app: AsgiApp, attest: Callable[[AsgiApp], AsgiApp] | None) -> None:
        self.requests: list[ReceivedRequest] = []
        self.documents: int = 0
        self._app = app
        self._genuine = None if attest is None else attest(self.record)
        self.restore()

    def restore(self) -> None:
        """Answer as it should be."""
        self.source: AsgiApp | None = self._genuine  # makes the documents
        self.nonce: bytes | None = None  # replaces that of requests
        self.hangs = False
        self.closes = False
        self.change: Callable[[bytes], bytes] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer for the document, or record the request and call the app."""
        if scope["type"] != "http" or scope["path"] != PATH or self.source is None:
            await self.record(scope, receive, send)
            return
        self.documents += 1
        if self.hangs:
            while (await receive())["type"] != "http.disconnect":
                pass
            return
        if self.nonce is not None:
            scope = {**scope, "query_string": b"nonce=" + self.nonce.hex().encode()}
        await self.source(scope, receive, self._changing(send))

    async def record(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Record a request, and call the app."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = [(_text(name), _text(value)) for name, value in scope["headers"]]
        method = scope.get("method", "WEBSOCKET")
        query = _text(scope["query_string"])
        request = ReceivedRequest(method, scope["path"], query, tuple(headers))
        self.requests.append(request)

        async def receive_counted() -> Message:
            message = await receive()
            request.body_size += len(message.get("body") or b"")
            return message

        await self._app(scope, receive_counted, send)

    def _changing(self, send: Send) -> Send:
        """Return a function that sends a changed answer."""
        parts: list[Message] = []

        async def send_changed(message: Message) -> None:
            parts.append(message)
            if message["type"] != "http.response.body":
                return
            start, body = parts[0], message["body"]
            if self.change is not None and start["status"] == 200:
                body = self.change(body)
            headers = [item for item in start["headers"] if item[0] != b"content-length"]
            headers.append((b"content-length", str(len(body)).encode()))
            if self.closes:
                headers.append((b"connection", b"close"))
            await send({**start, "headers": headers})
            await send({**message, "body": body})

        return send_changed


def rename_key(body: bytes, spki_sha256: bytes) -> bytes:
    """Return a document whose statement names another TLS key, which its evidence is not about."""
    fields: dict[str, Any] = json.loads(body)
    statement = json.loads(b64decode(fields["statement"]))
    statement["keys"]["tls"] = [spki_sha256.hex()]
    fields["statement"] = b64encode(canonical_json(statement)).decode()
    return json.dumps(fields).encode()


def _text(data: bytes) -> str:
    return data.decode("latin-1")


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Return the body of each request, and the messages of a WebSocket."""
    if scope["type"] == "http":
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})
    elif scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            content = {key: value for key, value in message.items() if key in ("bytes", "text")}
            await send({"type": "websocket.send", **content})
