"""Agent client: requests, HTTP responses, errors, endpoints and TLS."""

import contextlib
import errno
import json
import pickle
import socket
import ssl
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NoReturn

import pytest

from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.x509.app_certificates import certificate_pem, issue_ca, issue_leaf
from attestkit.backends.dstack_agent.client import AgentClient
from attestkit.errors import (
    AttestKitError,
    BackendBusyError,
    BackendError,
    BackendUnavailableError,
    QuoteUnavailableError,
    UnsupportedError,
    UsageError,
)
from tests.backends.dstack_agent.scripted_agent import (
    CHUNKED,
    PATIENCE,
    Request,
    request_error,
    response,
    scripted_agent,
    wait_for_close,
)
from tests.raising import errno_of, raises
from tests.runner.cases import every_case
from tests.serve.server import Server, running_server
from tests.untyped import untyped

# -- requests and successful responses -----------------------------------------------------------


def test_call_is_a_json_post() -> None:
    """Each call uses one connection, like the official clients."""
    with scripted_agent(response({"a": 1}, Server="agent 1.0")) as agent:
        client = AgentClient(agent.path)
        assert client.call("GetKey", {"path": "\u00e9", "purpose": ""}) == {"a": 1}
        assert client.post("Version") == ('{"a": 1}', "agent 1.0")
    first, second = agent.requests
    assert first.line == "POST /GetKey HTTP/1.1"
    assert first.message == {"path": "\u00e9", "purpose": ""}
    assert first.headers["content-type"] == "application/json"
    assert first.headers["host"] == "localhost"
    assert first.headers["connection"] == "close"
    assert second.message == {}


BODY = json.dumps({"k": "v" * 100_000}).encode()


def encode_chunks(body: bytes, size: int, extension: bytes = b"") -> bytes:
    """Return a body in chunks, with a trailer."""
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    framed = b"".join(b"%x%s\r\n%s\r\n" % (len(part), extension, part) for part in parts)
    return framed + b"0\r\nTrailer: x\r\n\r\n"


@every_case(
    "answer",
    [
        response(BODY),
        CHUNKED + encode_chunks(BODY, 4096),
        CHUNKED + encode_chunks(BODY, 7, b";name=value"),
        b"HTTP/1.1 200 OK\r\n\r\n" + BODY,  # until the connection closes
        b"HTTP/1.0 200 OK\r\n\r\n" + BODY,
        b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + response(BODY),
        b"HTTP/1.1 200\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY),
    ],
    ids=["length", "chunks", "small chunks", "until close", "1.0", "continue", "no reason"],
)
def test_post_accepts_each_http_framing(answer: bytes) -> None:
    """Other servers than the agent's release, for example in JavaScript, send chunks."""
    with scripted_agent(answer) as agent:
        assert AgentClient(agent.path).post("Info").text.encode() == BODY


def test_call_keeps_path_of_url() -> None:
    """The method is appended to the URL's path, with or without a trailing slash."""
    with running_server("--dev-http", "127.0.0.1:0") as server:
        assert AgentClient(server.dev_url).call("Version")["version"]
        for url in (f"{server.url}/prpc", f"{server.url}/prpc/"):
            answer = AgentClient(url).post("Version")
            assert json.loads(answer.text)["rev"]
            assert answer.server == "attestkit simulator"
        with raises(UnsupportedError, "feature"):
            AgentClient(f"{server.url}/prpc").call("GetKey")
    with raises(BackendUnavailableError, "cannot_connect", path=server.url):
        AgentClient(server.url).call("Version")


# -- statuses --------------------------------------------------------------------------------------


_FEATURE: Final = (UnsupportedError, "feature")
_REJECTED: Final = (UsageError, "wrong_value")
_AGENT_ERROR: Final = (BackendError, "agent_error")
_NO_QUOTE: Final = (QuoteUnavailableError, "agent_error")
_OVERLOADED: Final = (BackendBusyError, "overloaded")
_SIMULATOR: Final = "runtime event emission is unavailable in simulator mode: x"


@every_case(
    ("status", "message", "method", "expected", "words"),
    [
        (400, "Unsupported algorithm", "GetKey", _REJECTED, "Unsupported algorithm"),
        (400, "Failed to parse k256 key: x", "GetKey", _AGENT_ERROR, "Failed to parse"),
        (400, "Service not found: Sign", "Sign", _FEATURE, "release 0.5.6"),
        (404, "Service not found: Sign", "Sign", _FEATURE, "release 0.5.6"),
        (404, "x", "EmitEvent", _FEATURE, "release 0.6.0"),
        (400, _SIMULATOR, "EmitEvent", _FEATURE, "simulator mode"),
        (400, "Failed to get quote: x", "GetQuote", _NO_QUOTE, "Failed to get quote: x"),
        (500, "no keys", "GetKey", _AGENT_ERROR, "no keys"),
        (502, "bad", "EmitEvent", (BackendError, "outcome_unknown"), "bad (status 502)"),
        (500, b"", "GetKey", _AGENT_ERROR, "status 500"),
        (503, "full", "GetQuote", _OVERLOADED, "full"),
        (429, b"slower", "GetKey", _OVERLOADED, "status 429"),
        (302, b"", "GetKey", _AGENT_ERROR, "status 302"),
        (103, b"", "GetKey", _AGENT_ERROR, "status 103"),
        (401, "who are you", "GetKey", _AGENT_ERROR, "who are you (status 401)"),
        (400, "what Info is", "Info", _AGENT_ERROR, "what Info is"),  # no arguments
        (400, {"code": 404, "description": "It is gone."}, "X", _REJECTED, "It is gone."),
    ],
)
def test_call_status_gives_reason_and_message(
    status: int,
    message: object,
    method: str,
    expected: tuple[type[AttestKitError], str],
    words: str,
) -> None:
    """The error names the agent, the method and the agent's message."""
    body = message if isinstance(message, bytes) else {"error": message}
    error = request_error(response(body, status), method)
    assert (type(error), error.reason) == expected
    assert method in str(error)
    assert str(error).startswith("guest agent at /")
    assert words in str(error)


@every_case(
    "body",
    [
        {"error": "a\r\nb\tc \x1b[31m red \u202e turned \x00" + "x" * 5000},
        b"\xff\x00\x1b[31m\r\n" + b"a b" * 3000,
        b"[" * 100_000,
        {"error": ["not", "text"]},
        {"error": {}},
        {"errors": 1},
        b"null",
        b"[]",
    ],
)
def test_call_error_message_is_sanitized(body: object) -> None:
    """The agent's message becomes one printable line of limited length."""
    text = str(request_error(response(body, 500)))
    assert text.isprintable()
    assert "\x1b" not in text
    assert len(text) < 400


# -- connection errors -----------------------------------------------------------------------------


def test_call_connection_error_names_remedy(tmp_path: Path) -> None:
    """Each cause has its own text."""
    with tempfile.TemporaryDirectory(prefix="ak") as name:
        path = Path(name) / "s"
        socket_path = str(path)
        with raises(BackendUnavailableError, "missing", path=socket_path) as absent:
            AgentClient(socket_path).call("Info")
        assert "start the agent" in str(absent.value)
        path.touch()
        with raises(BackendUnavailableError, "missing", path=socket_path) as file:
            AgentClient(socket_path).call("Info")
        assert "not a socket but a file" in str(file.value)
        with raises(BackendUnavailableError, "missing", path=f"{socket_path}/below") as below:
            AgentClient(f"{socket_path}/below").call("Info")
        assert errno_of(below.value) == errno.ENOTDIR
        path.unlink()
        path.mkdir()  # like a container engine for a missing source
        with raises(BackendUnavailableError, "missing", path=socket_path) as folder:
            AgentClient(socket_path).call("Info")
        assert "recreate the container" in str(folder.value)
        path.rmdir()
        with socket.socket(socket.AF_UNIX) as ended:
            ended.bind(socket_path)
        with raises(BackendUnavailableError, "cannot_connect", path=socket_path) as refused:
            AgentClient(socket_path).call("Info")
        assert errno_of(refused.value) == errno.ECONNREFUSED
        path.unlink()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.bind(socket_path)
            with raises(BackendUnavailableError, "cannot_connect", path=socket_path) as datagram:
                AgentClient(socket_path).call("Info")
            assert errno_of(datagram.value) == errno.EPROTOTYPE
    with raises(UsageError, "wrong_value"):
        AgentClient(str(tmp_path / ("x" * 200))).call("Info")
    with raises(UsageError, "wrong_value"):
        AgentClient(f"http://{'x' * 100}.invalid").call("Info")


def test_call_socket_without_permission_names_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is simulated, since root may connect to each socket."""

    class Refusing(socket.socket):
        def connect(self, address: object) -> NoReturn:
            raise PermissionError(13, "Permission denied", address)

    monkeypatch.setattr(socket, "socket", Refusing)
    with raises(BackendUnavailableError, "permission_denied", path="/run/dstack.sock"):
        AgentClient("/run/dstack.sock").call("Info")


def test_call_full_backlog_is_busy() -> None:
    """Linux reports a full backlog of a UNIX socket at once."""
    with tempfile.TemporaryDirectory(prefix="ak") as name, contextlib.ExitStack() as stack:
        path = f"{name}/s"
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(path)
        listener.listen(0)
        full = 0
        while not full:
            waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
            waiting.settimeout(0)
            full = waiting.connect_ex(path)
        assert full == errno.EAGAIN
        with raises(BackendBusyError, "overloaded", path=path):
            AgentClient(path).call("Info")


@every_case(
    "endpoint",
    [
        "",
        "a\0b",
        "http://",
        "http://:80",
        "http://user:word@host",
        "http://host:0",
        "http://host/?query",
        "http://[::1",
        "https://h\u00f6st",
    ],
)
def test_client_invalid_endpoint_is_rejected(endpoint: str) -> None:
    """The constructor rejects it."""
    with raises(UsageError, "wrong_value"):
        AgentClient(endpoint)


def test_client_invalid_arguments_are_rejected() -> None:
    """Timeout, endpoint, method and size are checked."""
    for timeout in (0, -1, float("nan"), float("inf"), "5", None):
        with raises(UsageError, "out_of_range"):
            AgentClient("/x", timeout=untyped(timeout))
    with raises(UsageError, "wrong_value"):
        AgentClient(untyped(None))
    client = AgentClient("/nowhere")
    for method in ("", "a/b", "a b", "../x", "Get\r\nX: y"):
        with raises(UsageError, "wrong_value"):
            client.call(method)
    with raises(UsageError, "wrong_type"):
        client.call("Sign", {"data": b"bytes"})
    with raises(UsageError, "too_large"):
        client.call("Sign", {"data": "0" * (10 << 20)})


# -- retries, restarts and concurrency -------------------------------------------------------------


@every_case(
    "answer",
    [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nnu", b"HTTP/1.1 2", response(b"\xff")],
    ids=["empty", "truncated", "truncated head", "not text"],
)
def test_emit_event_lost_response_is_not_retried(answer: bytes) -> None:
    """The outcome is unknown; `fails` asserts that there was one request."""
    error = request_error(answer, "EmitEvent")
    assert type(error) is BackendError
    assert error.reason == "outcome_unknown"
    assert "check the event log" in str(error)
    assert request_error(answer, "GetKey").reason in {
        "connection_lost",
        "malformed_response",
        "truncated",
    }


def test_emit_event_timeout_is_not_retryable() -> None:
    """Other methods raise BackendBusyError."""
    error = request_error(wait_for_close, "EmitEvent", timeout=0.1)
    assert type(error) is BackendError
    assert error.reason == "outcome_unknown"
    assert "EmitEvent: no response within 0.1 s" in str(error)


def test_call_after_agent_restart_succeeds() -> None:
    """No connection is kept between calls."""
    with tempfile.TemporaryDirectory(prefix="ak") as name:
        path = f"{name}/s"
        client = AgentClient(path)
        for number in (1, 2):
            with scripted_agent(response({"n": number}), path):
                assert client.call("Info") == {"n": number}
            with raises(BackendUnavailableError, "cannot_connect", path=path):
                client.call("EmitEvent")
            Path(path).unlink()


def echo(connection: socket.socket, request: Request) -> None:
    """Respond with the request's message."""
    connection.sendall(response({"got": request.message}))


def test_threads_share_a_client() -> None:
    """Each thread gets its own response."""
    with scripted_agent(echo) as agent, ThreadPoolExecutor(16) as pool:
        client = AgentClient(agent.path)
        messages = [{"number": number} for number in range(200)]
        answers = list(pool.map(lambda one: client.call("Info", one), messages))
        assert [answer["got"] for answer in answers] == messages


def test_client_can_be_pickled(server: Server) -> None:
    """It has no lock, and no connection between calls."""
    client = AgentClient(server.dstack, timeout=7)
    copy = pickle.loads(pickle.dumps(client))
    assert copy.call("Version") == client.call("Version")
    assert repr(copy) == repr(client) == f"AgentClient({server.dstack!r})"


# -- TLS -------------------------------------------------------------------------------------------


def _read_request(connection: socket.socket) -> bytes:
    """Read a complete request without arguments; unread data would cause a reset."""
    request = b""
    while not request.endswith(b"\r\n\r\n{}") and (piece := connection.recv(1000)):
        request += piece
    return request


def _issue_chain(folder: Path) -> Path:
    """Write a CA certificate, ca.pem, and return the file of a server key and its certificate."""
    ca_key, key = P256Key.from_scalar(bytes(31) + b"\1"), P256Key.from_scalar(bytes(31) + b"\2")
    ca = issue_ca(key=ca_key, subject="a CA", path_length=0, not_before=0, not_after=1 << 32)
    leaf = issue_leaf(
        public_key=key,
        subject="an agent",
        alt_names=["localhost"],
        server_auth=True,
        authority_key_id=True,  # since Python 3.13, ssl requires one
        ca_cert=certificate_pem(ca),
        ca_key=ca_key,
        not_before=0,
        not_after=1 << 32,
    )
    (folder / "ca.pem").write_text(certificate_pem(ca))
    (folder / "chain.pem").write_text(key.pkcs8_pem + certificate_pem(leaf))
    return folder / "chain.pem"


def test_https_needs_trusted_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An untrusted certificate is rejected before a request is sent, since keys are transferred."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(_issue_chain(tmp_path))
    seen = []

    def serve(listener: socket.socket) -> None:
        for _ in range(2):
            connection, _ = listener.accept()
            with (
                contextlib.suppress(ssl.SSLError),
                connection,
                context.wrap_socket(connection, server_side=True) as encrypted,
            ):
                seen.append(_read_request(encrypted))
                encrypted.sendall(response({"a": 1}))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        url = f"https://localhost:{listener.getsockname()[1]}/api"
        with raises(BackendUnavailableError, "cannot_connect", path=url) as caught:
            AgentClient(url, timeout=PATIENCE).call("Info")
        assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)
        assert not seen
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        assert AgentClient(url, timeout=PATIENCE).call("Info") == {"a": 1}
        thread.join(PATIENCE)
    assert seen[0].startswith(b"POST /api/Info HTTP/1.1\r\nHost: localhost:")
