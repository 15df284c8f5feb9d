"""The ASGI middleware: it answers for the document, and leaves all else to the app."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx
import pytest
from fastapi import FastAPI, WebSocket
from starlette.testclient import TestClient

from attestkit.attestation import Attestation
from attestkit.client.asgi import Attested
from attestkit.client.document import PATH, SigningKey, read_document
from attestkit.client.document_endpoint import AT_ONCE, WAITING
from attestkit.client.services.own_document import OwnDocument
from attestkit.errors import QuoteUnavailableError, UsageError
from attestkit.testing import SimulatedTee
from tests.client.middleware.documents import HPKE, NAME, NONCE, PEER, SIGNING, tee
from tests.raising import raises
from tests.runner.cases import every_case

TLS: Final = [PEER.spki_sha256]
QUERY: Final = f"nonce={NONCE.hex()}"
SECONDS: Final = 20.0


class Held:
    """A TEE whose quotes wait until they are released."""

    def __init__(self) -> None:
        self.started = threading.Semaphore(0)
        self.release = threading.Semaphore(0)
        self.running = self.most = self.made = 0
        self._lock = threading.Lock()

    def attest(self, *, report_data: bytes) -> Attestation:
        """Return evidence once it is released."""
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
        self.started.release()
        assert self.release.acquire(timeout=SECONDS)
        with self._lock:
            self.running -= 1
            self.made += 1
        return tee().attest(report_data=report_data)


class Failing:
    """A TEE that fails with an error."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def attest(self, *, report_data: bytes) -> Attestation:
        """Raise the error."""
        del report_data
        raise self.error


async def hello(scope: Any, receive: Any, send: Any) -> None:
    """Answer each request with its path."""
    del receive
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["path"].encode()})


def client(app: Any, **options: Any) -> httpx.AsyncClient:
    """Return a client of the app."""
    transport = httpx.ASGITransport(app=app, **options)
    return httpx.AsyncClient(transport=transport, base_url="https://app.example.com")


@pytest.mark.asyncio
async def test_document_is_served() -> None:
    """The document is over the nonce of the request, the keys and the name."""
    app = Attested(hello, tee(), tls=TLS, name=NAME, hpke=HPKE, signing=[SIGNING])
    async with client(app) as http:
        answer = await http.get(f"{PATH}?{QUERY}")
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-type"] == "application/json"
    document = read_document(answer.content, NONCE)
    assert document.statement[2:] == (tuple(TLS), HPKE, (SIGNING,), NAME)
    [machine] = OwnDocument().read((answer.content,), NONCE, PEER, None).machines
    tee().verify(machine.evidence, report_data=machine.report_data)


@pytest.mark.asyncio
async def test_each_document_is_new() -> None:
    """Two requests with one nonce have a quote each."""
    made = []

    class Counted:
        def attest(self, *, report_data: bytes) -> Attestation:
            made.append(report_data)
            return tee().attest(report_data=report_data)

    async with client(Attested(hello, Counted(), tls=TLS)) as http:
        for _ in range(2):
            await http.get(f"{PATH}?{QUERY}")
    assert len(made) == 2


@pytest.mark.asyncio
async def test_other_parameters_are_ignored() -> None:
    """The nonce may be among others."""
    async with client(Attested(hello, tee(), tls=TLS)) as http:
        assert (await http.get(f"{PATH}?a=b&{QUERY}&c")).json()["version"] == 1


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "query",
    [
        "",
        "nonce",
        "nonce=",
        QUERY.upper(),
        f"nonce={NONCE.hex().upper()}",
        QUERY[:-1],
        QUERY[:-2],
        f"{QUERY}0",
        f"{QUERY}00",
        f"{QUERY}%0a",
        f"{QUERY}&{QUERY}",
        f"{QUERY}&nonce",
        f"{QUERY}&nonce=",
        f"nonce=0x{NONCE.hex()}",
        f"x{QUERY}",
    ],
)
async def test_other_nonces_are_refused(query: str) -> None:
    """A nonce is 64 lower-case hex digits, and given once."""
    async with client(Attested(hello, Failing(ValueError()), tls=TLS)) as http:
        answer = await http.get(f"{PATH}?{query}")
    assert answer.status_code == 400
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.asyncio
@pytest.mark.parametrize("method", ["POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "get"])
async def test_other_methods_are_refused(method: str) -> None:
    """The document has one method."""
    app = Attested(hello, Failing(ValueError()), tls=TLS)
    sent = []
    scope = {"type": "http", "method": method, "path": PATH, "query_string": QUERY.encode()}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, lambda: asyncio.sleep(0, {"type": "http.request"}), send)
    assert sent[0]["status"] == 405
    assert (b"allow", b"GET") in sent[0]["headers"]


@pytest.mark.asyncio
@pytest.mark.parametrize("path", ["/", f"{PATH}/", f"{PATH}x", f"/a{PATH}", "/.well-known/"])
async def test_other_paths_are_of_the_app(path: str) -> None:
    """Every other path goes to the app."""
    async with client(Attested(hello, Failing(ValueError()), tls=TLS)) as http:
        assert (await http.get(path)).text == path


@pytest.mark.asyncio
async def test_prefix_of_a_proxy_is_removed() -> None:
    """A server with a root path adds it to the path."""
    async with client(Attested(hello, tee(), tls=TLS), root_path="/api") as http:
        assert (await http.get(f"/api{PATH}?{QUERY}")).json()["version"] == 1
        assert (await http.get("/api/x")).text == "/api/x"


def test_app_of_fastapi_is_unchanged() -> None:
    """Lifespan events, WebSockets and requests are those of the app."""
    events = []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        events.append("start")
        yield
        events.append("end")

    app = FastAPI(lifespan=lifespan)

    @app.post("/sum")
    async def add(numbers: list[int]) -> int:
        return sum(numbers)

    @app.websocket(PATH)
    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(await websocket.receive_text())
        await websocket.close()

    app.add_middleware(Attested, tee=tee(), tls=TLS)
    with TestClient(app) as http:
        assert http.post("/sum", json=[1, 2]).json() == 3
        assert http.get(f"{PATH}?{QUERY}").json()["version"] == 1
        with http.websocket_connect(PATH) as websocket:
            websocket.send_text("hello")
            assert websocket.receive_text() == "hello"
        assert events == ["start"]
    assert events == ["start", "end"]


# -- limits ----------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_quotes_do_not_block_the_event_loop_and_are_bounded() -> None:
    """Four are made at once, 16 wait, a further one is refused; the app is answered meanwhile."""
    held = Held()
    async with client(Attested(hello, held, tls=TLS)) as http:
        tasks = [asyncio.create_task(http.get(f"{PATH}?{QUERY}")) for _ in range(AT_ONCE + WAITING)]
        for _ in range(AT_ONCE):
            assert await asyncio.to_thread(held.started.acquire, timeout=SECONDS)
        refused = await http.get(f"{PATH}?{QUERY}")
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) > 0
        assert refused.headers["cache-control"] == "no-store"
        assert (await http.get("/app")).text == "/app"
        held.release.release(len(tasks))
        assert {answer.status_code for answer in await asyncio.gather(*tasks)} == {200}
        assert (held.most, held.made) == (AT_ONCE, AT_ONCE + WAITING) == (4, 20)
        held.release.release()
        assert (await http.get(f"{PATH}?{QUERY}")).status_code == 200


@pytest.mark.asyncio
async def test_cancelled_request_gives_its_place_to_another() -> None:
    """A request that waits makes no quote once it is cancelled."""
    held = Held()
    async with client(Attested(hello, held, tls=TLS)) as http:
        tasks = [asyncio.create_task(http.get(f"{PATH}?{QUERY}")) for _ in range(AT_ONCE + WAITING)]
        for _ in range(AT_ONCE):
            assert await asyncio.to_thread(held.started.acquire, timeout=SECONDS)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        held.release.release(AT_ONCE + 1)
        answer = await http.get(f"{PATH}?{QUERY}")
        while answer.status_code == 503:  # the cancelled ones have not ended yet
            answer = await http.get(f"{PATH}?{QUERY}")
        assert answer.status_code == 200
    # The answer may overtake the quotes of cancelled requests.
    for thread in threading.enumerate():
        if thread.name == "attestkit-document":
            thread.join(SECONDS)
            assert not thread.is_alive()
    assert held.made == AT_ONCE + 1
    assert held.started.acquire(blocking=False)
    assert not held.started.acquire(blocking=False)


# -- failures --------------------------------------------------------------------------------------


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "error",
    [QuoteUnavailableError("secret path /dev/x", reason="timed_out"), ValueError("secret path")],
)
async def test_failure_is_logged_and_not_told(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """The client gets 503 and an identifier, under which the log has the error."""
    with caplog.at_level(logging.ERROR, "attestkit.client"):
        async with client(Attested(hello, Failing(error), tls=TLS)) as http:
            answers = [await http.get(f"{PATH}?{QUERY}") for _ in range(AT_ONCE + WAITING + 1)]
    assert {answer.status_code for answer in answers} == {503}
    assert "secret" not in answers[0].text
    assert answers[0].headers["retry-after"]
    assert answers[0].json()["id"] in caplog.text
    assert "secret path" in caplog.text
    assert len({answer.json()["id"] for answer in answers}) == len(answers)


@pytest.mark.asyncio
async def test_no_thread_is_left_for_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that cannot start another thread refuses requests, and recovers."""

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async with client(Attested(hello, tee(), tls=TLS)) as http:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            for _ in range(AT_ONCE + WAITING + 1):
                assert (await http.get(f"{PATH}?{QUERY}")).status_code == 503
        assert (await http.get(f"{PATH}?{QUERY}")).status_code == 200


@pytest.mark.asyncio
async def test_closed_tee_is_refused() -> None:
    """After the TEE is closed, evidence is not available."""
    closed = SimulatedTee()
    app = Attested(hello, closed, tls=TLS)
    closed.close()
    async with client(app) as http:
        assert (await http.get(f"{PATH}?{QUERY}")).status_code == 503


class AsyncTee:
    """A TEE of asyncio, which the middleware does not take."""

    async def attest(self, *, report_data: bytes) -> Attestation:
        """Return evidence."""
        return tee().attest(report_data=report_data)


@every_case(
    ("make", "reason"),
    [
        (lambda: Attested(hello, None, tls=TLS), "wrong_type"),  # type: ignore[arg-type]
        (lambda: Attested(hello, AsyncTee(), tls=TLS), "wrong_type"),  # type: ignore[arg-type]
        (lambda: Attested(hello, tee(), tls=[]), "missing"),
        (lambda: Attested(hello, tee(), tls="/no/such/file"), "cannot_read"),
        (lambda: Attested(hello, tee(), tls=TLS, name=""), "wrong_value"),
        (lambda: Attested(hello, tee(), tls=TLS, hpke=b""), "wrong_size"),
        (lambda: Attested(hello, tee(), tls=TLS, signing=[SigningKey("", b"")]), "wrong_value"),
    ],
)
def test_arguments_that_are_not_valid_are_refused(
    make: Callable[[], Attested], reason: str
) -> None:
    """A server with arguments that are not valid does not start."""
    with raises(UsageError, reason):
        make()
