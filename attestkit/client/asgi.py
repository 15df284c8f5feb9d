"""ASGI middleware that serves a TEE's evidence to attestkit's clients; see `client.document`.

    from attestkit.client.asgi import Attested

    tee = attestkit.open()
    app = Attested(app, tee, tls="/etc/tls/leaf.pem")

It serves `/.well-known/attestkit` with evidence about the keys of the TLS certificates; every other
request, WebSocket and lifespan event goes to the app unchanged. TLS must end in this TEE, and the
private keys must not leave it. The app must not attest report data that a client chooses, as by
`tee.attest(report_data=...)` with bytes of a request: a client could thereby obtain evidence that
names its own key in place of the server's.
"""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import Future
from typing import Any, TypeAlias, final

from attestkit.client.document import PATH
from attestkit.client.document_endpoint import DocumentEndpoint

__all__ = ["Attested"]

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
AsgiApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]


@final
class Attested(DocumentEndpoint[AsgiApp]):
    """ASGI app that answers `/.well-known/attestkit` with evidence, and passes all else to an app.

    Args:
        app: The application that gets all other requests.
        tee: The TEE, such as `attestkit.open()`; the caller keeps it open.
        tls: Path of the server's certificate in PEM, which is read again when it changes; or a list
            of paths, keys (SubjectPublicKeyInfo in DER) and SHA-256 hashes of keys. List a new key
            before the server uses it.
        name: Name of the server for people, which the answer states; it is not verified. None: no
            name.
        hpke: X25519 public key of the server, 32 bytes, that the evidence names as well; clients
            find it in `Proof.keys`. None: no such key.
        signing: At most 16 public keys that verify the server's signatures, and that the evidence
            names as well; clients find them in `Proof.keys`.

    Raises:
        UsageError: If an argument is not valid, or a file of `tls` cannot be read.
        FormatError: If a file of `tls` is malformed.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request for `/.well-known/attestkit`; pass all else to the app (ASGI 3)."""
        if scope["type"] != "http" or _path(scope) != PATH:
            await self._app(scope, receive, send)
            return
        found = self._answer(scope["method"], scope["query_string"])
        reply = await asyncio.wrap_future(found) if isinstance(found, Future) else found
        headers = [(name.encode(), value.encode()) for name, value in reply.headers]
        start = {"type": "http.response.start", "status": reply.status, "headers": headers}
        await send(start)
        await send({"type": "http.response.body", "body": reply.body})


def _path(scope: Scope) -> str:
    """Return the request's path without `root_path`, the mount prefix that ASGI servers add."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))
