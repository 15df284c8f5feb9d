"""httpx and httpx2 send no byte of a request to a server that is not proven."""

import contextlib
import json
import os
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from attestkit.client.wire.httpcore_streams import ProvenOrigin, ProvingBackend
from attestkit.client.wire.httpx_transport import http_transports
from attestkit.client.wire.tls import tls_context
from attestkit.errors import ServiceError, UsageError
from attestkit.ra_tls import PeerRefusedError
from tests.client.wire.authority import authority, identity
from tests.client.wire.httpx_transport.httpx_clients import calling, every_client, iter_of
from tests.client.wire.servers import (
    TIMEOUT,
    WireServerLike,
    http_answer,
    serving,
)
from tests.client.wire.simple_verifier import SimpleServerVerifier
from tests.raising import raises
from tests.runner.cases import every_case


@every_client
def test_httpx_proves_once_and_then_sends(kind: str) -> None:
    """The first request is sent after the proof; later ones need neither proof nor connection."""
    with serving() as server:
        server_verifier = SimpleServerVerifier(server)
        with calling(kind, server_verifier) as caller:
            for target in ("/one", "/two?x=1"):
                answer = caller.post(server.url + target, content=b"body")
                assert answer.json()["target"] == target
                assert answer.json()["body"] == "body"
        assert server_verifier.proofs == server.questions == len(server.connections) == 1


@every_client
def test_httpx_refuses_relay_with_its_own_key(kind: str) -> None:
    """A server with another's document under its own key gets the question alone."""
    with serving("relay") as server:
        server_verifier = SimpleServerVerifier(server, "a")
        server.claimed = identity("a").spki_sha256
        options = {"verify": False, "trust_env": True}  # of the client, and without effect
        with (
            calling(kind, server_verifier, client=options) as caller,
            raises(PeerRefusedError, "other_key") as caught,
        ):
            caller.post(server.url, content=b"secret")
        assert isinstance(caught.value.__cause__, ServiceError), "the cause is kept"
        assert server.questions == 1
        assert server.received == b""


@every_client
def test_httpx_refuses_swapped_key_on_later_connections(kind: str) -> None:
    """A key that changes between two connections is proven afresh, and refused."""
    with serving(answer=then_close) as server:
        server_verifier = SimpleServerVerifier(server)
        with calling(kind, server_verifier) as caller:
            caller.get(server.url + "/first")
            server.use("swapped")
            with raises(PeerRefusedError, "other_key"):
                caller.post(server.url + "/second", content=b"secret")
        assert server.requests == [b"/first"]
        assert server.connections[1].received == b""


def then_close(secured: ssl.SSLSocket, _head: bytes, _body: bytes) -> None:
    """Answer, and close the connection."""
    secured.sendall(http_answer(b"{}", "Connection: close"))
    raise ConnectionError


@every_client
def test_httpx_proves_rotated_key(kind: str) -> None:
    """A new key whose document is genuine is proven, and then used without a repetition."""
    with serving(answer=then_close) as server:
        server_verifier = SimpleServerVerifier(server, "a", "b")
        with calling(kind, server_verifier) as caller:
            caller.get(server.url + "/first")
            server.use("b")
            caller.get(server.url + "/second")
            caller.get(server.url + "/third")
        assert server.requests == [b"/first", b"/second", b"/third"]
        assert server.questions == 2


@every_client
def test_httpx_leaves_idle_connection_when_proof_ends(kind: str) -> None:
    """A kept connection of an ended proof gets no request; the next one is proven afresh."""
    with serving() as server:
        server_verifier = SimpleServerVerifier(server)
        with calling(kind, server_verifier) as caller:
            caller.get(server.url + "/first")
            server_verifier.forget()
            caller.get(server.url + "/second")
            assert [one.requests for one in server.connections] == [[b"/first"], [b"/second"]]
            assert server.connections[0].ended.wait(TIMEOUT), "the old pool is closed"
        assert server.questions == 2


@every_client
def test_httpx_refuses_server_that_fails_a_later_proof(kind: str) -> None:
    """After the end of a proof, the same key that is not genuine any more gets nothing."""
    with serving() as server:
        server_verifier = SimpleServerVerifier(server)
        with calling(kind, server_verifier) as caller:
            caller.get(server.url + "/first")
            server_verifier.forget()
            server_verifier.genuine.clear()
            with raises(PeerRefusedError, "other_key"):
                caller.get(server.url + "/second")
        assert server.requests == [b"/first"]


@every_client
def test_httpx_finishes_stream_when_proof_ends(kind: str) -> None:
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
        with calling(kind, server_verifier) as caller:
            response = caller.open(server.url + "/stream")
            pieces = caller.pieces(response)
            assert next(pieces) == b"one"
            server_verifier.forget()
            caller.get(server.url + "/other")
            release.set()
            assert list(pieces) == [b"two"]
            caller.close_response(response)
            assert server.connections[0].ended.wait(TIMEOUT), "the old pool is closed after it"
            assert not server.connections[1].ended.is_set()
        assert server.questions == 2


@every_client
def test_httpx_checks_the_proof_when_the_request_is_written(kind: str) -> None:
    """A proof that ends after the pool was chosen stops the request, which is sent elsewhere."""
    with serving() as server:
        server_verifier = SimpleServerVerifier(server)
        with calling(kind, server_verifier) as caller:
            caller.get(server.url + "/first")
            acquire = caller.transport.pools.acquire
            ends = iter([server_verifier.forget])

            def late() -> Any:
                chosen = acquire()
                next(ends, lambda: None)()
                return chosen

            caller.transport.pools.acquire = late
            answer = caller.post(server.url + "/second", content=iter_of(caller, b"ab", b"cd"))
            assert answer.json()["body"] == "abcd"
        assert [one.requests for one in server.connections] == [[b"/first"], [b"/second"]]


@every_client
@every_case(
    ("location", "error", "reason"),
    [
        ("https://other.example/x", ServiceError, "other_origin"),
        ("https://127.0.0.1:1/x", ServiceError, "other_origin"),
        ("https://127.0.0.1/x", ServiceError, "other_origin"),
        ("https://127.0.0.1@other.example/x", ServiceError, "other_origin"),
        ("http://127.0.0.1/x", UsageError, "plain_http"),
    ],
)
def test_httpx_refuses_redirect_to_another_origin(
    kind: str, location: str, error: Any, reason: str
) -> None:
    """A redirect that the client follows fails before any connection."""

    def answer(secured: ssl.SSLSocket, _head: bytes, _body: bytes) -> None:
        secured.sendall(http_answer(b"", f"Location: {location}", status="307 Temporary Redirect"))

    with serving(answer=answer) as server:
        options = {"follow_redirects": True}
        with (
            calling(kind, SimpleServerVerifier(server), client=options) as caller,
            raises(error, reason),
        ):
            caller.post(server.url, content=b"secret")
        assert len(server.connections) == 1


@every_client
def test_httpx_follows_redirect_within_the_origin(kind: str) -> None:
    """A redirect to the same server is followed."""

    def answer(secured: ssl.SSLSocket, head: bytes, _body: bytes) -> None:
        if b" /old " in head:
            secured.sendall(http_answer(b"", "Location: /new", status="308 Permanent Redirect"))
        else:
            secured.sendall(http_answer(head.split(b" ")[1]))

    with serving(answer=answer) as server:
        options = {"follow_redirects": True}
        with calling(kind, SimpleServerVerifier(server), client=options) as caller:
            assert caller.get(server.url + "/old").text == "/new"
        assert len(server.connections) == 1


@pytest.mark.parametrize("library", ["httpx", "httpx2"])
def test_httpx_proves_once_for_many_threads(library: str) -> None:
    """32 requests at once share one proof, and none is sent before it."""
    with serving() as server:
        server_verifier = SimpleServerVerifier(server)
        barrier = threading.Barrier(32)
        with calling(library, server_verifier) as caller, ThreadPoolExecutor(32) as threads:

            def call(number: int) -> str:
                barrier.wait(TIMEOUT)
                target: str = caller.post(f"{server.url}/{number}", content=b"x").json()["target"]
                return target

            targets = set(threads.map(call, range(32)))
        assert targets == {f"/{number}" for number in range(32)}
        assert server_verifier.proofs == server.questions == 1


@pytest.mark.slow
@pytest.mark.parametrize("library", ["httpx", "httpx2"])
@pytest.mark.parametrize("connections", [1, 100])
def test_httpx_refuses_for_many_threads(library: str, connections: int) -> None:
    """32 requests at once to a relay: each is refused, also those that wait for a connection."""
    with serving("relay") as server:
        server_verifier = SimpleServerVerifier(server)
        limits = pytest.importorskip(library).Limits(max_connections=connections)
        with (
            calling(library, server_verifier, limits=limits) as caller,
            ThreadPoolExecutor(32) as threads,
        ):

            def call(_: int) -> str:
                with pytest.raises(PeerRefusedError) as caught:
                    caller.post(server.url, content=b"secret")
                return caught.value.reason

            assert set(threads.map(call, range(32))) == {"other_key"}
        assert server.received == b""


@pytest.mark.parametrize("library", ["httpx", "httpx2"])
def test_httpx_forked_process_opens_connections_of_its_own(library: str) -> None:
    """After a fork, parent and child do not share a connection; a key stays proven in both."""
    with serving() as server:
        server_verifier = SimpleServerVerifier(server)
        with calling(library, server_verifier) as caller:
            caller.get(server.url + "/before")
            child = os.fork()
            if child == 0:  # no exception may leave the child
                status = 1
                try:
                    answer = caller.get(server.url + "/child")
                    status = 0 if answer.json()["target"] == "/child" else 2
                finally:
                    os._exit(status)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            caller.get(server.url + "/after")
        assert [one.requests for one in server.connections] == [
            [b"/before", b"/after"],
            [b"/child"],
        ]
        assert server.questions == 1


def test_httpx_transports_are_of_the_library() -> None:
    """The transports are instances of the base classes of each library."""
    for name in ("httpx", "httpx2"):
        library = pytest.importorskip(name)
        found = http_transports(name)
        assert issubclass(found.blocking, library.BaseTransport)
        assert issubclass(found.asynchronous, library.AsyncBaseTransport)


def test_httpx_transport_refuses_context_that_proves_by_itself() -> None:
    """A context with sockets of another kind is refused, and so is a proxy that is not a URL."""
    server_verifier = SimpleServerVerifier(WireServerLike())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.sslsocket_class = type("Socket", (ssl.SSLSocket,), {})
    kind = http_transports("httpx").blocking
    with raises(UsageError, "wrong_type", part="tls_context"):
        kind(server_verifier, context)
    with raises(UsageError, "wrong_value", start="proxy:"):
        kind(server_verifier, tls_context(authority().pem), proxy="gopher://x")


def test_httpx_stream_sends_nothing_before_tls() -> None:
    """A stream without proxy writes nothing at all before the server is proven."""
    httpcore: Any = pytest.importorskip("httpcore")
    with serving() as server:
        origin = ProvenOrigin(SimpleServerVerifier(server), tls_context(), httpcore, proxied=False)
        stream = ProvingBackend(origin, httpcore).connect_tcp("127.0.0.1", server.port)
        with contextlib.closing(stream), pytest.raises(ConnectionError, match="not verified"):
            stream.write(b"GET / HTTP/1.1\r\n\r\n")


def test_httpx_echo_is_whole() -> None:
    """The tests' server reports what it received."""
    with serving() as server, calling("httpx", SimpleServerVerifier(server)) as caller:
        answer = caller.post(server.url + "/p", content=b"abc")
        assert json.loads(answer.content)["body"] == "abc"
        assert server.received.endswith(b"\r\n\r\nabc") or b"abc" in server.received
