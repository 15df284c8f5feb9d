"""An endpoint for an enclave of Tinfoil, over TLS on loopback: attested first, sealed then."""

import asyncio
import ssl
import time
from collections.abc import Callable, Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

import attestkit
from attestkit import AppraisalPolicy, Require
from attestkit.client.endpoint import Endpoint
from attestkit.errors import UsageError
from attestkit.ra_tls import PeerRefusedError
from attestkit.serve.event_loop_thread import EventLoopThread
from attestkit.testing import SimulatedTee
from attestkit.testing.tls_listener import ADDRESS, LoopbackCa, TlsListener
from tests.client.sealing.ehbp_server import KEY_PROBLEM, EhbpServer
from tests.client.services.tinfoil.tinfoil_maker import Enclave
from tests.raising import raises

pytest.importorskip("uvicorn")


class App:
    """An enclave: its document, and a path that returns the body of a request, sealed."""

    def __init__(self, enclave: Enclave) -> None:
        self.enclave = enclave
        self.use(EhbpServer())
        self.generation = "august"
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.together = 0  # requests that must have come before one is answered
        self.documents = 0
        self.delay = 0.0  # seconds before a document is sent
        self.document_headers: list[tuple[str, str]] = []
        self.on_document: Callable[[], object] = lambda: None

    def use(self, middleware: EhbpServer) -> None:
        """Use another key of HPKE."""
        self.middleware = middleware
        self.enclave.hpke = middleware.public_key

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return
        if scope["path"] == "/.well-known/tinfoil-attestation":
            [nonce] = parse_qs(scope["query_string"].decode())["nonce"]
            self.documents += 1
            self.on_document()
            await asyncio.sleep(self.delay)
            self.enclave.nonce = bytes.fromhex(nonce)
            document = getattr(self.enclave, self.generation)()
            await self._send(send, 200, self.document_headers, document)
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        headers = {name.decode().title(): value.decode() for name, value in scope["headers"]}
        self.requests.append((scope["path"], headers, body))
        while len(self.requests) < self.together:  # noqa: ASYNC110 - of other tasks
            await asyncio.sleep(0.005)
        try:
            plain, answer = self.middleware.open(headers, body)
        except Exception:  # noqa: BLE001 - of whatever kind pyhpke raises
            problem = [("Content-Type", "application/problem+json")]
            await self._send(send, 422, problem, KEY_PROBLEM)
            return
        kept = [pair for pair in answer.headers() if pair[0] != "Transfer-Encoding"]
        await self._send(send, 200, kept, answer.seal(plain[:3], plain[3:]))

    async def _send(
        self, send: Any, status: int, headers: list[tuple[str, str]], body: bytes
    ) -> None:
        raw = [(name.lower().encode(), value.encode()) for name, value in headers]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": body})


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[App, str, str]]:
    """Provide an enclave that serves; the URL, and the CA of its certificate."""
    authority = LoopbackCa()
    issued = authority.issue()
    file = tmp_path / "leaf.pem"
    file.write_text("".join([issued.key_pem, *issued.certificate_chain]))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    thread = EventLoopThread()
    with SimulatedTee(platform="tdx") as tee:
        app = App(Enclave(tee, "tdx", pem=issued.key_pem.encode()))
        listener = TlsListener(app, context, thread)
        try:
            yield app, f"https://{ADDRESS}:{listener.port}", authority.pem
        finally:
            listener.close()
            thread.close()


def connect(served: tuple[App, str, str], **options: Any) -> Any:
    """Return an endpoint for the enclave, whose measurements are the policy's."""
    app, url, ca = served
    tee = app.enclave.tee
    result = tee.verify(tee.raw_quote(), report_data=None)
    verifier = tee.verifier(policy=AppraisalPolicy.from_evidence(result))
    settings = {"policy": verifier, "service": "tinfoil", "server_ca": ca}
    return attestkit.connect(url, **{**settings, **options})


@pytest.mark.parametrize("generation", ["june", "august"])
def test_request_is_sealed_to_the_proven_key(served: tuple[App, str, str], generation: str) -> None:
    """The server is proven first; then only the enclave can read the body of a request."""
    app, url, _ = served
    app.generation = generation
    with connect(served, encrypt=True) as endpoint, endpoint.client() as client:
        kinds = [binding.kind for binding in endpoint.proof.bindings]
        assert kinds == ["tls-spki", "hpke"]
        assert any("Authorization" in text for text in endpoint.proof.not_proven)
        assert not app.requests
        response = client.post(f"{url}/v1/echo", json={"prompt": "secret"})
        assert response.json() == {"prompt": "secret"}
        assert response.extensions["attestkit"].authenticated
    [(path, headers, body)] = app.requests
    assert path == "/v1/echo"
    assert b"secret" not in body
    assert headers["Content-Type"] == "application/json"
    assert "Content-Length" not in headers


def test_document_without_nonce_needs_consent(served: tuple[App, str, str]) -> None:
    """A document of v2 is refused unless the caller accepts evidence of any age."""
    app, _, _ = served
    app.generation = "v2"
    with pytest.raises(PeerRefusedError) as caught:
        connect(served)
    assert caught.value.reason == "no_freshness"
    with connect(served, require=Require(freshness="key possession")) as endpoint:
        assert endpoint.proof.freshness == "key possession"
        assert endpoint.proof.code == "policy"
    assert not app.requests


def test_other_measurements_are_refused(served: tuple[App, str, str]) -> None:
    """The policy decides about the program, and no byte of a request is sent to another one."""
    app, _, _ = served
    tee = app.enclave.tee
    pinned = AppraisalPolicy.from_evidence(tee.verify(tee.raw_quote(), report_data=None))
    values = replace(pinned.reference_values, rtmr2=frozenset({b"\1" * 48}))
    with pytest.raises(PeerRefusedError) as caught:
        connect(served, policy=tee.verifier(policy=pinned.replace(reference_values=values)))
    assert caught.value.reason == "reference_value"
    assert not app.requests


@pytest.mark.parametrize("library", ["httpx", "httpx2", "requests"])
def test_request_is_sealed_anew_when_the_enclave_has_another_key(
    served: tuple[App, str, str], library: str
) -> None:
    """After a restart the enclave is proven anew, and the request is sealed to the new key."""
    app, url, _ = served
    proofs: list[Any] = []
    with connect(served, encrypt=True, on_proof=proofs.append) as endpoint:
        requests = library == "requests"
        client = endpoint.requests_session() if requests else endpoint.client(http=library)
        with client:
            app.use(EhbpServer(b"seed of another pair of 32 bytes"))
            response = client.post(f"{url}/v1/echo", data={"prompt": "secret"})
            assert response.content == b"prompt=secret"
    assert len(app.requests) == 2
    assert app.requests[0][2] != app.requests[1][2]
    assert [proof.bindings[1].key for proof in proofs][-1] == app.enclave.hpke


COUNT = 6
every_way = pytest.mark.parametrize("way", ["threads", "requests", "tasks"])


def send_together(endpoint: Any, way: str) -> list[bytes]:
    """Send several requests at once, and return the answers."""
    url, bodies = f"{endpoint.url}/v1/echo", [b"%d" % number for number in range(COUNT)]
    if way == "tasks":

        async def program() -> list[bytes]:
            async with endpoint.async_client() as client:
                sent = [client.post(url, content=body) for body in bodies]
                return [answer.content for answer in await asyncio.gather(*sent)]

        return asyncio.run(program())
    client = endpoint.requests_session() if way == "requests" else endpoint.client()
    name = "data" if way == "requests" else "content"
    with client, ThreadPoolExecutor(COUNT) as threads:
        sent = [threads.submit(client.post, url, **{name: body}) for body in bodies]
        return [one.result().content for one in sent]


@every_way
def test_requests_at_once_are_sealed_anew_under_one_proof(
    served: tuple[App, str, str], way: str
) -> None:
    """Requests that the enclave refused after its restart are sent again under one new proof."""
    app, _, _ = served
    proofs: list[Any] = []
    with connect(served, encrypt=True, on_proof=proofs.append) as endpoint:
        app.use(EhbpServer(b"seed of another pair of 32 bytes"))
        app.together = COUNT
        assert send_together(endpoint, way) == [b"%d" % number for number in range(COUNT)]
    assert len(app.requests) == 2 * COUNT
    assert app.documents == len(proofs) == 2


def test_newer_proof_of_the_same_key_ends_with_it(served: tuple[App, str, str]) -> None:
    """A proof that was made since, before the restart, names the key that the enclave lacks now."""
    app, url, _ = served
    with connect(served, encrypt=True) as endpoint, endpoint.client() as client:
        app.together = 2
        with ThreadPoolExecutor(1) as threads:
            sent = threads.submit(client.post, f"{url}/v1/echo", content=b"secret")
            try:
                while not app.requests:
                    assert not sent.done()
                    time.sleep(0.005)
                endpoint.prove()
                app.use(EhbpServer(b"seed of another pair of 32 bytes"))
            finally:
                app.together = 0
            assert sent.result().content == b"secret"
    assert (len(app.requests), app.documents) == (2, 3)


@every_way
def test_requests_at_once_wait_for_one_proof(
    served: tuple[App, str, str], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the end of a proof one is made, on one connection, for all that need its key."""
    app, _, _ = served
    opened: list[Any] = []
    unchanged = Endpoint._open

    def counting(endpoint: Endpoint, dialing: Any) -> ssl.SSLSocket:
        opened.append(dialing)
        return unchanged(endpoint, dialing)

    with connect(served, encrypt=True) as endpoint:
        endpoint.forget()
        app.delay = 0.3
        monkeypatch.setattr(Endpoint, "_open", counting)
        assert send_together(endpoint, way) == [b"%d" % number for number in range(COUNT)]
    assert app.documents == 2
    assert len(opened) == 1


def test_requests_wait_a_limited_time_for_a_connection(served: tuple[App, str, str]) -> None:
    """If the one that opens a connection takes too long, the others open their own."""

    class Held:
        """A lock that another thread holds; it has no `release`."""

        def acquire(self, timeout: float) -> bool:
            """Return False after the time."""
            waited.append(timeout)
            return False

    app, url, _ = served
    waited: list[float] = []
    with connect(served, encrypt=True, timeout=5) as endpoint, endpoint.client() as client:
        endpoint.forget()
        endpoint._server_verifier.first = Held()
        assert client.post(f"{url}/v1/echo", content=b"secret").content == b"secret"
    assert waited == [10]
    assert app.documents == 2


def test_proof_that_is_forgotten_at_once_is_returned(served: tuple[App, str, str]) -> None:
    """`prove` returns the proof that it made, whatever other threads do with it."""
    endpoints: list[Any] = []

    def forget(_: object) -> None:
        for one in endpoints:
            one.forget()

    with connect(served, on_proof=forget) as endpoint:
        first = endpoint.proof
        endpoints.append(endpoint)
        assert endpoint.prove() is not first
        with raises(UsageError, "not_ready"):
            _ = endpoint.proof


def test_proof_that_is_forgotten_with_its_connection_is_made_again(
    served: tuple[App, str, str],
) -> None:
    """If the server closes the connection, too, `prove` opens another one."""
    app, _, _ = served
    with connect(served) as endpoint:

        def forget_once() -> None:
            app.on_document = lambda: None
            endpoint.forget()

        app.on_document = forget_once
        app.document_headers = [("Connection", "close")]
        assert endpoint.prove() is endpoint.proof
    assert app.documents == 3
