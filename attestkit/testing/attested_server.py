"""A server for tests of clients: attested TLS on loopback, with simulated attacks and faults.

server = AttestedServer(app)  # an ASGI application; by default one that returns request bodies
with attestkit.connect(server.url, policy=server.policy, server_ca=server.ca) as endpoint: ...
assert [request.path for request in server.requests] == ["/"]
"""

import json
import ssl
from base64 import b64decode, b64encode
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Final, final

from attestkit._crypto.hashes import sha256
from attestkit._crypto.pem import encode_pem
from attestkit._crypto.x509.app_certificates import read_certificate
from attestkit._formats.canonical_json import canonical_json
from attestkit._system.atomic_file import replace_file
from attestkit.client.asgi import AsgiApp, Attested, Message, Receive, Scope, Send
from attestkit.client.document import PATH
from attestkit.errors import UsageError
from attestkit.ra_tls.issuance import Issued, load_issued
from attestkit.testing.tee import SharedResources, SimulatedTee, own_resources
from attestkit.testing.tls_listener import ADDRESS, LoopbackCa, TlsListener, new_key

if TYPE_CHECKING:
    from pathlib import Path

    from attestkit.client.document_endpoint import TlsSource
    from attestkit.verifier import AttestationResult, Verifier


@dataclass
class ReceivedRequest:
    """A request that reached the app; `path` has no query, `query` no question mark."""

    method: str  # "WEBSOCKET" of a WebSocket
    path: str
    query: str
    headers: tuple[tuple[str, str], ...] = field(repr=False)  # names in lower case
    body_size: int = 0  # bytes that the app has read


class DocumentFaults:
    """ASGI application that records requests for an app, and alters the attestation document.

    The document is the answer to `GET /.well-known/attestkit`: a statement of the server's keys,
    and evidence over it.

    Args:
        app: The application that gets all other requests.
        attest: Wraps an application, so that it serves the document too; None: no document.
    """

    def __init__(self, app: AsgiApp, attest: Callable[[AsgiApp], AsgiApp] | None) -> None:
        self.requests: list[ReceivedRequest] = []
        self.documents: int = 0
        self._app = app
        self._genuine = None if attest is None else attest(self.record)
        self.restore()

    def restore(self) -> None:
        """Serve genuine documents again: undo all alterations and other faults."""
        self.source: AsgiApp | None = self._genuine  # makes the documents
        self.nonce: bytes | None = None  # replaces the nonce of requests for the document
        self.hangs = False
        self.closes = False
        self.change: Callable[[bytes], bytes] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the document, or record the request and call the app."""
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
        """Call the app, and add HTTP requests and WebSockets, but no other scope, to `requests`."""
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
        """Return a `send` that applies the alterations to the response with the document."""
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
    """Return a copy of a document (JSON) whose statement names another TLS key than its evidence.

    Args:
        body: JSON of a genuine document.
        spki_sha256: SHA-256 of the key's SubjectPublicKeyInfo, 32 bytes.
    """
    fields: dict[str, Any] = json.loads(body)
    statement = json.loads(b64decode(fields["statement"]))
    statement["keys"]["tls"] = [spki_sha256.hex()]
    fields["statement"] = b64encode(canonical_json(statement)).decode()
    return json.dumps(fields).encode()


def _text(data: bytes) -> str:
    return data.decode("latin-1")


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """ASGI application: return the body of each request, and the messages of a WebSocket."""
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


_EARLIER_KEYS: Final = 4
# Options of a SimulatedTee without which it makes the evidence that the policy pins.
_DEVIATIONS: Final = frozenset({"scenario", "faults", "state_dir", "resources"})


@final
class AttestedServer:
    """An HTTPS server in a simulated TEE, with evidence for clients; closed on exit as a context.

    The evidence is in a document that it serves at `/.well-known/attestkit`, or with `ra_tls` in
    its certificate. It listens once it is created. Methods that change its behaviour return at
    once; connections that are open stay open. Those that are about the document, `stale`, `hang`,
    `close_after_document` and `change_document`, raise UsageError with `ra_tls`.

    Args:
        app: ASGI application; None: one that returns the body of each request, and the messages of
            a WebSocket.
        ra_tls: Whether the server is attested by an RA-TLS certificate instead of a document.
        name: Name of the server in its document; None: no name.
        tee: Simulated TEE of the server, which the caller closes; None: a new one.
        resources: Folders, environment variables and server thread; None: new ones.
        options: Options of `SimulatedTee`, such as `scenario="tcb-OutOfDate"`; not with `tee`.

    Attributes:
        tee: The simulated TEE.
        ca: CA certificate of the server in PEM.
        url: Base URL, with an IP address; `localhost` is also in the certificates.
        requests: Requests that reached the app, which those for the document do not.

    Raises:
        UsageError: If an option is not valid, `tee` and `options` are both given, uvicorn is not
            installed, or the app refuses to start.
        AttestKitError: Also the other errors of `SimulatedTee`.
    """

    def __init__(
        self,
        app: "AsgiApp | None" = None,
        *,
        ra_tls: bool = False,
        name: str | None = None,
        tee: SimulatedTee | None = None,
        resources: SharedResources | None = None,
        **options: object,
    ) -> None:
        if tee is not None and options:
            message = f"tee: options are for a new TEE; leave out {', '.join(sorted(options))}"
            raise UsageError(message, reason="conflict")
        given: dict[str, Any] = options
        self._name, self._twin_options = name, None if tee is not None else given
        with ExitStack() as stack:
            self._resources = resources or own_resources(stack)
            self.tee: SimulatedTee = tee or stack.enter_context(
                SimulatedTee(resources=self._resources, **given)
            )
            self._ca, self._ra_tls = LoopbackCa(), ra_tls
            self._earlier: list[bytes] = []  # keys of the last renewals, which connections may have
            self.ca: str = self._ca.pem
            self._file: Path = self._resources.make_folder() / "leaf.pem"
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.set_alpn_protocols(["http/1.1"])
            self._use(self._issue(), listed=True)
            self._faults = DocumentFaults(app or echo, None if ra_tls else self._attested)
            self._listener = TlsListener(self._faults, self._context, self._resources.loop.thread())
            stack.callback(self._listener.close)
            self._stack = stack.pop_all()
        self.url: str = f"https://{ADDRESS}:{self.port}"

    # -- what the server is --------------------------------------------------------------------

    @property
    def port(self) -> int:
        """The TCP port."""
        return self._listener.port

    @property
    def requests(self) -> list[ReceivedRequest]:
        """The requests that reached the app, in order; a copy."""
        return list(self._faults.requests)

    @property
    def documents(self) -> int:
        """The number of requests for the document, `/.well-known/attestkit`; 0 with `ra_tls`."""
        return self._faults.documents

    @property
    def received(self) -> list[bytes]:
        """The decrypted bytes of each connection, at most 1 MiB each; empty before a request."""
        return [bytes(log) for log in list(self._listener.received)]

    @cached_property
    def policy(self) -> "Verifier":
        """A verifier of this TEE's evidence, whose policy pins app, image and configuration.

        It accepts only up-to-date platforms, and so refuses this server if its option `scenario`
        is a different state of the platform.
        """
        from attestkit.verifier import AppraisalPolicy  # lazy: not all tests verify

        if self._twin_options is None:
            result = _verified(self.tee)
        else:  # the same app without the scenario, whose evidence may not verify
            options = {k: v for k, v in self._twin_options.items() if k not in _DEVIATIONS}
            options.setdefault("platform", "tdx" if self.tee.attester.has_quotes else "snp")
            with SimulatedTee(resources=self._resources, **options) as twin:
                result = _verified(twin)
        pinned = AppraisalPolicy.from_evidence(result)
        accepted = AppraisalPolicy.default().accepted_statuses
        return self.tee.verifier(policy=pinned.replace(accepted_statuses=accepted))

    @property
    def spki_sha256(self) -> bytes:
        """The SHA-256, 32 bytes, of the key of new connections (SubjectPublicKeyInfo in DER)."""
        return self._spki_sha256

    # -- what happens to it --------------------------------------------------------------------

    def rotate(self) -> None:
        """Renew key and certificate as an operator does: the document names both keys."""
        self._use(self._issue(), listed=True)

    def swap_key(self) -> None:
        """Use a key and certificate that no evidence names, as an attacker in the network would.

        The document, or the evidence in the RA-TLS certificate, still names the previous key.
        """
        if self._ra_tls:
            self._use(self._ca.issue_ra_tls(self.tee, about=new_key()), listed=False)
        else:
            self._use(self._ca.issue(), listed=False)

    def relay(self, *, rewrite: bool = False) -> None:
        """Use a new key, and answer with genuine evidence that names a different key.

        A man in the middle does so who relays the evidence of a genuine server of the same app.
        With `ra_tls` it is the same as `swap_key`.

        Args:
            rewrite: Whether the document's statement is changed to name the key that is used; its
                evidence still names the genuine server's key.
        """
        if self._ra_tls:
            self.swap_key()
            return
        genuine = sha256(new_key().spki_der)
        self._use(self._ca.issue(), listed=False)
        self._faults.source = self._attested(self._faults.record, [genuine])
        self._faults.change = self._rename_key if rewrite else None

    def stale(self) -> None:
        """Answer requests for the document with one for 32 zero bytes instead of their nonce."""
        self._require_document("stale")
        self._faults.nonce = bytes(32)

    def hang(self) -> None:
        """Never answer requests for the document."""
        self._require_document("hang")
        self._faults.hangs = True

    def close_after_document(self) -> None:
        """Close connections after the document, as some load balancers do."""
        self._require_document("close_after_document")
        self._faults.closes = True

    def change_document(self, change: Callable[[bytes], bytes]) -> None:
        """Replace the body of each document, JSON, by the result of `change` before it is sent."""
        self._require_document("change_document")
        self._faults.change = change

    def restore(self) -> None:
        """End all attacks and faults: use a new certificate, and serve documents that name it."""
        self._faults.restore()
        self.rotate()

    def disconnect(self) -> None:
        """Abort all connections."""
        self._listener.disconnect()

    # -- internals -----------------------------------------------------------------------------

    def _attested(self, app: AsgiApp, tls: "TlsSource | None" = None) -> Attested:
        return Attested(app, self.tee, tls=tls or self._file, name=self._name)

    def _issue(self) -> Issued:
        return self._ca.issue_ra_tls(self.tee) if self._ra_tls else self._ca.issue()

    def _use(self, issued: Issued, *, listed: bool) -> None:
        """Use key and certificate for new connections; if `listed`, the document names them."""
        leaf = issued.certificate_chain[0]
        spki = read_certificate(leaf).spki_der
        if listed:
            # It is read at requests for the document, between which there may be two renewals.
            earlier = "".join(encode_pem("PUBLIC KEY", one) for one in self._earlier)
            replace_file(self._file, (leaf + earlier).encode(), mode=0o600)
            self._earlier = [spki, *self._earlier][:_EARLIER_KEYS]
        self._resources.loop.thread().run(partial(_load, self._context, issued))
        self._spki_sha256 = sha256(spki)

    def _rename_key(self, body: bytes) -> bytes:
        return rename_key(body, self._spki_sha256)

    def _require_document(self, control: str) -> None:
        if self._ra_tls:
            message = f"{control}: needs a server with a document; create it without ra_tls=True"
            raise UsageError(message, reason="not_applicable")

    def close(self) -> None:
        """Stop listening, disconnect clients, and close the TEE if it was not given. Idempotent."""
        self._stack.close()

    def __enter__(self) -> "AttestedServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<AttestedServer at {self.url}>"


def _verified(tee: SimulatedTee) -> "AttestationResult":
    nonce = bytes(32)
    return tee.verify(tee.attest(nonce=nonce), nonce=nonce)


async def _load(context: ssl.SSLContext, issued: Issued) -> None:
    """Load key and certificate in the thread of the event loop, which uses the context."""
    load_issued(context, issued)
