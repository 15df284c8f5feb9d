"""HTTP interface of the verifier service: statuses, limits, and separate threads for fetches."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import pytest

from attestkit.attestation import Attestation
from attestkit.errors import FormatError
from attestkit.serve.config.limits import Limits
from attestkit.serve.job_queue import JobThreads
from attestkit.serve.verifier_service.app import VerifierApp
from tests.serve.asgi import Client, Response
from tests.serve.verifier_service.judges import (
    FakeVerifier,
    create_evidence,
)

if TYPE_CHECKING:
    from attestkit.verifier.verifier import Verifier

MAX_BODY = Limits().verifier_body
MakeClient: TypeAlias = Callable[..., Client]
GOOD = {"attestation": create_evidence().to_bytes().hex()}


@pytest.fixture
def make_client(loop: asyncio.AbstractEventLoop) -> Iterator[MakeClient]:
    """Return a factory of clients of the service; its threads end with the test."""
    with JobThreads(2) as executor:

        def make(
            verifier: object = None, executor: JobThreads = executor, **options: Any
        ) -> Client:
            judge = cast("Verifier", verifier or FakeVerifier())
            options = {"random": lambda size: bytes(range(1, size + 1)), **options}
            options.setdefault("fetcher", executor)
            return Client(VerifierApp(judge, executor, **options), loop)

        yield make


@pytest.fixture
def client(make_client: MakeClient) -> Client:
    """Return a client of a service whose verifier accepts all evidence."""
    return make_client()


def check_error(response: Response, status: int) -> str:
    """Check an error's status and format; return its text."""
    assert response.status == status
    return response.error()


# -- routes ----------------------------------------------------------------------------------------


def test_health_response(client: Client) -> None:
    """/health returns the object of the upstream service, and the policy's preset."""
    response = client.get("/health")
    assert response.status == 200
    upstream = {"service": "dstack-verifier", "status": "ok"}
    assert response.json() == {**upstream, "policy": "development"}
    assert response.headers["content-type"] == "application/json"
    assert client.request("HEAD", "/health").status == 200


@pytest.mark.parametrize(
    ("verb", "path"),
    [
        *(("GET", path) for path in ("/", "/verify", "/Info")),
        ("PUT", "/verify"),
        *(("POST", path) for path in ("/health", "/verify/", "/Verify", "/prpc/verify", "/GetKey")),
    ],
)
def test_request_unknown_path_or_method_is_404(client: Client, verb: str, path: str) -> None:
    """Other paths and methods return 404."""
    check_error(client.request(verb, path, b"{}"), 404)


def test_verify_valid_evidence_returns_ascii_json(client: Client) -> None:
    """Valid evidence returns 200 and one line of ASCII JSON."""
    response = client.post("/verify", GOOD)
    assert response.status == 200
    assert response.json()["is_valid"] is True
    assert response.headers["content-type"] == "application/json"
    assert "x-attestkit-simulated" not in response.headers
    assert response.body.isascii()
    assert b"\n" not in response.body


@pytest.mark.parametrize(
    "content_type", [None, "", "text/plain", "application/octet-stream", "application/json;x=y"]
)
def test_verify_ignores_content_type(client: Client, content_type: str | None) -> None:
    """The body is parsed as JSON, whatever its content type."""
    headers = {} if content_type is None else {"content-type": content_type}
    response = client.request("POST", "/verify", json.dumps(GOOD).encode(), headers)
    assert response.json()["is_valid"] is True


# -- statuses --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"quote=00", b"\xff\xfe", b"{}{}"),
        b'{"debug":NaN}',
        b'{"quote":"00","quote":"01"}',
        b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"a":' + b"1" * 5000 + b"}",
    ],
)
def test_verify_malformed_json_is_400(client: Client, body: bytes) -> None:
    """An empty body, malformed JSON and duplicate keys return 400."""
    check_error(client.request("POST", "/verify", body), 400)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        *((body, "") for body in (b"[]", b'"text"', b"null")),
        *(
            (b'{"attestation":%b}' % value, "attestation")
            for value in (b"1", b'"0x00"', b'"0"', b'" 00"', b'["00"]')
        ),
        (b'{"quote":"zz"}', "quote"),
        (b'{"event_log":[]}', "event_log"),
        (b'{"vm_config":{}}', "vm_config"),
    ],
)
def test_verify_wrong_field_type_is_422(client: Client, body: bytes, field: str) -> None:
    """A wrong type is distinguished from malformed JSON; the error names the field."""
    assert field in check_error(client.request("POST", "/verify", body), 422)


def test_verify_body_over_limit_is_413(client: Client) -> None:
    """A body is refused by its Content-Length, or once the limit is exceeded."""
    rest = MAX_BODY - len(json.dumps({"x": ""}))
    assert client.post("/verify", {"x": "." * rest}).status == 200
    response = client.post("/verify", {"x": "." * (rest + 1)})
    assert f"over {MAX_BODY} bytes" in check_error(response, 413)
    assert response.headers["connection"] == "close"
    assert client.read == 0
    response = client.request("POST", "/verify", [b"." * 65536] * 100)
    check_error(response, 413)
    assert client.read == MAX_BODY + 65536


class Upload:
    """A request to /verify whose body is sent piece by piece."""

    def __init__(self, client: Client) -> None:
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._messages: list[Any] = []
        scope = {"type": "http", "method": "POST", "raw_path": b"/verify", "query_string": b""}
        call = client.app({**scope, "headers": []}, self._receive, self._send)
        self._task = asyncio.ensure_future(cast("Any", call))

    async def _receive(self) -> dict[str, Any]:
        piece = await self._pieces.get()
        if piece is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": piece, "more_body": piece != b""}

    async def _send(self, message: Any) -> None:
        self._messages.append(message)

    async def send(self, *pieces: bytes | None) -> None:
        """Send pieces until they are read: an empty one ends the body, None disconnects."""
        for piece in pieces:
            self._pieces.put_nowait(piece)
        for _ in range(20):  # reading takes a few turns of the event loop
            await asyncio.sleep(0)

    def is_pending(self) -> bool:
        """Return whether the rest of the body is awaited."""
        return not self._task.done()

    async def finish(self) -> tuple[int, dict[bytes, bytes]] | None:
        """Return status and headers of the response; None without a response."""
        await self._task
        if not self._messages:
            return None
        start = self._messages[0]
        return start["status"], dict(start["headers"])


def test_slow_uploads_are_limited_together(make_client: MakeClient) -> None:
    """Above the limit of all bodies an upload is refused; its end or a disconnect makes room.

    The first 64 KiB of each do not count, so small requests are always served.
    """
    client = make_client(limits=Limits(bodies=300_000))
    piece = b" " * (65_536 + 90_000)

    async def scenario() -> None:
        uploads = [Upload(client) for _ in range(3)]
        for upload in uploads:
            await upload.send(piece)
        for _ in range(2):
            refused = Upload(client)
            await refused.send(piece)
            found = await refused.finish()
            assert found is not None
            status, headers = found
            assert (status, headers[b"retry-after"]) == (503, b"10")
            assert headers[b"connection"] == b"close"  # the rest is not read
        assert await post_status(client) == 200
        assert all(upload.is_pending() for upload in uploads)
        await uploads[0].send(json.dumps(GOOD).encode(), b"")
        await uploads[1].send(None)
        assert await uploads[1].finish() is None
        found = await uploads[0].finish()
        assert found is not None
        assert found[0] == 200
        others = [Upload(client) for _ in range(3)]
        for upload in others:
            await upload.send(piece)
        assert [upload.is_pending() for upload in others] == [True, True, False]
        for upload in (uploads[2], *others):
            await upload.send(None)
            await upload.finish()
        large = Upload(client)
        await large.send(b" " * (65_536 + 250_000), json.dumps(GOOD).encode(), b"")
        found = await large.finish()
        assert found is not None
        assert found[0] == 200

    client.loop.run_until_complete(scenario())


def test_verify_chunked_body_is_joined(client: Client) -> None:
    """A body in several messages is joined."""
    body = json.dumps(GOOD).encode()
    pieces = [body[at : at + 1000] for at in range(0, len(body), 1000)]
    assert client.request("POST", "/verify", pieces).json()["is_valid"] is True


def test_verify_internal_error_is_logged_not_returned(
    make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    """The client receives a request id; the log contains the error under this id."""
    client = make_client(FakeVerifier(replay=ValueError("SECRET")))
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


def test_verify_unencodable_result_is_500(
    make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    """An error while encoding a valid result returns 500."""
    broken = create_evidence().app_info._replace(app_id=cast("bytes", _NotHex()))
    response = make_client(FakeVerifier(app_info=broken)).post("/verify", GOOD)
    assert response.status == 500
    assert response.error() == "internal error, request 0102030405060708"
    assert len(caplog.records) == 1


class _NotHex(bytes):
    """Bytes whose hex() returns an object that JSON cannot encode."""

    def hex(self, *_: object) -> str:
        return cast("str", object())


# -- threads ---------------------------------------------------------------------------------------


class BlockingVerifier(FakeVerifier):
    """A verifier that blocks its thread until `go` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Semaphore(0)
        self.go = threading.Event()
        self.before = self._wait

    def _wait(self) -> None:
        self.entered.release()
        assert self.go.wait(60)


async def post_status(client: Client) -> int:
    """Send evidence within the running loop; return the status of the response."""
    return (await client.send("POST", "/verify", json.dumps(GOOD).encode())).status


def test_verify_blocked_threads_leave_event_loop_free(make_client: MakeClient) -> None:
    """While verifications wait, other requests are answered, and those over the limit with 503."""
    verifier = BlockingVerifier()
    client = make_client(verifier, limit=3)

    async def scenario() -> None:
        tasks = [asyncio.ensure_future(post_status(client)) for _ in range(3)]
        for _ in range(2):  # the third waits for a thread
            assert await asyncio.to_thread(verifier.entered.acquire, timeout=60)
        assert (await client.send("GET", "/health")).status == 200
        assert await post_status(client) == 503
        assert not any(task.done() for task in tasks)
        verifier.go.set()
        assert await asyncio.gather(*tasks) == [200, 200, 200]
        assert await post_status(client) == 200

    client.loop.run_until_complete(scenario())


def test_verify_timed_out_in_queue_is_not_executed(make_client: MakeClient) -> None:
    """A request that timed out in the queue never occupies a thread."""
    verifier = BlockingVerifier()
    with JobThreads(1) as executor:
        client = make_client(verifier, executor, seconds=0.05)
        for _ in range(3):
            check_error(client.post("/verify", GOOD), 503)
        verifier.go.set()
    assert len(verifier.opened) <= 1


class FetchingVerifier(BlockingVerifier):
    """A verifier that blocks only while `fetches` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.before = lambda: None
        self.fetches = True

    def authenticate(self) -> object:
        """Block as a slow PCCS does, if a fetch is needed."""
        if self.fetches:
            self._wait()
        return super().authenticate()


class CountingThreads(JobThreads):
    """Threads with a semaphore that counts submissions."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self.submitted = asyncio.Semaphore(0)

    def submit(self, work: Callable[[], object], /) -> None:
        """Submit a job."""
        self.submitted.release()
        super().submit(work)


def test_verify_cached_evidence_is_not_delayed_by_fetches(make_client: MakeClient) -> None:
    """Evidence with cached collateral is verified while all fetch slots and threads are taken."""
    verifier = FetchingVerifier()
    with CountingThreads(1) as fetcher:
        client = make_client(verifier, fetcher=fetcher, limit=2, fetches=3)

        async def scenario() -> None:
            tasks = []
            for _ in range(3):  # one occupies the thread, the others are queued
                tasks.append(asyncio.ensure_future(post_status(client)))
                await asyncio.wait_for(fetcher.submitted.acquire(), 60)
            assert await asyncio.to_thread(verifier.entered.acquire, timeout=60)
            assert await post_status(client) == 503
            verifier.fetches = False
            for _ in range(3):
                assert await post_status(client) == 200
            assert not any(task.done() for task in tasks)
            verifier.go.set()
            assert await asyncio.gather(*tasks) == [200, 200, 200]

        client.loop.run_until_complete(scenario())


@pytest.mark.parametrize(
    ("kind", "pool", "limit", "full"),
    [
        (BlockingVerifier, "executor", "limit", "waiting"),
        (FetchingVerifier, "fetcher", "fetches", "to be fetched"),
    ],
)
def test_verify_timeout_is_503_and_keeps_slot(
    make_client: MakeClient, kind: type[BlockingVerifier], pool: str, limit: str, full: str
) -> None:
    """A timeout returns 503; its slot is released when its thread has finished."""
    verifier = kind()
    with JobThreads(1) as executor:
        client = make_client(verifier, seconds=0.05, **{pool: executor, limit: 1})
        response = client.post("/verify", GOOD)
        assert "0.05 s" in check_error(response, 503)
        assert response.headers["retry-after"] == "10"
        assert full in check_error(client.post("/verify", GOOD), 503)
        verifier.go.set()
        executor.shutdown(seconds=60)
    # The thread has finished, so the next request is not refused for lack of a slot.
    assert "shutting down" in check_error(client.post("/verify", GOOD), 503)


def test_verify_client_disconnect_sends_nothing(client: Client) -> None:
    """No response is sent after a disconnect in the middle of a request."""
    assert client.disconnect("/verify") == []


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"quote": "04", "event_log": "[]"}, "Failed to create attestation"),
        ({"attestation": "000102"}, "Failed to decode attestaion"),
    ],
)
def test_verify_unreadable_evidence_cause_is_logged(
    client: Client, caplog: pytest.LogCaptureFixture, request_: dict[str, str], reason: str
) -> None:
    """The client receives the documented text and the id under which the cause is logged."""
    response = client.post("/verify", request_)
    assert response.json()["reason"] == f"Internal error: {reason}"
    request_id = response.headers["x-attestkit-request"]
    [record] = caplog.records
    assert request_id in record.getMessage()
    assert reason not in record.getMessage()
    assert len(record.getMessage()) > 60


def test_verify_unreadable_evidence_log_is_escaped(
    client: Client, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The logged cause is one bounded line of ASCII, even if it quotes untrusted input."""

    def hostile(*_: object) -> None:
        raise FormatError("\x1b[2J\n\u202e" * 4000, reason="syntax")

    monkeypatch.setattr(Attestation, "from_quote_and_log", hostile)
    response = client.post("/verify", {"quote": "04", "event_log": "[]"})
    assert response.json()["reason"] == "Internal error: Failed to create attestation"
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert len(record.getMessage()) < 3100
    assert record.getMessage().isprintable()
    assert record.getMessage().isascii()


def test_verify_readable_evidence_is_not_logged(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither valid evidence nor a request without evidence is logged."""
    assert "x-attestkit-request" not in client.post("/verify", GOOD).headers
    assert "x-attestkit-request" not in client.post("/verify", {}).headers
    assert caplog.records == []
