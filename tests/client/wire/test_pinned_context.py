"""Libraries with connections of their own send nothing to a key that is not proven."""

import asyncio
import http.client
import select
import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import websockets
import websockets.sync.client
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol

from attestkit import ra_tls
from attestkit.client.wire.steps import ReconnectError
from attestkit.errors import UsageError
from attestkit.ra_tls import PeerRefusedError
from tests.client.wire.pinned_clients import (
    context_of,
    every_loop,
    proven,
    run,
)
from tests.client.wire.servers import TIMEOUT, WireServer, serving
from tests.client.wire.simple_verifier import NeverRemembers, SimpleServerVerifier
from tests.raising import raises


def speak_websocket(secured: ssl.SSLSocket, head: bytes, _body: bytes) -> None:
    """Accept a WebSocket, and echo its messages until it is closed."""
    protocol = ServerProtocol()
    protocol.receive_data(head + b"\r\n\r\n")
    while True:
        for event in protocol.events_received():
            if isinstance(event, Request):
                protocol.send_response(protocol.accept(event))
            elif isinstance(event, Frame) and event.opcode is Opcode.TEXT:
                protocol.send_text(bytes(event.data))
        for data in protocol.data_to_send():
            if not data:  # the end
                raise ConnectionError
            secured.sendall(data)
        data = secured.recv(65536)
        if not data:
            raise ConnectionError
        protocol.receive_data(data)


@every_loop
def test_websockets_talk_to_proven_key(loop: str) -> None:
    """A WebSocket to a proven key works, and stays open when the proof ends."""
    with serving(answer=speak_websocket) as server:
        server_verifier = proven(server)

        async def program() -> None:
            url = server.url.replace("https", "wss")
            async with websockets.connect(
                url, ssl=context_of(server_verifier), proxy=None
            ) as socket_:
                await socket_.send("one")
                assert await socket_.recv() == "one"
                server_verifier.forget()
                await socket_.send("two")
                assert await socket_.recv() == "two"

        run(loop, program())
        assert len(server.connections) == 1


@every_loop
@pytest.mark.parametrize("name", ["a", "relay"])
def test_websockets_refuse_unproven_key(loop: str, name: str) -> None:
    """The handshake of the WebSocket is not sent to a key that is not proven."""
    with serving(name, answer=speak_websocket) as server:
        server_verifier = SimpleServerVerifier(server) if name == "a" else proven(server)

        async def program() -> None:
            url = server.url.replace("https", "wss")
            with raises(PeerRefusedError, "other_key"):
                await websockets.connect(url, ssl=context_of(server_verifier), proxy=None)

        run(loop, program())
        assert server.received == b""


def test_websockets_sync_proves_by_itself() -> None:
    """A client that blocks needs no proof before: its socket asks the question."""
    with serving(answer=speak_websocket) as server:
        server_verifier = SimpleServerVerifier(server)
        url = server.url.replace("https", "wss")
        with websockets.sync.client.connect(
            url, ssl=context_of(server_verifier), proxy=None
        ) as socket_:
            socket_.send("one")
            assert socket_.recv(TIMEOUT) == "one"
        assert server_verifier.proofs == server.questions == 1
        server_verifier.forget()
        server.use("relay")
        with raises(PeerRefusedError, "other_key"):
            websockets.sync.client.connect(url, ssl=context_of(server_verifier), proxy=None)
        assert b"one" not in server.connections[1].received
        assert server.connections[1].received == b""


@every_loop
def test_asyncio_streams_compare_keys(loop: str) -> None:
    """Streams of asyncio work with a proven key, and are refused with another."""
    with serving() as server:
        server_verifier = proven(server)

        async def program() -> None:
            context = context_of(server_verifier)
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=context)
            writer.write(b"GET /x HTTP/1.1\r\n\r\n")
            assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
            writer.close()
            await writer.wait_closed()
            server_verifier.forget()
            with raises(PeerRefusedError, "other_key"):
                await asyncio.open_connection("127.0.0.1", server.port, ssl=context)

        run(loop, program())
        assert server.connections[1].received == b""


@every_loop
@pytest.mark.parametrize(
    "closed",
    [
        UsageError("endpoint: closed", reason="closed"),
        PeerRefusedError("lately", reason="refused_recently"),
    ],
)
def test_asyncio_learns_that_the_endpoint_is_closed(loop: str, closed: Any) -> None:
    """An event loop gets an error of TLS, and does not wait for the end of the handshake."""
    with serving() as server:
        server_verifier = proven(server)
        server_verifier.closed = closed

        async def program() -> None:
            with raises(PeerRefusedError, closed.reason):
                await asyncio.open_connection(
                    "127.0.0.1", server.port, ssl=context_of(server_verifier)
                )

        run(loop, program())
        assert server.received == b""


def http_client(server: WireServer, context: ssl.SSLContext) -> http.client.HTTPSConnection:
    """Return a connection of the standard library."""
    return http.client.HTTPSConnection("127.0.0.1", server.port, context=context, timeout=TIMEOUT)


def test_http_client_proves_by_itself() -> None:
    """The standard library's client is proven inside its handshake, and keeps its timeout."""
    with serving() as server:
        server_verifier = SimpleServerVerifier(server)
        connection = http_client(server, context_of(server_verifier))
        connection.request("POST", "/x", body=b"body")
        assert connection.getresponse().status == 200
        assert connection.sock.gettimeout() == TIMEOUT
        assert server.questions == 1
        connection.close()


def test_http_client_reports_end_of_the_proof() -> None:
    """A kept connection sends no request after the proof's end, but the body of one under way."""
    with serving() as server:
        server_verifier = SimpleServerVerifier(server)
        connection = http_client(server, context_of(server_verifier))
        connection.putrequest("POST", "/x")
        connection.putheader("Content-Length", "52")
        connection.endheaders()
        server_verifier.forget()
        connection.send(b"GET /is/a/body HTTP/1.1\r\n" * 2 + b"..")
        answer = connection.getresponse()
        assert answer.status == 200
        answer.read()
        with pytest.raises(ReconnectError):
            connection.request("POST", "/y", body=b"secret")
        connection.close()
        assert server.requests == [b"/x"]
        assert b"secret" not in server.received


def test_http_client_reports_closed_document() -> None:
    """A server that closes after its document: the next connection works."""
    with serving(close_after_document=1) as server:
        context = context_of(SimpleServerVerifier(server))
        with pytest.raises(ReconnectError):
            http_client(server, context).request("GET", "/x")
        connection = http_client(server, context)
        connection.request("GET", "/x")
        assert connection.getresponse().status == 200
        connection.close()
        assert server.requests == [b"/x"]


def connected(server: WireServer) -> socket.socket:
    """Return a plain connection to a server."""
    return socket.create_connection(("127.0.0.1", server.port), TIMEOUT)


def test_sockets_refuse_resumed_session() -> None:
    """A resumed session does not show that the peer has the key, so it is refused."""
    with serving() as server:
        context = context_of(proven(server))
        with context.wrap_socket(connected(server), server_hostname="127.0.0.1") as first:
            first.sendall(b"GET /x HTTP/1.1\r\n\r\n")
            assert first.recv(1) == b"H"  # tickets come before it
            session = first.session
        assert session is not None
        assert session.has_ticket
        plain = connected(server)
        with plain, raises(PeerRefusedError, "session_reused"):
            context.wrap_socket(plain, server_hostname="127.0.0.1", session=session)
        assert server.connections[1].received == b""


@pytest.mark.parametrize("is_proven", [True, False])
def test_sockets_that_do_not_block_are_pinned(is_proven: bool) -> None:
    """A socket that does not block cannot ask, so its key must be proven before."""
    with serving() as server:
        server_verifier = proven(server) if is_proven else SimpleServerVerifier(server)
        plain = connected(server)
        plain.setblocking(False)
        with context_of(server_verifier).wrap_socket(
            plain, server_hostname="127.0.0.1", do_handshake_on_connect=False
        ) as secured:
            if is_proven:
                finish(secured)
                assert secured.send(b"GET /x HTTP/1.1\r\n\r\n") > 0
            else:
                with raises(PeerRefusedError, "other_key"):
                    finish(secured)
                with pytest.raises(OSError):  # noqa: PT011 - refused again, or the socket is closed
                    secured.send(b"secret")
        assert b"secret" not in server.received
        assert server.questions == 0


def finish(secured: ssl.SSLSocket) -> None:
    """Perform a handshake without blocking."""
    while True:
        try:
            secured.do_handshake()
        except ssl.SSLWantReadError:
            select.select([secured], [], [], TIMEOUT)
        else:
            return


def test_sockets_have_no_result_of_ra_tls() -> None:
    """`ra_tls.peer` says that the endpoint has the proof."""
    with serving() as server:
        context = context_of(proven(server))
        with (
            context.wrap_socket(connected(server), server_hostname="127.0.0.1") as secured,
            raises(UsageError, "not_applicable", part="endpoint"),
        ):
            ra_tls.peer(secured)


def test_sockets_write_no_key_log(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """SSLKEYLOGFILE, which would let others decrypt, is ignored."""
    log = tmp_path / "keys"
    monkeypatch.setenv("SSLKEYLOGFILE", str(log))
    with serving() as server:
        context = context_of(proven(server))
        with context.wrap_socket(connected(server), server_hostname="127.0.0.1") as secured:
            assert secured.version() == "TLSv1.3"
            assert secured.selected_alpn_protocol() in {None, "http/1.1"}
    assert not log.exists()
    assert context.keylog_filename is None


def test_sockets_refuse_older_tls() -> None:
    """A server without TLS 1.3 gets nothing but the first message of the handshake."""
    with serving() as server:
        server.tls_context.maximum_version = ssl.TLSVersion.TLSv1_2
        plain = connected(server)
        with plain, pytest.raises(ssl.SSLError, match=r"(?i)protocol"):
            context_of(proven(server)).wrap_socket(plain, server_hostname="127.0.0.1")
        assert not server.connections[0].handshake


def test_sockets_prove_once_for_many_threads() -> None:
    """32 handshakes at once share one proof; those of a relay are all refused."""
    with serving() as server, serving("relay") as relay, ThreadPoolExecutor(32) as threads:
        server_verifier = SimpleServerVerifier(server)
        context = context_of(server_verifier)
        barrier = threading.Barrier(32)

        def call(number: int) -> str:
            barrier.wait(TIMEOUT)
            try:
                connection = http_client(server if number % 2 else relay, context)
                connection.request("GET", "/x")
                return str(connection.getresponse().status)
            except PeerRefusedError as error:
                return error.reason
            finally:
                connection.close()

        results = list(threads.map(call, range(32)))
        assert results == ["other_key", "200"] * 16
        assert server.questions == server_verifier.proofs == 1
        assert relay.received == b""


def test_sockets_of_one_proof_are_never_kept_without_one() -> None:
    """Without a lasting proof, each connection is proven separately."""
    with serving() as server:
        server_verifier = SimpleServerVerifier(server)
        server_verifier.accepted = NeverRemembers()
        for _ in range(2):
            connection = http_client(server, context_of(server_verifier))
            connection.request("GET", "/x")
            assert connection.getresponse().status == 200
            connection.close()
        assert server.questions == 2


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run without proxies of the machine."""
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
