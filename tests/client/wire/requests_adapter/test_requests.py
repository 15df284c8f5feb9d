"""Requests sends no byte of a request to a server that is not proven."""

import gzip
import hashlib
import io
import os
import pickle
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from attestkit.client.wire.exchange import MAX_CONNECTIONS
from attestkit.client.wire.requests_adapter import AttestedAdapter
from attestkit.client.wire.tls import tls_context
from attestkit.errors import ServiceError, UsageError
from attestkit.ra_tls import PeerRefusedError
from tests.client.wire.authority import authority, identity
from tests.client.wire.requests_adapter.requests_sessions import post, session_of
from tests.client.wire.servers import TIMEOUT, http_answer, serving
from tests.client.wire.simple_verifier import NeverRemembers, SimpleServerVerifier
from tests.raising import raises
from tests.runner.cases import every_case


def test_requests_proves_once_and_then_sends() -> None:
    """The first request is sent after the proof; later ones need neither proof nor connection."""
    with serving() as server:
        server_verifier = SimpleServerVerifier(server)
        with session_of(server_verifier) as session:
            for target in ("/one", "/two?x=1"):
                answer = post(session, server.url + target).json()
                assert (answer["target"], answer["body"]) == (target, "secret")
        assert server_verifier.proofs == server.questions == len(server.connections) == 1


def test_requests_refuses_relay_with_its_own_key() -> None:
    """The refusal is raised itself, with its cause, and not inside of an error of requests."""
    with serving("relay", claimed=identity("a").spki_sha256) as server:
        server_verifier = SimpleServerVerifier(server)
        with (
            session_of(server_verifier) as session,
            raises(PeerRefusedError, "other_key") as caught,
        ):
            post(session, server.url)
        assert isinstance(caught.value.__cause__, ServiceError)
        assert server.questions == 1
        assert server.received == b""


def test_requests_refuses_swapped_key_on_later_connections() -> None:
    """A key that changes between two connections is proven afresh, and refused."""
    with serving(answer=then_close) as server:
        with session_of(SimpleServerVerifier(server)) as session:
            post(session, server.url + "/first")
            server.use("swapped")
            with raises(PeerRefusedError, "other_key"):
                post(session, server.url + "/second")
        assert server.requests == [b"/first"]
        assert server.connections[1].received == b""


def then_close(secured: ssl.SSLSocket, _head: bytes, _body: bytes) -> None:
    """Answer, and close the connection."""
    secured.sendall(http_answer(b"{}", "Connection: close"))
    raise ConnectionError


def test_requests_proves_rotated_key() -> None:
    """A new key whose document is genuine is proven, and then used without a repetition."""
    with serving(answer=then_close) as server:
        with session_of(SimpleServerVerifier(server, "a", "b")) as session:
            post(session, server.url + "/first")
            server.use("b")
            post(session, server.url + "/second")
            post(session, server.url + "/third")
        assert server.requests == [b"/first", b"/second", b"/third"]
        assert server.questions == 2


def test_requests_leaves_idle_connection_when_proof_ends() -> None:
    """A kept connection of an ended proof gets no request; the next one is proven afresh."""
    with serving() as server:
        server_verifier = SimpleServerVerifier(server)
        with session_of(server_verifier) as session:
            post(session, server.url + "/first")
            server_verifier.forget()
            post(session, server.url + "/second")
            assert [one.requests for one in server.connections] == [[b"/first"], [b"/second"]]
            assert server.connections[0].ended.wait(TIMEOUT), "the old pool is closed"
        assert server.questions == 2


def test_requests_checks_the_proof_when_the_request_is_written() -> None:
    """A proof that ends after the pool was chosen stops the request, which is sent elsewhere."""
    with serving() as server:
        server_verifier = SimpleServerVerifier(server)
        with session_of(server_verifier) as session:
            post(session, server.url + "/first")
            adapter: Any = session.get_adapter(server.url)
            acquire = adapter._pools.acquire
            ends = iter([server_verifier.forget])

            def late() -> Any:
                chosen = acquire()
                next(ends, lambda: None)()
                return chosen

            adapter._pools.acquire = late
            pieces = iter([b"ab", b"cd"])
            assert session.post(server.url + "/second", data=pieces).json()["body"] == "abcd"
        assert [one.requests for one in server.connections] == [[b"/first"], [b"/second"]]


def test_requests_finishes_stream_when_proof_ends() -> None:
    """An answer under way is read to its end, while new requests are proven afresh."""
    release = threading.Event()

    def answer(secured: ssl.SSLSocket, head: bytes, _body: bytes) -> None:
        if b" /stream " in head:
            secured.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
            assert release.wait(TIMEOUT)
            secured.sendall(b"3\r\ntwo\r\n0\r\n\r\n")
        else:
            secured.sendall(http_answer(b"{}"))

    with serving(answer=answer) as server:
        server_verifier = SimpleServerVerifier(server)
        with session_of(server_verifier) as session:
            with session.get(server.url + "/stream", stream=True) as response:
                pieces = response.iter_content(512)
                assert next(pieces) == b"one", "a piece is there before the next one comes"
                server_verifier.forget()
                session.get(server.url + "/other")
                release.set()
                assert list(pieces) == [b"two"]
            assert server.connections[0].ended.wait(TIMEOUT), "the old pool is closed after it"
            assert not server.connections[1].ended.is_set()
        assert server.questions == 2


@every_case(
    ("location", "error", "reason"),
    [
        ("https://other.example/x", ServiceError, "other_origin"),
        ("https://127.0.0.1:1/x", ServiceError, "other_origin"),
        ("https://127.0.0.1/x", ServiceError, "other_origin"),
        ("https://127.0.0.1@other.example/x", ServiceError, "other_origin"),
        (r"https://other.example\@127.0.0.1/x", ServiceError, "other_origin"),
        ("http://127.0.0.1/x", UsageError, "plain_http"),
    ],
)
def test_requests_refuses_redirect_to_another_origin(
    location: str, error: Any, reason: str
) -> None:
    """A redirect, which requests follows by itself, fails before any connection."""

    def answer(secured: ssl.SSLSocket, _head: bytes, _body: bytes) -> None:
        secured.sendall(http_answer(b"", f"Location: {location}", status="307 Temporary Redirect"))

    with serving(answer=answer) as server:
        with session_of(SimpleServerVerifier(server)) as session, raises(error, reason):
            post(session, server.url)
        assert len(server.connections) == 1


def test_requests_refuses_ports_that_begin_like_its_own() -> None:
    """Requests chooses adapters by prefix; a longer port is of another server."""
    with serving() as server, session_of(SimpleServerVerifier(server)) as session:
        adapter = session.get_adapter(server.url)
        session.mount(server.url, adapter)
        with raises(ServiceError, "other_origin"):
            session.get(f"{server.url[:-1]}")
        with raises(ServiceError, "other_origin"):
            session.get(server.url.replace("127.0.0.1", "127.0.0.1.example"))
    assert server.connections == []


def test_requests_opens_another_connection_after_closed_document() -> None:
    """A server that closes after its document gets the request on the next connection, once."""
    with serving(close_after_document=1) as server:
        with session_of(SimpleServerVerifier(server)) as session:
            answer = session.post(server.url + "/x", data=iter([b"ab", b"cd"]))
            assert answer.json()["body"] == "abcd"
        assert server.requests == [b"/x"]
        assert len(server.connections) == 2
        assert server.questions == 1


def test_requests_gives_up_when_no_connection_is_kept() -> None:
    """A server that always closes after its document is refused after a few connections."""
    with serving(close_after_document=100) as server:
        server_verifier = SimpleServerVerifier(server)
        server_verifier.accepted = NeverRemembers()
        with session_of(server_verifier) as session, raises(ServiceError, "connection"):
            post(session, server.url)
        assert len(server.connections) == MAX_CONNECTIONS
        assert server.received == b""


def test_requests_gives_up_on_hanging_server() -> None:
    """A server that does not answer the question is refused in time."""
    with serving(hang=True) as server:
        server_verifier = SimpleServerVerifier(server, seconds=0.2)
        with session_of(server_verifier) as session, raises(PeerRefusedError, "timeout"):
            post(session, server.url)
        assert server.received == b""
        assert server.connections[0].ended.wait(TIMEOUT), "the connection is closed"


@pytest.mark.parametrize("part", ["extra", "first"])
def test_requests_refuses_bytes_beside_the_document(part: str) -> None:
    """Bytes before the question or after the document are not an answer to a request."""
    with serving() as server:
        setattr(server, part, http_answer(b"forged"))
        with session_of(SimpleServerVerifier(server)) as session, pytest.raises(PeerRefusedError):
            post(session, server.url)
        assert server.received == b""


def test_requests_asks_nobody_when_closed() -> None:
    """A closed endpoint, or one that was refused lately, opens no connection."""
    with serving() as server:
        server_verifier = SimpleServerVerifier(server)
        server_verifier.closed = UsageError("endpoint: closed", reason="closed")
        with session_of(server_verifier) as session, raises(UsageError, "closed"):
            post(session, server.url)
        assert server.connections == []


def test_requests_raises_its_own_errors_of_io() -> None:
    """Errors of I/O are those of requests, and old refusals are not found in them."""

    def cut(secured: ssl.SSLSocket, head: bytes, _body: bytes) -> None:
        if b" /hang " in head:
            secured.recv(1)
        elif b" /part " in head:
            secured.sendall(http_answer(b"x" * 9)[:-1])
        raise ConnectionError

    with serving(answer=cut) as server, session_of(SimpleServerVerifier(server)) as session:
        try:
            refuse()
        except PeerRefusedError:
            with pytest.raises(requests.ConnectionError):
                session.get(server.url + "/nothing")
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            session.get(server.url + "/part")
        with pytest.raises(requests.ReadTimeout):
            session.get(server.url + "/hang", timeout=(TIMEOUT, 0.1))


def refuse() -> None:
    """Raise the refusal of another server."""
    raise PeerRefusedError("of something else", reason="other")


@pytest.mark.parametrize("streamed", [False, True])
def test_requests_bodies_arrive_whole(streamed: bool) -> None:
    """Bodies of all forms are sent and recorded, and answers are decoded below which is the tap."""
    packed = gzip.compress(b"answer " * 10_000)
    records: list[Any] = []

    def answer(secured: ssl.SSLSocket, head: bytes, body: bytes) -> None:
        assert body == b"some body"
        if b" /chunked " in head:
            secured.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            for part in (packed[:10], packed[10:]):
                secured.sendall(b"%x\r\n%b\r\n" % (len(part), part))
            secured.sendall(b"0\r\n\r\n")
        else:
            secured.sendall(http_answer(packed, "Content-Encoding: gzip"))

    with serving(answer=answer) as server:
        with session_of(SimpleServerVerifier(server), on_answer=records.append) as session:
            forms: list[Any] = ["some body", b"some body", io.BytesIO(b"some body")]
            forms += [io.StringIO("some body"), iter([b"some ", b"body"]), iter(["some ", "body"])]
            for form in forms:
                target = "/chunked" if streamed else "/known"
                with session.post(server.url + target, data=form, stream=streamed) as response:
                    assert response.content == b"answer " * 10_000
                record: Any = response.raw
                assert record.record.request_sha256 == hashlib.sha256(b"some body").digest()
                assert record.record.response_sha256 == hashlib.sha256(packed).digest()
        assert len(records) == len(forms)
        assert b"Accept-Encoding: identity" in server.received
        assert len(server.connections) == 1, "each answer was read to its end"


def test_requests_head_and_empty_answers_end() -> None:
    """An answer without body is complete at once."""

    def answer(secured: ssl.SSLSocket, head: bytes, _body: bytes) -> None:
        if head.startswith(b"HEAD"):
            secured.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n")
        else:
            secured.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

    records: list[Any] = []
    with serving(answer=answer) as server:
        with session_of(SimpleServerVerifier(server), on_answer=records.append) as session:
            assert session.head(server.url).content == b""
            assert session.delete(server.url).content == b""
        assert [one.response_sha256 for one in records] == [hashlib.sha256().digest()] * 2
        assert len(server.connections) == 1


def test_requests_proves_once_for_many_threads() -> None:
    """32 requests at once share one proof, and none is sent before it."""
    with serving() as server:
        server_verifier = SimpleServerVerifier(server)
        barrier = threading.Barrier(32)
        with session_of(server_verifier) as session, ThreadPoolExecutor(32) as threads:

            def call(number: int) -> str:
                barrier.wait(TIMEOUT)
                target: str = post(session, f"{server.url}/{number}").json()["target"]
                return target

            targets = set(threads.map(call, range(32)))
        assert targets == {f"/{number}" for number in range(32)}
        assert server_verifier.proofs == server.questions == 1


def test_requests_forked_process_opens_connections_of_its_own() -> None:
    """After a fork, parent and child do not share a connection; a key stays proven in both."""
    with serving() as server:
        with session_of(SimpleServerVerifier(server)) as session:
            session.get(server.url + "/before")
            child = os.fork()
            if child == 0:  # no exception may leave the child
                status = 1
                try:
                    answer = session.get(server.url + "/child")
                    status = 0 if answer.json()["target"] == "/child" else 2
                finally:
                    os._exit(status)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            session.get(server.url + "/after")
        assert [one.requests for one in server.connections] == [
            [b"/before", b"/after"],
            [b"/child"],
        ]
        assert server.questions == 1


def test_requests_digest_authentication_stays_on_the_adapter() -> None:
    """The second request of digest authentication is sent by the adapter, too."""

    def answer(secured: ssl.SSLSocket, head: bytes, _body: bytes) -> None:
        if b"Authorization: Digest" in head:
            secured.sendall(http_answer(b"welcome"))
        else:
            challenge = 'WWW-Authenticate: Digest realm="r", nonce="n", qop="auth"'
            secured.sendall(http_answer(b"", challenge, status="401 Unauthorized"))

    with serving(answer=answer) as server, session_of(SimpleServerVerifier(server)) as session:
        auth = requests.auth.HTTPDigestAuth("user", "password")
        answered = session.get(server.url, auth=auth)
        assert answered.text == "welcome"
        adapter: Any = answered.connection
        assert isinstance(adapter, AttestedAdapter)


def test_requests_keeps_cookies() -> None:
    """Cookies of answers are kept by the session, as always."""

    def answer(secured: ssl.SSLSocket, head: bytes, _body: bytes) -> None:
        cookie = b"1" if b"Cookie: seen=1" in head else b"none"
        secured.sendall(http_answer(cookie, "Set-Cookie: seen=1; Secure; Path=/"))

    with serving(answer=answer) as server, session_of(SimpleServerVerifier(server)) as session:
        assert [session.get(server.url).text for _ in range(2)] == ["none", "1"]


def test_requests_adapter_refuses_wrong_arguments() -> None:
    """A context that proves nothing, a client certificate, and pickling are refused."""
    with serving() as server:
        server_verifier = SimpleServerVerifier(server)
        with raises(UsageError, "wrong_type", part="pinned_context"):
            AttestedAdapter(server_verifier, tls_context(authority().pem))
        with session_of(server_verifier) as session:
            with raises(UsageError, "not_applicable", start="cert:"):
                session.get(server.url, cert="client.pem")
            with pytest.raises(TypeError, match="cannot be pickled"):
                pickle.dumps(session.get_adapter(server.url))
        assert server.connections == []
