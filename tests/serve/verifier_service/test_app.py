"""The verifier service over HTTP: statuses, bounds, and nobody waits for somebody else's fetch."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import pytest

from attestkit.attestation import Attestation
from attestkit.errors import FormatError
from attestkit.serve.verifier_service.app import MAX_BODY, VerifierApp
from tests.serve.asgi import Client, Response
from tests.serve.verifier_service.judges import StandIn, evidence, result

if TYPE_CHECKING:
    from attestkit.verifier.pipeline import Verifier

MakeClient: TypeAlias = Callable[..., Client]
GOOD = {"attestation": evidence().to_bytes().hex()}


@pytest.fixture
def make_client(loop: asyncio.AbstractEventLoop) -> Iterator[MakeClient]:
    """Make clients of the service; its threads end with the test."""
    with ThreadPoolExecutor(2) as executor:

        def make(verifier: object = None, executor: Executor = executor, **options: Any) -> Client:
            judge = cast("Verifier", verifier or StandIn())
            options = {"random": lambda size: bytes(range(1, size + 1)), **options}
            return Client(VerifierApp(judge, executor, **options), loop)

        yield make


@pytest.fixture
def client(make_client: MakeClient) -> Client:
    """A client of a service that believes everything."""
    return make_client()


def check_failed(response: Response, status: int) -> str:
    """Check an error's form; return its text."""
    assert response.status == status
    return response.error()


# -- routes ----------------------------------------------------------------------------------------


def test_health(client: Client) -> None:
    """It lives, and says so as upstream does."""
    response = client.get("/health")
    assert response.status == 200
    assert response.json() == {"service": "dstack-verifier", "status": "ok"}
    assert response.headers["content-type"] == "application/json"
    assert client.request("HEAD", "/health").status == 200


@pytest.mark.parametrize(
    ("verb", "path"),
    [
        ("GET", "/"),
        ("GET", "/verify"),
        ("PUT", "/verify"),
        ("POST", "/health"),
        ("POST", "/verify/"),
        ("POST", "/Verify"),
        ("POST", "/prpc/verify"),
        ("GET", "/Info"),
        ("POST", "/GetKey"),
    ],
)
def test_nothing_else_is_here(client: Client, verb: str, path: str) -> None:
    """Other paths, and other verbs, are not."""
    check_failed(client.request(verb, path, b"{}"), 404)


def test_a_verdict(client: Client) -> None:
    """Evidence that passed: 200, JSON, one line of ASCII."""
    response = client.post("/verify", GOOD)
    assert response.status == 200
    assert response.json()["is_valid"] is True
    assert response.headers["content-type"] == "application/json"
    assert "x-attestkit-simulated" not in response.headers
    assert response.body.isascii()
    assert b"\n" not in response.body


def test_simulated_evidence_is_marked(make_client: MakeClient) -> None:
    """The documented object has no place for it, so a header says it."""
    client = make_client(StandIn(appraise=result(simulated=True)))
    response = client.post("/verify", GOOD)
    assert response.json()["is_valid"] is True
    assert response.headers["x-attestkit-simulated"] == "true"


@pytest.mark.parametrize(
    "content_type", [None, "", "text/plain", "application/octet-stream", "application/json;x=y"]
)
def test_any_content_type(client: Client, content_type: str | None) -> None:
    """The body is JSON, whatever it is called."""
    headers = {} if content_type is None else {"content-type": content_type}
    response = client.request("POST", "/verify", json.dumps(GOOD).encode(), headers)
    assert response.json()["is_valid"] is True


# -- statuses --------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"", b"{", b"quote=00", b"\xff\xfe"])
def test_broken_json_is_400(client: Client, body: bytes) -> None:
    """So is an empty body."""
    check_failed(client.request("POST", "/verify", body), 400)


def test_wrong_types_are_422(client: Client) -> None:
    """The text names the field."""
    assert "event_log" in check_failed(client.post("/verify", {"event_log": []}), 422)
    assert "quote" in check_failed(client.post("/verify", {"quote": "0x00"}), 422)
    check_failed(client.request("POST", "/verify", b"[]"), 422)


@pytest.mark.parametrize("reason", ["quote", "event log"])
def test_everything_else_is_200(client: Client, reason: str) -> None:
    """Also what is no evidence at all."""
    request = {} if reason == "quote" else {"quote": "00"}
    response = client.post("/verify", request)
    assert (response.status, response.json()["is_valid"]) == (200, False)
    assert reason in response.json()["reason"].lower()


def test_over_1_mib_is_413(client: Client) -> None:
    """A longer body is refused by its announced length, or once it has come so far."""
    rest = MAX_BODY - len(json.dumps({"x": ""}))
    assert client.post("/verify", {"x": "." * rest}).status == 200
    response = client.post("/verify", {"x": "." * (rest + 1)})
    assert f"over {MAX_BODY} bytes" in check_failed(response, 413)
    assert response.headers["connection"] == "close"
    assert client.read == 0
    response = client.request("POST", "/verify", [b"." * 65536] * 100)
    check_failed(response, 413)
    assert client.read == MAX_BODY + 65536


def test_a_body_in_pieces(client: Client) -> None:
    """The pieces are put together."""
    body = json.dumps(GOOD).encode()
    pieces = [body[at : at + 1000] for at in range(0, len(body), 1000)]
    assert client.request("POST", "/verify", pieces).json()["is_valid"] is True


def test_what_breaks_is_in_the_log_alone(
    make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    """The client gets an id, the log the error under it."""
    client = make_client(StandIn(replay=ValueError("SECRET")))
    response = client.post("/verify", GOOD)
    assert response.status == 200
    assert response.json()["reason"] == (
        "Quote verification failed: internal error, request 0102030405060708"
    )
    assert b"SECRET" not in response.body
    [record] = caplog.records
    assert "0102030405060708" in record.getMessage()
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "SECRET"


def test_an_answer_that_cannot_be_written_is_500(
    make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Even there a yes does not get out."""
    broken = evidence().app_info()._replace(app_id=cast("bytes", _NotHex()))
    response = make_client(StandIn(app_info=broken)).post("/verify", GOOD)
    assert response.status == 500
    assert response.error() == "internal error, request 0102030405060708"
    assert len(caplog.records) == 1


class _NotHex(bytes):
    """Bytes whose hex form is nothing that JSON can hold."""

    def hex(self, *_: object) -> str:
        return cast("str", object())


# -- threads ---------------------------------------------------------------------------------------


class Held(StandIn):
    """Holds its thread until the test lets it go."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Semaphore(0)
        self.go = threading.Event()
        self.before = self._wait

    def _wait(self) -> None:
        self.entered.release()
        assert self.go.wait(60)


async def call(client: Client, verb: str, path: str, message: object = None) -> int:
    """Send a request within a running loop; return its status."""
    scope = {"type": "http", "method": verb, "raw_path": path.encode(), "headers": []}
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": json.dumps(message).encode()}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    await client.app(scope, receive, send)
    return statuses[0]


def test_the_loop_goes_on(make_client: MakeClient) -> None:
    """While verifications wait for their collateral, other requests are answered."""
    held = Held()
    client = make_client(held)

    async def scenario() -> list[int]:
        tasks = [asyncio.ensure_future(call(client, "POST", "/verify", GOOD)) for _ in range(3)]
        for _ in range(2):  # both threads are taken, the third waits
            assert await asyncio.to_thread(held.entered.acquire, timeout=60)
        assert await call(client, "GET", "/health") == 200
        assert not any(task.done() for task in tasks)
        held.go.set()
        return await asyncio.gather(*tasks)

    assert client.loop.run_until_complete(scenario()) == [200, 200, 200]


def test_too_many_are_refused(make_client: MakeClient) -> None:
    """What is over the limit hears 503 at once; when there is room again it is judged."""
    held = Held()
    client = make_client(held, limit=3)

    async def scenario() -> None:
        tasks = [asyncio.ensure_future(call(client, "POST", "/verify", GOOD)) for _ in range(3)]
        for _ in range(2):
            assert await asyncio.to_thread(held.entered.acquire, timeout=60)
        assert await call(client, "POST", "/verify", GOOD) == 503
        held.go.set()
        assert await asyncio.gather(*tasks) == [200, 200, 200]
        assert await call(client, "POST", "/verify", GOOD) == 200

    client.loop.run_until_complete(scenario())


def test_one_that_takes_too_long(make_client: MakeClient) -> None:
    """Its client hears 503; it keeps its place until its thread is free."""
    held = Held()
    with ThreadPoolExecutor(1) as executor:
        client = make_client(held, executor, limit=1, seconds=0.01)
        response = client.post("/verify", GOOD)
        assert "0.01 seconds" in check_failed(response, 503)
        assert response.headers["retry-after"] == "10"
        assert "waiting" in check_failed(client.post("/verify", GOOD), 503)
        held.go.set()
    # Its thread is done, and so the next is not refused for want of a place.
    assert "stop" in check_failed(client.post("/verify", GOOD), 503)


def test_one_that_waited_too_long_is_never_judged(make_client: MakeClient) -> None:
    """What nobody waits for any more does not take a thread."""
    held = Held()
    with ThreadPoolExecutor(1) as executor:
        client = make_client(held, executor, seconds=0.05)
        for _ in range(3):
            check_failed(client.post("/verify", GOOD), 503)
        held.go.set()
    assert len(held.opened) <= 1


def test_a_server_that_stops(make_client: MakeClient) -> None:
    """A request that comes when the threads are gone is told so."""
    executor = ThreadPoolExecutor(1)
    client = make_client(None, executor)
    executor.shutdown()
    assert "stop" in check_failed(client.post("/verify", GOOD), 503)


class Fetching(Held):
    """A Held verifier that is held only where it fetches; `fetches` says what is cached."""

    def __init__(self) -> None:
        super().__init__()
        self.before = lambda: None
        self.fetches = True

    def authenticate(self) -> object:
        """Ask the PCCS, which takes its time."""
        if self.fetches:
            self._wait()
        return super().authenticate()


class Fetcher(ThreadPoolExecutor):
    """Threads, and a semaphore that counts what was given to them."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self.submitted = asyncio.Semaphore(0)

    def submit(self, *args: Any, **kwargs: Any) -> "Future[Any]":
        """Take work."""
        self.submitted.release()
        return super().submit(*args, **kwargs)


def test_fetches_hold_nobody_else_up(make_client: MakeClient) -> None:
    """With all places and threads of theirs taken, what is cached is judged as ever."""
    held = Fetching()
    with Fetcher(1) as fetcher:
        client = make_client(held, fetcher=fetcher, limit=2, fetches=3)

        async def scenario() -> None:
            tasks = []
            for _ in range(3):  # one holds the thread, the others wait without one
                tasks.append(asyncio.ensure_future(call(client, "POST", "/verify", GOOD)))
                await asyncio.wait_for(fetcher.submitted.acquire(), 60)
            assert await asyncio.to_thread(held.entered.acquire, timeout=60)
            assert await call(client, "POST", "/verify", GOOD) == 503
            held.fetches = False
            for _ in range(3):
                assert await call(client, "POST", "/verify", GOOD) == 200
            assert not any(task.done() for task in tasks)
            held.go.set()
            assert await asyncio.gather(*tasks) == [200, 200, 200]

        client.loop.run_until_complete(scenario())


def test_a_fetch_that_takes_too_long(make_client: MakeClient) -> None:
    """Its client hears 503, and its place is kept until its thread is free."""
    held = Fetching()
    with ThreadPoolExecutor(1) as fetcher:
        client = make_client(held, fetcher=fetcher, fetches=1, seconds=0.05)
        assert "0.05 seconds" in check_failed(client.post("/verify", GOOD), 503)
        assert "to be fetched" in check_failed(client.post("/verify", GOOD), 503)
        held.go.set()
    assert "stop" in check_failed(client.post("/verify", GOOD), 503)


def test_a_client_that_goes_away(client: Client) -> None:
    """Half a request is no request, and nobody is answered."""
    scope = {"type": "http", "method": "POST", "raw_path": b"/verify", "headers": []}
    sent: list[object] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: object) -> None:
        sent.append(message)

    client.loop.run_until_complete(cast("Any", client.app(scope, receive, send)))
    assert sent == []


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"quote": "04", "event_log": "[]"}, "Failed to create attestation"),
        ({"attestation": "000102"}, "Failed to decode attestaion"),
    ],
)
def test_why_evidence_cannot_be_read_is_logged(
    client: Client, caplog: pytest.LogCaptureFixture, request_: dict[str, str], reason: str
) -> None:
    """The client gets the documented text, and the id under which the log has the cause."""
    response = client.post("/verify", request_)
    assert response.json()["reason"] == f"Internal error: {reason}"
    request_id = response.headers["x-attestkit-request"]
    [record] = caplog.records
    assert request_id in record.getMessage()
    assert reason not in record.getMessage()
    assert len(record.getMessage()) > 60


def test_unreadable_evidence_does_not_draw_in_the_log(
    client: Client, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cause is one bounded line of ASCII, also where it quotes what the stranger sent."""

    def hostile(*_: object) -> None:
        raise FormatError("\x1b[2J\n\u202e" * 4000)

    monkeypatch.setattr(Attestation, "from_quote_and_log", hostile)
    response = client.post("/verify", {"quote": "04", "event_log": "[]"})
    assert response.json()["reason"] == "Internal error: Failed to create attestation"
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert len(record.getMessage()) < 3100
    assert record.getMessage().isprintable()
    assert record.getMessage().isascii()


def test_evidence_that_can_be_read_is_not_logged(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither a good one, nor a request without any: those answers say everything."""
    assert "x-attestkit-request" not in client.post("/verify", GOOD).headers
    assert "x-attestkit-request" not in client.post("/verify", {}).headers
    assert caplog.records == []
