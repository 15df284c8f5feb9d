"""Applications of services over TLS on loopback, for tests of whole endpoints."""

import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestkit._crypto.hashes import sha256
from attestkit.serve.event_loop_thread import EventLoopThread
from attestkit.testing.tls_listener import ADDRESS, LoopbackCa, TlsListener


class Request(NamedTuple):
    """A request that an application got."""

    method: str
    path: str
    query: str
    headers: dict[str, str]  # names in lower case
    body: bytes


class Answer(NamedTuple):
    """Answer of an application."""

    body: bytes
    headers: dict[str, str] = {}  # noqa: RUF012 - never changed
    status: int = 200


class ServedApp:
    """An application that a function answers for; it keeps the requests."""

    def __init__(self) -> None:
        self.answer: Callable[[Request], Answer] = lambda _: Answer(b"", status=404)
        self.requests: list[Request] = []
        self.url = self.ca = ""
        self.spki_sha256 = b""
        self.port = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        headers = {name.decode().lower(): value.decode() for name, value in scope["headers"]}
        query = scope["query_string"].decode()
        request = Request(scope["method"], scope["path"], query, headers, body)
        self.requests.append(request)
        found = self.answer(request)
        raw = [(name.lower().encode(), value.encode()) for name, value in found.headers.items()]
        await send({"type": "http.response.start", "status": found.status, "headers": raw})
        await send({"type": "http.response.body", "body": found.body})

    @property
    def paths(self) -> list[str]:
        """Paths of the requests, in their order."""
        return [one.path for one in self.requests]


@contextmanager
def served(folder: Path, count: int = 1) -> Iterator[list[ServedApp]]:
    """Serve applications, on ports of their own, with one key and certificate."""
    authority = LoopbackCa()
    issued = authority.issue()
    file = folder / "leaf.pem"
    file.write_text("".join([issued.key_pem, *issued.certificate_chain]))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    leaf = x509.load_pem_x509_certificate(issued.certificate_chain[0].encode())
    spki = leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    thread = EventLoopThread()
    listeners: list[TlsListener] = []
    apps = [ServedApp() for _ in range(count)]
    try:
        for app in apps:
            listeners.append(TlsListener(app, context, thread))
            app.port = listeners[-1].port
            app.url, app.ca = f"https://{ADDRESS}:{app.port}", authority.pem
            app.spki_sha256 = sha256(spki)
        yield apps
    finally:
        for listener in listeners:
            listener.close()
        thread.close()
