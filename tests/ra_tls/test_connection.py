"""No method of a connection transfers data before the peer is verified or after it was rejected."""

import contextlib
import select
import socket
import ssl
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from attestkit import ra_tls
from attestkit.errors import UsageError
from attestkit.ra_tls import PeerRefusedError
from attestkit.verifier import Verifier
from tests.ra_tls import tds
from tests.ra_tls.talks import TIMEOUT, connect_tcp, connected
from tests.ra_tls.tds import VALID, client_context, server_context
from tests.raising import raises
from tests.runner.cases import every_case

DEBUG = tds.issue(tds.attest_debug)


class Pair:
    """Two connected TLS sockets; the handshake of `local` is left to the test."""

    def __init__(self, peer: ssl.SSLContext, local: ssl.SSLContext, *, serve: bool) -> None:
        """Start the peer, which records the received data; `serve`: `local` is the server."""
        peer_socket, local_socket = connect_tcp()
        self.received = b""
        self._thread = threading.Thread(target=self._run_peer, args=(peer, peer_socket, not serve))
        self._thread.start()
        self.local = local.wrap_socket(
            local_socket, server_side=serve, do_handshake_on_connect=False
        )

    def _run_peer(self, context: ssl.SSLContext, end: socket.socket, server_side: bool) -> None:
        try:
            with context.wrap_socket(end, server_side=server_side) as connection:
                connection.sendall(b"answer")
                while chunk := connection.recv(100):
                    self.received += chunk
                connection.unwrap()
        except OSError:
            pass

    def end(self) -> bytes:
        """Close, and return the data received by the peer."""
        self.local.close()
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive()
        return self.received


def connect_pair(peer: ra_tls.Issued, *, serve: bool) -> Pair:
    """Return a pair whose peer has this certificate; `serve`: `local` is the server."""
    if serve:
        return Pair(client_context(peer), server_context(), serve=True)
    return Pair(server_context(peer), client_context(), serve=False)


def _send_file(connection: ssl.SSLSocket) -> object:
    with tempfile.TemporaryFile() as file:
        file.write(b"secret")
        file.seek(0)
        return connection.sendfile(file)


def _read_file(connection: ssl.SSLSocket) -> bytes:
    with connection.makefile("rb") as file:
        return file.read(6)


def _write_file(connection: ssl.SSLSocket) -> None:
    with connection.makefile("wb") as file:
        file.write(b"secret")


READS: dict[str, Callable[[ssl.SSLSocket], Any]] = {
    "recv": lambda connection: connection.recv(6),
    "recv_into": lambda connection: connection.recv_into(bytearray(6)),
    "read": lambda connection: connection.read(6),
    "read_into": lambda connection: connection.read(6, bytearray(6)),
    "makefile": _read_file,
}
WRITES: dict[str, Callable[[ssl.SSLSocket], Any]] = {
    "send": lambda connection: connection.send(b"secret"),
    "sendall": lambda connection: connection.sendall(b"secret"),
    "write": lambda connection: connection.write(b"secret"),
    "sendfile": _send_file,
    "makefile": _write_file,
}
OTHERS: dict[str, Callable[[ssl.SSLSocket], Any]] = {
    "handshake": lambda connection: connection.do_handshake(),
    "sendto": lambda connection: connection.sendto(b"secret", ("127.0.0.1", 1)),
    "recvfrom": lambda connection: connection.recvfrom(6),
    "recvfrom_into": lambda connection: connection.recvfrom_into(bytearray(6)),
    "unwrap": lambda connection: connection.unwrap(),
}
EVERY = [*READS.items(), *WRITES.items(), *OTHERS.items()]
both_sides = pytest.mark.parametrize("serve", [False, True], ids=["client", "server"])
every_use = pytest.mark.parametrize(
    "use", [use for _, use in EVERY], ids=[name for name, _ in EVERY]
)


@pytest.mark.slow
@both_sides
@every_use
def test_first_use_of_connection_with_invalid_peer_fails(
    use: Callable[[ssl.SSLSocket], Any], serve: bool
) -> None:
    """Without an explicit handshake the first use performs it and rejects the peer."""
    pair = connect_pair(DEBUG, serve=serve)
    with pytest.raises(PeerRefusedError):
        use(pair.local)
    for _, again in EVERY:  # permanently, without another verification
        with pytest.raises((PeerRefusedError, OSError)):
            again(pair.local)
    assert pair.local.fileno() == -1
    assert pair.end() == b""
    with raises(UsageError, "not_ready"):
        ra_tls.peer(pair.local)


@both_sides
@pytest.mark.parametrize("read", READS.values(), ids=READS.keys())
def test_first_read_from_valid_peer_succeeds(
    read: Callable[[ssl.SSLSocket], Any], serve: bool
) -> None:
    """A read performs the handshake with a valid peer."""
    pair = connect_pair(VALID, serve=serve)
    assert read(pair.local) in {b"answer", 6}
    assert ra_tls.peer(pair.local).app_info is not None
    assert pair.end() == b""


@both_sides
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_first_write_to_valid_peer_succeeds(
    write: Callable[[ssl.SSLSocket], Any],
    serve: bool,
) -> None:
    """Data written after verification arrives."""
    pair = connect_pair(VALID, serve=serve)
    write(pair.local)
    pair.local.recv(100)
    pair.local.unwrap()
    assert pair.end() == b"secret"


def test_nonblocking_handshake_verifies_when_complete() -> None:
    """On a non-blocking socket the peer is verified once the handshake is complete."""
    pair = connect_pair(DEBUG, serve=False)
    pair.local.settimeout(0)
    with raises(UsageError, "not_ready"):
        ra_tls.peer(pair.local)
    rejection = None
    while rejection is None:
        try:
            pair.local.do_handshake()
        except ssl.SSLWantReadError:
            select.select([pair.local], [], [], TIMEOUT)
        except PeerRefusedError as error:
            rejection = error
    assert pair.end() == b""


class Listener:
    """A TCP server that passes one connection to a function."""

    def __init__(self, serve: Callable[[socket.socket], bytes]) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = self._socket.getsockname()
        self._pool = ThreadPoolExecutor(1)
        self._future = self._pool.submit(self._accept, serve)

    def _accept(self, serve: Callable[[socket.socket], bytes]) -> bytes:
        with self._socket:
            connection, _ = self._socket.accept()
            connection.settimeout(TIMEOUT)
            with connection:
                return serve(connection)

    def end(self) -> bytes:
        """Return the function's result."""
        with self._pool:
            return self._future.result(TIMEOUT)


def _read_until_end(end: socket.socket) -> bytes:
    """Return all data until the end of the connection or an error."""
    seen = b""
    try:
        while chunk := end.recv(65536):
            seen += chunk
    except OSError:
        pass
    return seen


def test_connect_after_wrap_verifies() -> None:
    """A socket wrapped before it connects is verified when it connects."""

    def serve(end: socket.socket) -> bytes:
        try:
            with server_context(DEBUG).wrap_socket(end, server_side=True) as connection:
                return connection.recv(100)
        except OSError:
            return b""

    listener = Listener(serve)
    with client_context().wrap_socket(socket.socket()) as local:
        for _, use in EVERY:
            with pytest.raises(OSError, match="no TLS connection"):
                use(local)
        with pytest.raises(PeerRefusedError):
            local.connect(listener.address)
        with pytest.raises((PeerRefusedError, OSError)):
            local.sendall(b"secret")
    assert listener.end() == b""


def test_failed_handshake_sends_no_plaintext() -> None:
    """After a failed handshake ssl keeps the plain socket; nothing is sent on it."""

    def serve(end: socket.socket) -> bytes:
        end.sendall(b"this is no TLS" * 100)
        return _read_until_end(end)

    listener = Listener(serve)
    with client_context().wrap_socket(socket.socket()) as local:
        with pytest.raises(OSError, match=r"\w"):
            local.connect(listener.address)
        for _, use in EVERY:
            with pytest.raises((OSError, ValueError)):
                use(local)
    seen = listener.end()
    assert seen
    assert b"secret" not in seen


def test_shutdown_returns_no_plaintext() -> None:
    """`shutdown` removes the TLS layer of an SSLSocket; later plaintext is not returned."""

    def serve(end: socket.socket) -> bytes:
        with server_context().wrap_socket(end, server_side=True) as connection:
            with contextlib.suppress(OSError):  # the client may be closed already
                connection.sendall(b"answer")
            return _read_until_end(connection)

    listener = Listener(serve)
    with client_context().wrap_socket(socket.create_connection(listener.address)) as local:
        local.shutdown(socket.SHUT_WR)
        with pytest.raises(OSError, match="no TLS connection"):
            local.recv(100)
    assert listener.end() == b""


def test_unwrap_returns_plain_socket() -> None:
    """After close_notify from both sides the socket is a plain one, as with SSLSocket."""

    def serve(end: socket.socket) -> bytes:
        connection = server_context().wrap_socket(end, server_side=True)
        assert connection.recv(100) == b"secret"
        assert connection.recv(100) == b""
        with connection.unwrap() as plain:
            plain.sendall(b"in plain")
        return b""

    listener = Listener(serve)
    local = client_context().wrap_socket(socket.create_connection(listener.address))
    local.sendall(b"secret")
    with local.unwrap() as plain:
        assert _read_until_end(plain) == b"in plain"
    listener.end()


def _close_immediately(end: socket.socket) -> bytes:
    with server_context().wrap_socket(end, server_side=True) as connection:
        connection.recv(6)
    return b""


def _respond_and_close(end: socket.socket) -> bytes:
    with server_context().wrap_socket(end, server_side=True) as connection:
        connection.sendall(b"answer")
        connection.recv(6)
    return b""


def test_truncation_is_distinguished_from_close_notify() -> None:
    """With suppress_ragged_eofs=False an end without close_notify is an error."""
    listener = Listener(_respond_and_close)
    raw = socket.create_connection(listener.address)
    with client_context().wrap_socket(raw, suppress_ragged_eofs=False) as local:
        assert local.recv(100) == b"answer"
        local.sendall(b"secret")
        with pytest.raises(ssl.SSLEOFError):
            local.recv(100)
    listener.end()


def test_context_does_not_ignore_unexpected_eof(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenSSL must report an end without close_notify, whatever Python's default is."""
    ignored = getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)

    def create_ignoring(protocol: int) -> ssl.SSLContext:  # as Python 3.11.2 with OpenSSL 3
        context = ssl.SSLContext(protocol)
        context.options |= ignored
        return context

    changed = SimpleNamespace(**vars(ssl) | {"SSLContext": create_ignoring})
    monkeypatch.setattr("attestkit.ra_tls.contexts.ssl", changed)
    assert [context.options & ignored for context in (client_context(), server_context())] == [0, 0]


@pytest.mark.parametrize("suppress", [True, False])
def test_truncation_as_plain_ssl_error_is_eof_error(
    monkeypatch: pytest.MonkeyPatch, suppress: bool
) -> None:
    """A plain SSLError of that reason, as in Python 3.11.2, is treated as SSLEOFError."""

    def read(*_: object) -> NoReturn:
        error = ssl.SSLError(ssl.SSL_ERROR_SSL.value, "unexpected eof while reading")
        error.reason = "UNEXPECTED_EOF_WHILE_READING"
        raise error

    listener = Listener(_respond_and_close)
    raw = socket.create_connection(listener.address)
    with client_context().wrap_socket(raw, suppress_ragged_eofs=suppress) as local:
        assert local.recv(100) == b"answer"
        with monkeypatch.context() as patch:
            patch.setattr(ssl.SSLSocket, "read", read)
            if suppress:
                assert (local.recv(100), local.recv_into(bytearray(9))) == (b"", 0)
            else:
                with pytest.raises(ssl.SSLEOFError):
                    local.recv(100)
        local.sendall(b"secret")
    listener.end()


def test_end_before_first_data_is_error_for_clients() -> None:
    """An end before the first data is an error for clients; a later one is handled by ssl."""
    listener = Listener(_close_immediately)
    with client_context().wrap_socket(socket.create_connection(listener.address)) as local:
        local.sendall(b"secret")
        with pytest.raises(ConnectionResetError, match="may have refused"):
            local.recv(100)
    listener.end()
    listener = Listener(_respond_and_close)
    with client_context().wrap_socket(socket.create_connection(listener.address)) as local:
        local.sendall(b"secret")
        assert _read_until_end(local) == b"answer"
    listener.end()


@contextlib.contextmanager
def rejected_client() -> Iterator[ssl.SSLSocket]:
    """Yield a client that the server has rejected."""
    with connected(server_context(), client_context(DEBUG)) as (local, peer):
        assert isinstance(peer.exception(TIMEOUT), PeerRefusedError)
        yield local


@every_case("read", READS)
def test_rejected_client_every_read_raises_peer_refused(read: str) -> None:
    """Every kind of read raises the error repeatedly, whatever error OpenSSL raises."""
    with rejected_client() as local:
        for _ in range(3):
            with pytest.raises(ConnectionResetError, match="may have refused"):
                READS[read](local)


def _write_until_error(write: Callable[[ssl.SSLSocket], Any], connection: ssl.SSLSocket) -> None:
    """Write until an error: the first write may succeed before the reset arrives."""
    for _ in range(3):
        write(connection)


@every_case("write", WRITES)
def test_rejected_client_write_raises_peer_refused(write: str) -> None:
    """A client that writes gets the same error, also from later reads."""
    with rejected_client() as local:
        with pytest.raises(ConnectionResetError, match="may have refused"):
            _write_until_error(WRITES[write], local)
        for read in (*READS.values(), *READS.values()):
            with pytest.raises(ConnectionResetError, match="may have refused"):
                read(local)


def test_server_disconnect_is_not_peer_refused() -> None:
    """A client that disconnects has not rejected the server."""
    with connected(server_context(), client_context()) as (local, future):
        peer = future.result(TIMEOUT)
        local.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        local.close()
        with pytest.raises(OSError, match=r"\w") as caught:
            _write_until_error(WRITES["sendall"], peer)
        assert "refused" not in str(caught.value)


def test_timeout_is_not_peer_refused() -> None:
    """A slow server has not rejected the client."""
    with connected(server_context(), client_context()) as (local, future):
        peer = future.result(TIMEOUT)
        local.settimeout(0.01)
        with pytest.raises(TimeoutError):
            local.recv(1)
        local.setblocking(False)
        with pytest.raises(ssl.SSLWantReadError):
            local.recv(1)
        peer.sendall(b"answer")
        local.settimeout(TIMEOUT)
        assert local.recv(6) == b"answer"


class InterruptedVerifier(Verifier):
    """A verifier interrupted by KeyboardInterrupt."""

    def verify(self, *_: object, **__: object) -> NoReturn:
        """Raise KeyboardInterrupt."""
        raise KeyboardInterrupt


def test_interrupted_verification_rejects_peer() -> None:
    """A peer whose verification was interrupted is not accepted."""
    context = client_context(verifier=InterruptedVerifier())
    pair = Pair(server_context(), context, serve=False)
    with pytest.raises(KeyboardInterrupt):
        pair.local.do_handshake()
    assert pair.local.fileno() == -1
    with pytest.raises(OSError, match="no TLS connection"):
        pair.local.recv(100)
    assert pair.end() == b""


def test_connection_keeps_verified_certificate() -> None:
    """The verified certificate remains the connection's certificate."""
    pair = connect_pair(VALID, serve=True)
    pair.local.do_handshake()
    with raises(UsageError, "not_applicable"):
        pair.local.verify_client_post_handshake()
    pair.end()
