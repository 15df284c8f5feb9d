"""Bodies are sealed before they are sent, answers are opened while they come, both are recorded."""

import contextlib
import hashlib
import ssl
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from attestkit.client.sealing.protocol import SealingKeyError
from attestkit.client.wire import exchange
from attestkit.client.wire.attested_tls import pinned_context
from attestkit.client.wire.exchange import MAX_AT_ONCE, MAX_BEGINNING, WireRecord
from attestkit.client.wire.requests_adapter import requests_session
from attestkit.errors import ServiceError
from attestkit.ra_tls import PeerRefusedError
from tests.client.wire.authority import authority
from tests.client.wire.httpx_transport.httpx_clients import KINDS, calling, every_client
from tests.client.wire.sealings import END, ForgetfulSealing, ToySealing, masked
from tests.client.wire.servers import TIMEOUT, http_answer, serving
from tests.client.wire.simple_verifier import SimpleServerVerifier
from tests.raising import raises


class RequestsCaller:
    """Requests with the face of the callers of httpx."""

    def __init__(self, session: requests.Session) -> None:
        self.session = session

    def post(self, url: str, content: Any = None, **options: Any) -> requests.Response:
        """Send a request and read its answer."""
        return self.session.post(url, data=content, **options)

    def get(self, url: str) -> requests.Response:
        """Send a request and read its answer."""
        return self.session.get(url)


@contextlib.contextmanager
def caller_of(kind: str, server_verifier: SimpleServerVerifier, **options: Any) -> Iterator[Any]:
    """Run with a client of a kind, requests among them."""
    if kind != "requests":
        with calling(kind, server_verifier, **options) as caller:
            yield caller
        return
    context = pinned_context(server_verifier, authority().pem)
    with requests_session(server_verifier, context, **options) as session:
        yield RequestsCaller(session)


def record_of(answer: Any) -> WireRecord:
    """Return the record of an answer."""
    found = exchange.record_of(answer)
    assert found is not None
    return found


every_kind = pytest.mark.parametrize("kind", [*KINDS, "requests"])


def sealed_echo(secured: ssl.SSLSocket, head: bytes, body: bytes) -> None:
    """Answer a sealed body with the same, sealed."""
    content = (masked(body) if b"x-sealed: yes" in head.lower() else body) + b" back"
    secured.sendall(http_answer(masked(content) + END, "X-Sealed: yes", "X-Other: 1"))


@pytest.mark.slow
@every_kind
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [0, 1, 7, 100_000])
def test_sealed_bodies_travel_sealed(kind: str, chunked: bool, size: int) -> None:
    """Only the sealed body is on the wire, in the form that the sealing says."""
    body = b"secret. "[:size] * max(size // 8, 1)
    sealing = ToySealing(chunked=chunked)
    with serving(answer=sealed_echo) as server:
        server_verifier = SimpleServerVerifier(server)
        with caller_of(kind, server_verifier, sealing=lambda: sealing) as caller:
            answer = caller.post(server.url + "/x?y=1", content=body, headers={"X-Mine": "2"})
            assert answer.content == body + b" back"
            assert answer.headers["x-other"] == "1"
            assert "x-sealed" not in answer.headers
            assert "content-length" not in answer.headers
            record = record_of(answer)
        assert (record.sealed, record.authenticated, record.status) == (True, True, 200)
        assert record.request_sha256 == hashlib.sha256(masked(body)).digest()
        sent = masked(body + b" back") + END
        assert record.response_sha256 == hashlib.sha256(sent).digest()
        assert record.beginning == sent[:MAX_BEGINNING]
        assert ("x-sealed", "yes") in [(name.lower(), value) for name, value in record.headers]
        received = server.received.lower()
        assert server.requests == [b"/sealed/x?y=1"]
        assert b"secret" not in received
        assert b"x-mine: 2" in received
        assert b"accept-encoding: identity" in received
        assert received.count(b"accept-encoding") == 1
        assert (b"transfer-encoding: chunked" in received) is chunked
        assert (b"content-length:" in received) is not chunked
        method, target, headers, given = sealing.seen[0]
        assert (method, target, given) == ("POST", "/x?y=1", body)
        assert "content-length" not in [name.lower() for name, _ in headers]


@every_kind
def test_sealed_bodies_are_read_whole(kind: str) -> None:
    """A body that is made piece by piece is sealed as one."""
    with serving(answer=sealed_echo) as server:
        server_verifier = SimpleServerVerifier(server)
        with caller_of(kind, server_verifier, sealing=ToySealing) as caller:

            async def pieces() -> Any:
                yield b"one "
                yield b"two"

            body = pieces() if "async" in kind else iter([b"one ", b"two"])
            assert caller.post(server.url, content=body).content == b"one two back"


@every_kind
def test_sealed_bodies_that_cannot_be_sealed_are_not_sent(kind: str) -> None:
    """A request that the sealing refuses opens no connection."""
    with serving() as server:
        server_verifier = SimpleServerVerifier(server)
        with (
            caller_of(kind, server_verifier, sealing=ToySealing) as caller,
            raises(ServiceError, "sealing"),
        ):
            caller.get(server.url + "/secret")
        assert server.connections == []


@every_kind
def test_sealed_bodies_are_not_sent_to_unproven_server(kind: str) -> None:
    """Sealing does not replace the proof of the connection."""
    with serving("relay") as server:
        server_verifier = SimpleServerVerifier(server)
        options = {"sealing": ToySealing}
        with (
            caller_of(kind, server_verifier, **options) as caller,
            raises(PeerRefusedError, "other_key"),
        ):
            caller.post(server.url, content=b"secret")
        assert server.received == b""


@every_kind
def test_sealed_bodies_refuse_plain_answer(kind: str) -> None:
    """An answer that is not sealed is refused, and its connection is not used again."""

    def answer(secured: ssl.SSLSocket, _head: bytes, _body: bytes) -> None:
        secured.sendall(http_answer(b"forged"))

    with serving(answer=answer) as server:
        server_verifier = SimpleServerVerifier(server)
        with caller_of(kind, server_verifier, sealing=ToySealing) as caller:
            for _ in range(2):
                with raises(ServiceError, "sealing"):
                    caller.post(server.url, content=b"secret")
        assert len(server.connections) == 2


@every_kind
def test_sealed_bodies_refuse_truncated_answer(kind: str) -> None:
    """The opener's error at the end of the body is raised as it is."""

    def answer(secured: ssl.SSLSocket, _head: bytes, _body: bytes) -> None:
        secured.sendall(http_answer(masked(b"whole?"), "X-Sealed: yes"))

    with serving(answer=answer) as server:
        server_verifier = SimpleServerVerifier(server)
        with (
            caller_of(kind, server_verifier, sealing=ToySealing) as caller,
            raises(ServiceError, "sealing", part="too early"),
        ):
            caller.post(server.url, content=b"secret")


def test_sealed_bodies_leave_no_connection_after_an_error() -> None:
    """An answer that requests fails to read is closed, and its pool with the end of the proof."""

    def answer(secured: ssl.SSLSocket, _head: bytes, _body: bytes) -> None:
        secured.sendall(http_answer(masked(b"whole?"), "X-Sealed: yes"))

    with serving(answer=answer) as server:
        server_verifier = SimpleServerVerifier(server)
        with caller_of("requests", server_verifier, sealing=ToySealing) as caller:
            adapter = caller.session.get_adapter(server.url)
            with pytest.raises(ServiceError) as caught:
                caller.post(server.url, content=b"secret")
            assert adapter._pools._current.users == 0
            server_verifier.forget()
            with raises(ServiceError, "sealing"):
                caller.post(server.url, content=b"secret")
            assert server.connections[0].ended.wait(TIMEOUT)
            assert caught.value.reason == "sealing"


@every_kind
def test_requests_leave_no_use_of_a_pool_if_an_older_one_fails_to_close(kind: str) -> None:
    """A request that fails while it closes the pool of an ended proof releases its own pool."""
    with serving() as server:
        server_verifier = SimpleServerVerifier(server)
        with caller_of(kind, server_verifier) as caller:
            caller.get(server.url + "/first")
            if kind == "requests":
                pools = caller.session.get_adapter(server.url)._pools
            else:
                pools = caller.transport.pools
            pool, name = pools._current.pool, "aclose" if "async" in kind else "close"
            close = getattr(pool, name)

            def fail() -> Any:
                close()
                raise RuntimeError

            async def fail_async() -> None:
                await close()
                raise RuntimeError

            setattr(pool, name, fail_async if "async" in kind else fail)
            server_verifier.forget()
            with pytest.raises(RuntimeError):
                caller.get(server.url + "/second")
            assert pools._current.users == 0
            caller.get(server.url + "/third")
        assert server.requests == [b"/first", b"/third"]


@every_kind
def test_sealed_bodies_mark_errors_that_are_not_sealed(kind: str) -> None:
    """An error of a gateway is handed out, and marked as not authenticated."""

    def answer(secured: ssl.SSLSocket, _head: bytes, _body: bytes) -> None:
        secured.sendall(http_answer(b"overloaded", status="503 Service Unavailable"))

    with serving(answer=answer) as server:
        server_verifier = SimpleServerVerifier(server)
        with caller_of(kind, server_verifier, sealing=ToySealing) as caller:
            found = caller.post(server.url, content=b"secret")
            assert (found.status_code, found.content) == (503, b"overloaded")
            assert record_of(found).authenticated is False


@every_kind
def test_sealed_bodies_are_optional(kind: str) -> None:
    """Without anything to seal, requests travel unchanged."""
    with serving() as server:
        server_verifier = SimpleServerVerifier(server)
        with caller_of(kind, server_verifier, sealing=lambda: None) as caller:
            answer = caller.post(server.url + "/x", content=b"open")
            assert answer.json()["body"] == "open"
            record = record_of(answer)
            assert (record.sealed, record.authenticated) == (False, True)
            assert record.request_sha256 == hashlib.sha256(b"open").digest()
            assert record.response_sha256 == hashlib.sha256(answer.content).digest()


@every_kind
def test_sealed_answers_are_reported_once_they_ended(kind: str) -> None:
    """The observer is called with each answer that was read whole; no body is encoded."""
    records: list[WireRecord] = []
    with serving() as server:
        server_verifier = SimpleServerVerifier(server)
        with caller_of(kind, server_verifier, on_answer=records.append) as caller:
            answer = caller.post(server.url + "/x", content=b"body")
            assert records == [record_of(answer)]
        assert records[0].response_sha256 == hashlib.sha256(answer.content).digest()
        assert b"accept-encoding: identity" in server.received.lower()


@every_client
def test_sealed_answers_are_opened_as_they_come(kind: str) -> None:
    """Each piece is handed out once it can be opened, and the rest at the end."""

    def answer(secured: ssl.SSLSocket, _head: bytes, _body: bytes) -> None:
        secured.sendall(
            b"HTTP/1.1 200 OK\r\nX-Sealed: yes\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"3\r\n%b\r\n2\r\n%b\r\n1\r\n!\r\n0\r\n\r\n" % (masked(b"abc"), masked(b"de"))
        )

    with serving(answer=answer) as server:
        server_verifier = SimpleServerVerifier(server)
        with calling(kind, server_verifier, sealing=ToySealing) as caller:
            response = caller.open(server.url, "POST", content=b"x")
            assert list(caller.pieces(response)) == [b"ab", b"cd", b"e"]
            caller.close_response(response)


@every_client
def test_sealed_answers_that_are_closed_early_have_no_hash(kind: str) -> None:
    """An answer that was not read to its end has no hash; it is reported once, without one."""
    records: list[WireRecord] = []
    with serving() as server:
        server_verifier = SimpleServerVerifier(server)
        with calling(kind, server_verifier, on_answer=records.append) as caller:
            response = caller.open(server.url, "POST", content=b"x")
            caller.close_response(response)
            assert record_of(response).response_sha256 is None
            caller.close_response(response)
        assert [one.response_sha256 for one in records] == [None]


@every_kind
@pytest.mark.parametrize("answers", ["ok", "lost, ok", "lost, lost", "lost, no renewal", "lost"])
def test_sealed_bodies_are_sealed_anew_once(kind: str, answers: str) -> None:
    """A server without the key gets the request once more, if the caller's renewal allows it."""
    planned = iter(answers.split(", "))
    sealings: list[ForgetfulSealing] = []
    renewals: list[object] = []

    def answer(secured: ssl.SSLSocket, head: bytes, body: bytes) -> None:
        if next(planned) == "lost":
            secured.sendall(http_answer(b"{}", status="422 Unprocessable Content"))
        else:
            sealed_echo(secured, head, body)

    def seal() -> ForgetfulSealing:
        sealings.append(ForgetfulSealing())
        return sealings[-1]

    def renew(refused: object) -> ForgetfulSealing | None:
        renewals.append(refused)
        return None if "no renewal" in answers else seal()

    with serving(answer=answer) as server:
        server_verifier = SimpleServerVerifier(server)
        options: dict[str, Any] = {"sealing": seal}
        if answers != "lost":
            options["renew_sealing"] = renew
        with caller_of(kind, server_verifier, **options) as caller:

            async def pieces() -> Any:
                yield b"bo"
                yield b"dy"

            body = pieces() if "async" in kind else iter([b"bo", b"dy"])
            if answers.endswith("ok"):
                assert caller.post(server.url, content=body).content == b"body back"
            else:
                with pytest.raises(SealingKeyError):
                    caller.post(server.url, content=body)
        assert len(server.requests) == (2 if answers in {"lost, ok", "lost, lost"} else 1)
        assert renewals == ([] if answers in {"ok", "lost"} else sealings[:1])
        assert [len(one.seen) for one in sealings] == [1] * len(server.requests)


@every_kind
def test_sealed_bodies_bound_what_is_read_at_once(kind: str) -> None:
    """An answer that is read before the caller gets it has a limit."""

    def answer(secured: ssl.SSLSocket, _head: bytes, _body: bytes) -> None:
        body = b"x" * (2 * MAX_AT_ONCE)
        secured.sendall(http_answer(body, status="422 Unprocessable Content"))

    with serving(answer=answer) as server:
        server_verifier = SimpleServerVerifier(server)
        with caller_of(kind, server_verifier, sealing=ForgetfulSealing) as caller:
            with raises(ServiceError, "sealing", part="422"):
                caller.post(server.url, content=b"body")
            with raises(ServiceError, "sealing", part="422"):
                caller.post(server.url, content=b"body")
        assert len(server.connections) == 2, "its rest is not taken for another answer"
