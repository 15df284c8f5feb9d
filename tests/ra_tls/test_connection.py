"""No way leads to the data before the check, and none around its verdict."""

import contextlib
import select
import socket
import ssl
import struct
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import pytest

from attestkit import ra_tls
from attestkit.errors import UsageError
from attestkit.ra_tls import PeerRefusedError
from attestkit.verifier import Verifier
from tests.ra_tls import tds
from tests.ra_tls.talks import PATIENCE, connected
from tests.verifier import parcels

GOOD = tds.issued()
DEBUG = tds.issued(tds.debug)


def server(issued: ra_tls.Issued = GOOD) -> ssl.SSLContext:
    """Return the context of a server that asks its clients for evidence."""
    return ra_tls.server_context(parcels.verifier(), issued=issued, peer_ca=tds.CA)


def client(issued: ra_tls.Issued = GOOD, **options: Any) -> ssl.SSLContext:
    """Return the context of a client with evidence."""
    return ra_tls.client_context(parcels.verifier(), issued=issued, **options)


class Pair:
    """Two connected sockets with TLS; the handshake of ours is left to the test."""

    def __init__(self, theirs: ssl.SSLContext, ours: ssl.SSLContext, *, serve: bool) -> None:
        """Start the other side, `serve` tells that ours is the server; it notes what it hears."""
        there, here = connected()
        self.heard = b""
        self._thread = threading.Thread(target=self._listen, args=(theirs, there, not serve))
        self._thread.start()
        self.ours = ours.wrap_socket(here, server_side=serve, do_handshake_on_connect=False)

    def _listen(self, context: ssl.SSLContext, end: socket.socket, server_side: bool) -> None:
        try:
            with context.wrap_socket(end, server_side=server_side) as connection:
                connection.sendall(b"answer")
                while chunk := connection.recv(100):
                    self.heard += chunk
                connection.unwrap()
        except OSError:
            pass

    def end(self) -> bytes:
        """Close, and return what the other side has heard."""
        self.ours.close()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        return self.heard


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
every_way = pytest.mark.parametrize(
    "use", [use for _, use in EVERY], ids=[name for name, _ in EVERY]
)


@both_sides
@every_way
def test_the_first_use_checks(use: Callable[[ssl.SSLSocket], Any], serve: bool) -> None:
    """Without an explicit handshake the first use does it, and is refused with the peer."""
    theirs, ours = (client(DEBUG), server()) if serve else (server(DEBUG), client())
    pair = Pair(theirs, ours, serve=serve)
    with pytest.raises(PeerRefusedError):
        use(pair.ours)
    for _, again in EVERY:  # for good, and without another look
        with pytest.raises((PeerRefusedError, OSError)):
            again(pair.ours)
    assert pair.ours.fileno() == -1
    assert pair.end() == b""
    with pytest.raises(UsageError):
        ra_tls.peer(pair.ours)


@both_sides
@pytest.mark.parametrize("read", READS.values(), ids=READS.keys())
def test_the_first_read_of_a_sound_peer(read: Callable[[ssl.SSLSocket], Any], serve: bool) -> None:
    """An implicit handshake with a sound peer is as good as another."""
    theirs, ours = (client(), server()) if serve else (server(), client())
    pair = Pair(theirs, ours, serve=serve)
    assert read(pair.ours) in {b"answer", 6}
    assert ra_tls.peer(pair.ours).app_info is not None
    assert pair.end() == b""


@both_sides
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_the_first_write_to_a_sound_peer(
    write: Callable[[ssl.SSLSocket], Any],
    serve: bool,
) -> None:
    """What is written after the check arrives."""
    theirs, ours = (client(), server()) if serve else (server(), client())
    pair = Pair(theirs, ours, serve=serve)
    write(pair.ours)
    pair.ours.recv(100)
    pair.ours.unwrap()
    assert pair.end() == b"secret"


def test_a_handshake_that_does_not_wait() -> None:
    """On a non-blocking socket the check comes when the handshake is through, not before."""
    pair = Pair(server(DEBUG), client(), serve=False)
    pair.ours.settimeout(0)
    with pytest.raises(UsageError, match="not over"):
        ra_tls.peer(pair.ours)
    refused = None
    while refused is None:
        try:
            pair.ours.do_handshake()
        except ssl.SSLWantReadError:
            select.select([pair.ours], [], [], PATIENCE)
        except PeerRefusedError as error:
            refused = error
    assert pair.end() == b""


class Listener:
    """A TCP server that takes one connection; what it does with it is the test's."""

    def __init__(self, serve: Callable[[socket.socket], bytes]) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = self._socket.getsockname()
        self._pool = ThreadPoolExecutor(1)
        self._future = self._pool.submit(self._take, serve)

    def _take(self, serve: Callable[[socket.socket], bytes]) -> bytes:
        with self._socket:
            connection, _ = self._socket.accept()
            connection.settimeout(PATIENCE)
            with connection:
                return serve(connection)

    def end(self) -> bytes:
        """Return what it saw."""
        with self._pool:
            return self._future.result(PATIENCE)


def _everything(end: socket.socket) -> bytes:
    """Return what comes until the end, however it ends."""
    seen = b""
    try:
        while chunk := end.recv(65536):
            seen += chunk
    except OSError:
        pass
    return seen


def test_connect_later() -> None:
    """A socket that is wrapped before it connects is checked when it connects."""

    def serve(end: socket.socket) -> bytes:
        try:
            with server(DEBUG).wrap_socket(end, server_side=True) as connection:
                return connection.recv(100)
        except OSError:
            return b""

    listener = Listener(serve)
    with client().wrap_socket(socket.socket()) as ours:
        for _, use in EVERY:
            with pytest.raises(OSError, match="no TLS connection"):
                use(ours)
        with pytest.raises(PeerRefusedError):
            ours.connect(listener.address)
        with pytest.raises((PeerRefusedError, OSError)):
            ours.sendall(b"secret")
    assert listener.end() == b""


def test_nothing_goes_out_in_plain_after_a_failed_handshake() -> None:
    """Where TLS fails while connecting, ssl drops it and keeps the socket; we do not send on it."""

    def serve(end: socket.socket) -> bytes:
        end.sendall(b"this is no TLS" * 100)
        return _everything(end)

    listener = Listener(serve)
    with client().wrap_socket(socket.socket()) as ours:
        with pytest.raises(OSError, match=r"\w"):
            ours.connect(listener.address)
        for _, use in EVERY:
            with pytest.raises((OSError, ValueError)):
                use(ours)
    seen = listener.end()
    assert seen
    assert b"secret" not in seen


def test_nothing_comes_in_plain_after_shutdown() -> None:
    """`shutdown` drops the TLS layer of an SSLSocket; what comes then is nobody's."""

    def serve(end: socket.socket) -> bytes:
        with server().wrap_socket(end, server_side=True) as connection:
            with contextlib.suppress(OSError):  # the client may be gone already
                connection.sendall(b"answer")
            return _everything(connection)

    listener = Listener(serve)
    with client().wrap_socket(socket.create_connection(listener.address)) as ours:
        ours.shutdown(socket.SHUT_WR)
        with pytest.raises(OSError, match="no TLS connection"):
            ours.recv(100)
    assert listener.end() == b""


def test_an_orderly_end() -> None:
    """After close_notify from both sides the socket is a plain one, as with any SSLSocket."""

    def serve(end: socket.socket) -> bytes:
        connection = server().wrap_socket(end, server_side=True)
        assert connection.recv(100) == b"secret"
        assert connection.recv(100) == b""
        with connection.unwrap() as plain:
            plain.sendall(b"in plain")
        return b""

    listener = Listener(serve)
    ours = client().wrap_socket(socket.create_connection(listener.address))
    ours.sendall(b"secret")
    with ours.unwrap() as plain:
        assert _everything(plain) == b"in plain"
    listener.end()


def _close_at_once(end: socket.socket) -> bytes:
    with server().wrap_socket(end, server_side=True) as connection:
        connection.recv(6)
    return b""


def _answer_and_close(end: socket.socket) -> bytes:
    with server().wrap_socket(end, server_side=True) as connection:
        connection.sendall(b"answer")
        connection.recv(6)
    return b""


def test_an_end_on_the_way_shows() -> None:
    """An end without close_notify is told from one with it, if it is asked for."""
    listener = Listener(_answer_and_close)
    raw = socket.create_connection(listener.address)
    with client().wrap_socket(raw, suppress_ragged_eofs=False) as ours:
        assert ours.recv(100) == b"answer"
        ours.sendall(b"secret")
        with pytest.raises(ssl.SSLEOFError):
            ours.recv(100)
    listener.end()


def test_context_reports_truncation() -> None:
    """OpenSSL is not to take an end without close_notify for an orderly one."""
    ignored = getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    assert [context.options & ignored for context in (client(), server())] == [0, 0]


@pytest.mark.parametrize("suppress", [True, False])
def test_truncation_in_older_pythons_is_an_eof_error(
    monkeypatch: pytest.MonkeyPatch, suppress: bool
) -> None:
    """A plain SSLError of that reason, as in Python 3.11.2, is treated as SSLEOFError."""

    def read(*_: object) -> NoReturn:
        error = ssl.SSLError(ssl.SSL_ERROR_SSL.value, "unexpected eof while reading")
        error.reason = "UNEXPECTED_EOF_WHILE_READING"
        raise error

    listener = Listener(_answer_and_close)
    raw = socket.create_connection(listener.address)
    with client().wrap_socket(raw, suppress_ragged_eofs=suppress) as ours:
        assert ours.recv(100) == b"answer"
        with monkeypatch.context() as patch:
            patch.setattr(ssl.SSLSocket, "read", read)
            if suppress:
                assert (ours.recv(100), ours.recv_into(bytearray(9))) == (b"", 0)
            else:
                with pytest.raises(ssl.SSLEOFError):
                    ours.recv(100)
        ours.sendall(b"secret")
    listener.end()


def test_a_server_without_a_word() -> None:
    """An end before the first word is an error for clients; later it is what ssl makes of it."""
    listener = Listener(_close_at_once)
    with client().wrap_socket(socket.create_connection(listener.address)) as ours:
        ours.sendall(b"secret")
        with pytest.raises(ConnectionResetError, match="refused"):
            ours.recv(100)
    listener.end()
    listener = Listener(_answer_and_close)
    with client().wrap_socket(socket.create_connection(listener.address)) as ours:
        ours.sendall(b"secret")
        assert _everything(ours) == b"answer"
    listener.end()


def test_the_refused_are_reset() -> None:
    """A refused client gets an error from its read, not an end that could pass for an answer."""
    for recv in (socket.socket.recv, ssl.SSLSocket.recv):
        there, here = connected()
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(server().wrap_socket, there, server_side=True)
            with client(DEBUG).wrap_socket(here) as ours:
                assert isinstance(future.exception(PATIENCE), PeerRefusedError)
                with pytest.raises(ConnectionResetError):
                    recv(ours, 100)


@pytest.mark.parametrize("way", READS)
def test_the_refused_learn_so_from_a_read(way: str) -> None:
    """Every way to read says so, as often as it is asked; OpenSSL has other words each time."""
    there, here = connected()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(server().wrap_socket, there, server_side=True)
        with client(DEBUG).wrap_socket(here) as ours:
            assert isinstance(future.exception(PATIENCE), PeerRefusedError)
            for _ in range(3):
                with pytest.raises(ConnectionResetError, match="may have refused us"):
                    READS[way](ours)


def _three_times(write: Callable[[ssl.SSLSocket], Any], connection: ssl.SSLSocket) -> None:
    """Write until the end must show: the first finds a socket that need not know yet."""
    for _ in range(3):
        write(connection)


@pytest.mark.parametrize("way", WRITES)
def test_the_refused_learn_so_from_a_write(way: str) -> None:
    """A client that writes until it notices is told the same, and so are its later reads."""
    there, here = connected()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(server().wrap_socket, there, server_side=True)
        with client(DEBUG).wrap_socket(here) as ours:
            assert isinstance(future.exception(PATIENCE), PeerRefusedError)
            with pytest.raises(ConnectionResetError, match="may have refused us"):
                _three_times(WRITES[way], ours)
            for read in (*READS.values(), *READS.values()):
                with pytest.raises(ConnectionResetError, match="may have refused us"):
                    read(ours)


def test_a_servers_errors_are_its_own() -> None:
    """A client that goes away has refused nothing, as far as the server can tell."""
    there, here = connected()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(server().wrap_socket, there, server_side=True)
        ours = client().wrap_socket(here)
        with future.result(PATIENCE) as theirs:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            ours.close()
            with pytest.raises(OSError, match=r"\w") as caught:
                _three_times(WRITES["sendall"], theirs)
            assert "refused" not in str(caught.value)


def test_a_timeout_is_no_refusal() -> None:
    """A server that takes its time has not broken off."""
    there, here = connected()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(server().wrap_socket, there, server_side=True)
        with client().wrap_socket(here) as ours, future.result(PATIENCE) as theirs:
            ours.settimeout(0.01)
            with pytest.raises(TimeoutError):
                ours.recv(1)
            ours.setblocking(False)
            with pytest.raises(ssl.SSLWantReadError):
                ours.recv(1)
            theirs.sendall(b"answer")
            ours.settimeout(PATIENCE)
            assert ours.recv(6) == b"answer"


class Interrupted(Verifier):
    """A verifier in whose middle the user presses Ctrl-C."""

    def verify(self, *_: object, **__: object) -> NoReturn:
        """Stop the program."""
        raise KeyboardInterrupt


def test_an_interrupted_check_accepts_nobody() -> None:
    """What was not checked to the end has not passed."""
    context = ra_tls.client_context(Interrupted(), issued=GOOD)
    pair = Pair(server(), context, serve=False)
    with pytest.raises(KeyboardInterrupt):
        pair.ours.do_handshake()
    assert pair.ours.fileno() == -1
    with pytest.raises(OSError, match="no TLS connection"):
        pair.ours.recv(100)
    assert pair.end() == b""


def test_no_other_certificate_later() -> None:
    """The certificate that was judged stays the one of the connection."""
    pair = Pair(client(), server(), serve=True)
    pair.ours.do_handshake()
    with pytest.raises(UsageError):
        pair.ours.verify_client_post_handshake()
    pair.end()
