"""The host's API and TCP: what is sent, refusals, and answers of a hostile host."""

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from attestkit.errors import ConfigError, KmsError, UsageError
from attestkit.kms.local_provider import HostApi, SealedKey, TcpProvider, fetch_local_keys
from attestkit.kms.local_provider.sealed_key import encode_response
from tests.kms.local_provider.machine import NOW, TD, make_provider, make_verifier
from tests.raising import raises
from tests.runner.cases import every_case
from tests.untyped import untyped

Answer = Callable[[socket.socket], object]


@contextmanager
def listening(answer: Answer, listener: socket.socket | None = None) -> Iterator[int]:
    """Serve one connection with a function; yield the port."""
    server = listener or socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            connection, _ = server.accept()
            with connection:
                answer(connection)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield server.getsockname()[1]
    finally:
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join()


def read_request(connection: socket.socket) -> tuple[bytes, bytes]:
    """Return head and body of an HTTP request."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65_536)
    head, body = data.split(b"\r\n\r\n", 1)
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    while len(body) < int(fields[b"content-length"]):
        body += connection.recv(65_536)
    return head, body


def respond(body: bytes, status: str = "200 OK", head: bytes = b"") -> Answer:
    """Return a function that answers a request with a body."""

    def answer(connection: socket.socket) -> None:
        read_request(connection)
        size = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n".encode()
        connection.sendall(size + head + b"\r\n" + body)

    return answer


def send(data: bytes) -> Answer:
    """Return a function that reads a request and sends bytes."""

    def answer(connection: socket.socket) -> None:
        connection.recv(65_536)
        connection.sendall(data)

    return answer


def stay_silent(connection: socket.socket) -> None:
    """Read until the client closes."""
    while connection.recv(65_536):
        pass


def sealed_json(answer: SealedKey) -> bytes:
    """Return the answer of the host's API."""
    return json.dumps({name: value.hex() for name, value in answer._asdict().items()}).encode()


def test_keys_through_the_host_api() -> None:
    """A TD gets its keys by one POST to GetSealingKey, as upstream's VMM answers it."""
    requests = []
    with make_provider() as provider:

        def answer(connection: socket.socket) -> None:
            head, body = read_request(connection)
            requests.append(head)
            sealed = provider.release(bytes.fromhex(json.loads(body)["quote"]))
            text = sealed_json(sealed)
            connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + text)

        with listening(answer) as port:
            api = HostApi(f"http://127.0.0.1:{port}/api/")
            with fetch_local_keys(TD.get_quote, api, verifier=make_verifier(), now=NOW) as keys:
                assert keys.key_provider_id == provider.mr_enclave.hex()
    (head,) = requests
    assert head.startswith(b"POST /api/GetSealingKey?json HTTP/1.1\r\n")


def vsock_listener() -> socket.socket:
    """Return a socket that listens on vsock's loopback; skip without it."""
    sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    try:
        sock.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
        sock.listen(1)
        with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as probe:
            probe.settimeout(1)
            probe.connect((1, sock.getsockname()[1]))
            sock.accept()[0].close()
    except OSError as error:
        sock.close()
        pytest.skip(f"no vsock loopback: {error}")
    return sock


def test_host_api_over_vsock() -> None:
    """The URL of the sys-config is one of vsock."""
    sealed = SealedKey(b"\1", b"\2")
    with listening(respond(sealed_json(sealed)), vsock_listener()) as port:
        assert HostApi(f"vsock://1:{port}/api")(b"quote") == sealed


@every_case(
    ("answer", "reason"),
    [
        (respond(b'{"error":"Key provider is not enabled"}', "400 Bad Request"), "refused"),
        (respond(b"\x00\x01", "500 X"), "refused"),
        (respond(b""), "malformed"),
        (respond(b"{}"), "malformed"),
        (respond(b'{"encrypted_key":"0","provider_quote":""}'), "malformed"),
        (respond(b'{"encrypted_key":1,"provider_quote":""}'), "malformed"),
        (respond(b'{"encrypted_key":"","provider_quote":"' + b"00" * 1048577 + b'"}'), "malformed"),
        (respond(b"x" * (4 << 20) + b"x"), "malformed"),
        (respond(b"{}", head=b"X: " + b"y" * 60_000 + b"\r\nZ: " + b"y" * 60_000), "malformed"),
        (send(b"nonsense\r\n\r\n"), "malformed"),
        (send(b""), "malformed"),
        (send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"), "malformed"),
    ],
)
def test_answer_of_the_host_api_is_checked(answer: Answer, reason: str) -> None:
    """Refusals, malformed and cut answers are errors of their own kind."""
    with listening(answer) as port, pytest.raises(KmsError) as caught:
        HostApi(f"http://127.0.0.1:{port}/api")(b"quote")
    assert caught.value.reason in {reason, "connection"}
    if reason == "refused":
        assert caught.value.reason == reason


def test_refusal_is_read_after_a_failed_send() -> None:
    """The host answers and closes before it has read the body; its text is in the error."""

    def answer(connection: socket.socket) -> None:
        connection.recv(10)
        connection.sendall(
            b'HTTP/1.1 404 Not Found\r\nContent-Length: 19\r\n\r\n{"error":"no\\n\x1bway"}'
        )
        # Closing with unread bytes resets the connection, so that sending the rest fails.

    with listening(answer) as port, raises(KmsError, "refused") as caught:
        HostApi(f"http://127.0.0.1:{port}/api")(bytes(8 << 20))
    assert str(caught.value).isprintable()


def test_silent_host_is_a_timeout() -> None:
    """Without an answer the call ends after its limit."""
    with listening(stay_silent) as port, raises(KmsError, "timeout"):
        HostApi(f"http://127.0.0.1:{port}/api", timeout=0.2)(b"quote")
    with listening(stay_silent) as port, raises(KmsError, "timeout"):
        TcpProvider("127.0.0.1", port, timeout=0.2)(b"quote")


def frame(message: bytes) -> bytes:
    """Return a message with its length."""
    return len(message).to_bytes(4, "big") + message


@every_case(
    ("data", "reason"),
    [
        (b"", "connection"),
        (frame(encode_response(SealedKey(b"\1", b"\2")))[:-1], "connection"),
        (b"\xff\xff\xff\xff", "malformed"),
        (frame(b"{}"), "malformed"),
        (frame(b'{"encrypted_key":[1],"provider_quote":[256]}'), "malformed"),
    ],
)
def test_answer_over_tcp_is_checked(data: bytes, reason: str) -> None:
    """A closed connection, a cut and a malformed answer give no keys."""
    with listening(send(data)) as port, raises(KmsError, reason):
        TcpProvider("127.0.0.1", port)(b"quote")


def test_unreachable_host_is_a_connection_error() -> None:
    """A closed port is an error of the connection, for both."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for provider in (TcpProvider("127.0.0.1", port), HostApi(f"http://127.0.0.1:{port}/")):
        with raises(KmsError, "connection"):
            provider(b"quote")


@every_case(
    "url",
    [
        *("", "vsock://2", "vsock://2:x/api", "vsock://-1:5/api", "vsock://4294967296:5/api"),
        *("https://host/api", "http:///api", "http://u@host/api", "http://host/api?x", "host:5"),
        *("http://host/api#x", "http://host:99999/", "http://host/a b", "http://host/\r\nX: y"),
        "http://host:0/api",
    ],
)
def test_invalid_url_is_a_configuration_error(url: str) -> None:
    """Only vsock and http URLs without user, query and fragment are accepted."""
    with raises(ConfigError, "wrong_value"):
        HostApi(url)


@pytest.mark.parametrize("url", [None, 5, b"http://host/api"])
def test_url_of_another_type_is_usage_error(url: object) -> None:
    """Any text as URL gives an endpoint or a ConfigError."""
    with raises(UsageError, "wrong_type"):
        HostApi(untyped(url))
