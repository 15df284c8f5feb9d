"""The agent's client asks rightly, and whatever comes back is an answer or an error of ours."""

import contextlib
import errno
import json
import multiprocessing
import os
import pickle
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import pytest

from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.x509.app_certificates import certificate_pem, issue_ca, issue_leaf
from attestkit.backends.dstack_agent.client import AgentClient
from attestkit.errors import (
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
    fails,
    response,
    scripted_agent,
    until_it_goes,
)
from tests.serve.server import ROOT, running_server
from tests.untyped import untyped

# -- what is sent, and answers that are well -----------------------------------------------------


def test_a_call_is_a_post_of_json() -> None:
    """As the official clients send it, one connection a call."""
    with scripted_agent(response({"a": 1}, Server="somebody 1.0")) as agent:
        client = AgentClient(agent.path)
        assert client.call("GetKey", {"path": "\u00e9", "purpose": ""}) == {"a": 1}
        assert client.post("Version") == ('{"a": 1}', "somebody 1.0")
    first, second = agent.requests
    assert first.line == "POST /GetKey HTTP/1.1"
    assert first.message == {"path": "\u00e9", "purpose": ""}
    assert first.headers["content-type"] == "application/json"
    assert first.headers["host"] == "localhost"
    assert first.headers["connection"] == "close"
    assert second.message == {}


BODY = json.dumps({"k": "v" * 100_000}).encode()


def chunks(body: bytes, size: int, extension: bytes = b"") -> bytes:
    """Return a body in chunks, with a trailer."""
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    framed = b"".join(b"%x%s\r\n%s\r\n" % (len(part), extension, part) for part in parts)
    return framed + b"0\r\nTrailer: x\r\n\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        response(BODY),
        CHUNKED + chunks(BODY, 4096),
        CHUNKED + chunks(BODY, 7, b";name=value"),
        b"HTTP/1.1 200 OK\r\n\r\n" + BODY,  # to the end of the connection
        b"HTTP/1.0 200 OK\r\n\r\n" + BODY,
        b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + response(BODY),
        b"HTTP/1.1 200\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY),
    ],
    ids=["length", "chunks", "small chunks", "to the end", "1.0", "continue", "no reason"],
)
def test_every_framing_of_http_is_read(answer: bytes) -> None:
    """Servers other than the agent's release, in JavaScript for one, send chunks."""
    with scripted_agent(answer) as agent:
        assert AgentClient(agent.path).post("Info").text.encode() == BODY


def test_an_answer_may_come_bit_by_bit() -> None:
    """As long as it comes in time."""

    def answer(connection: socket.socket, _: Request) -> None:
        for byte in response({"a": "b"}):
            connection.sendall(bytes([byte]))

    with scripted_agent(answer) as agent:
        assert AgentClient(agent.path).call("Info") == {"a": "b"}


def test_our_server_answers_at_its_url() -> None:
    """A URL is where methods are below; its path is kept, with or without a slash at the end."""
    with running_server("--dev-http", "127.0.0.1:0") as server:
        assert AgentClient(server.dev_url).call("Version")["version"]
        for url in (f"{server.url}/prpc", f"{server.url}/prpc/"):
            answer = AgentClient(url).post("Version")
            assert json.loads(answer.text)["rev"]
            assert answer.server == "attestkit simulator"
        with pytest.raises(UnsupportedError, match="no method GetKey"):
            AgentClient(f"{server.url}/prpc").call("GetKey")
    with pytest.raises(BackendUnavailableError, match="nobody listens"):
        AgentClient(server.url).call("Version")


# -- statuses --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "method", "kind", "text"),
    [
        (400, {"error": "Unsupported algorithm"}, "GetKey", UsageError, "Unsupported algorithm"),
        (400, {"error": "Failed to parse k256 key: x"}, "GetKey", BackendError, "Failed to parse"),
        (400, {"error": "Service not found: Sign"}, "Sign", UnsupportedError, "release 0.5.6"),
        (404, {"error": "Service not found: Sign"}, "Sign", UnsupportedError, "release 0.5.6"),
        (404, {"error": "x"}, "EmitEvent", UnsupportedError, "from 0.6.0 on"),
        (404, b"<html>gone</html>", "GetKey", UnsupportedError, "older release"),
        (
            400,
            {"error": "runtime event emission is unavailable in simulator mode: x"},
            "EmitEvent",
            UnsupportedError,
            "simulator mode",
        ),
        (400, {"error": "Failed to get quote: x"}, "GetQuote", QuoteUnavailableError, "get quote"),
        (500, {"error": "no quote"}, "GetQuote", QuoteUnavailableError, "no quote"),
        (500, {"error": "no keys"}, "GetKey", BackendError, "no keys"),
        (502, {"error": "bad gateway"}, "EmitEvent", BackendError, "was emitted is not known"),
        (500, b"", "GetKey", BackendError, "status 500"),
        (503, {"error": "full"}, "GetQuote", BackendBusyError, "full"),
        (429, b"slower", "GetKey", BackendBusyError, "slower"),
        (302, b"", "GetKey", BackendError, "status 302"),
        (204, b"", "GetKey", BackendError, "status 204"),
        (103, b"", "GetKey", BackendError, "status 103"),
        (401, {"error": "who are you"}, "GetKey", BackendError, r"who are you \(status 401\)"),
        (400, {"error": "what Info is"}, "Info", BackendError, "what Info is"),  # none to be wrong
        (400, {"error": {"code": 404, "description": "It is gone."}}, "X", UsageError, "is gone"),
    ],
)
def test_a_status_becomes_an_error(
    status: int, body: object, method: str, kind: type[Exception], text: str
) -> None:
    """Each says who refused what, in the agent's words; the class says whose fault it is."""
    error = fails(response(body, status), method)
    assert type(error) is kind
    assert method in str(error)
    assert str(error).startswith("the agent at /")
    with pytest.raises(kind, match=text):
        raise error


@pytest.mark.parametrize(
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
def test_the_agents_words_are_made_safe(body: object) -> None:
    """One printable line, not long: it ends in terminals and logs."""
    text = str(fails(response(body, 500)))
    assert text.isprintable()
    assert "\x1b" not in text
    assert len(text) < 400


# -- nobody there ----------------------------------------------------------------------------------


def test_each_way_of_not_being_there_has_its_words(tmp_path: Path) -> None:
    """So that whoever reads the error knows what to do."""
    with tempfile.TemporaryDirectory(prefix="ak") as name:
        path = Path(name) / "s"
        with pytest.raises(BackendUnavailableError, match=f"{path} is not there: no such socket"):
            AgentClient(str(path)).call("Info")
        path.touch()
        with pytest.raises(BackendUnavailableError, match=f"{path} is a file, and no socket: name"):
            AgentClient(str(path)).call("Info")
        with pytest.raises(BackendUnavailableError, match="no such socket"):
            AgentClient(str(path / "below")).call("Info")
        path.unlink()
        path.mkdir()  # as a container engine does
        with pytest.raises(BackendUnavailableError, match=f"{path} is a folder, .* on the host, "):
            AgentClient(str(path)).call("Info")
        path.rmdir()
        with socket.socket(socket.AF_UNIX) as ended:
            ended.bind(str(path))
        with pytest.raises(BackendUnavailableError, match="not running: nobody listens"):
            AgentClient(str(path)).call("Info")
        path.unlink()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.bind(str(path))
            with pytest.raises(BackendUnavailableError, match=r"cannot be reached: .*wrong type"):
                AgentClient(str(path)).call("Info")
    with pytest.raises(UsageError, match="path too long"):
        AgentClient(str(tmp_path / ("x" * 200))).call("Info")
    with pytest.raises(UsageError, match="idna"):
        AgentClient(f"http://{'x' * 100}.invalid").call("Info")


def test_a_socket_of_others_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may everything, so the refusal is made up here."""

    class Refusing(socket.socket):
        def connect(self, address: object) -> NoReturn:
            raise PermissionError(13, "Permission denied", address)

    monkeypatch.setattr(socket, "socket", Refusing)
    with pytest.raises(BackendUnavailableError, match="may not be used by this user: join"):
        AgentClient("/run/dstack.sock").call("Info")


def test_a_full_queue_is_worth_another_try() -> None:
    """Linux says so at once for a unix socket."""
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
        with pytest.raises(BackendBusyError, match="too many callers"):
            AgentClient(path).call("Info")


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "a\0b",
        "http://",
        "http://:80",
        "http://user:word@host",
        "http://host:x",
        "http://host:0",
        "http://host:99999",
        "http://host/?query",
        "http://host/#part",
        "http://host/a b",
        "http://ho\nst/",
        "http://[::1",
        "https://h\u00f6st",
    ],
)
def test_an_endpoint_that_cannot_be_is_refused(endpoint: str) -> None:
    """Before anything is asked."""
    with pytest.raises(UsageError, match="an agent's"):
        AgentClient(endpoint)


def test_wrong_arguments_are_refused() -> None:
    """Types, times, names and sizes."""
    for timeout in (0, -1, float("nan"), float("inf"), "5", None):
        with pytest.raises(UsageError, match="timeout"):
            AgentClient("/x", timeout=untyped(timeout))
    with pytest.raises(UsageError, match="endpoint"):
        AgentClient(untyped(None))
    client = AgentClient("/nowhere")
    for method in ("", "a/b", "a b", "../x", "Get\r\nX: y"):
        with pytest.raises(UsageError, match="method is a name"):
            client.call(method)
    with pytest.raises(UsageError, match="Sign: its arguments are no JSON"):
        client.call("Sign", {"data": b"bytes"})
    with pytest.raises(UsageError, match="10 MiB"):
        client.call("Sign", {"data": "0" * (10 << 20)})


# -- once, again, and by many ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nnu", b"HTTP/1.1 2", response(b"\xff")],
    ids=["none", "cut", "cut head", "not text"],
)
def test_an_event_whose_answer_is_lost_is_not_emitted_again(answer: bytes) -> None:
    """The error says that nobody knows; `fails` sees to it that it was asked once."""
    error = fails(answer, "EmitEvent")
    assert type(error) is BackendError
    assert "whether the event was emitted is not known" in str(error)
    assert "not known" not in str(fails(answer, "GetKey"))


def test_an_event_that_takes_too_long_is_not_worth_another_try() -> None:
    """As it would be with calls that may be repeated."""
    error = fails(until_it_goes, "EmitEvent", timeout=0.1)
    assert type(error) is BackendError
    assert "did not answer EmitEvent within 0.1 s; whether" in str(error)


def test_an_agent_may_be_restarted_between_calls() -> None:
    """There is no connection to be found dead."""
    with tempfile.TemporaryDirectory(prefix="ak") as name:
        path = f"{name}/s"
        client = AgentClient(path)
        for number in (1, 2):
            with scripted_agent(response({"n": number}), path):
                assert client.call("Info") == {"n": number}
            with pytest.raises(BackendUnavailableError, match="nobody listens"):
                client.call("EmitEvent")
            Path(path).unlink()


def test_a_closed_client_refuses() -> None:
    """Closing twice is closing."""
    client = AgentClient("/nowhere")
    client.close()
    client.close()
    with pytest.raises(UsageError, match="closed"):
        client.call("Info")


def echo(connection: socket.socket, request: Request) -> None:
    """Answer with what was asked."""
    connection.sendall(response({"got": request.message}))


def test_threads_share_a_client() -> None:
    """Every one gets its own answer."""
    with scripted_agent(echo) as agent, ThreadPoolExecutor(16) as pool:
        client = AgentClient(agent.path)
        asked = [{"number": number} for number in range(200)]
        answers = list(pool.map(lambda one: client.call("Info", one), asked))
        assert [answer["got"] for answer in answers] == asked


def test_a_client_survives_fork_and_pickle() -> None:
    """It has no connection between calls, and no lock."""
    with running_server() as server:
        client = AgentClient(server.dstack, timeout=7)
        version = client.call("Version")
        copy = pickle.loads(pickle.dumps(client))
        assert copy.call("Version") == version
        assert repr(copy) == repr(client) == f"AgentClient({server.dstack!r})"
        context = multiprocessing.get_context("fork")
        receiving, sending = context.Pipe(duplex=False)

        def child() -> None:
            sending.send(client.call("Version"))

        process = context.Process(target=child)
        process.start()
        assert receiving.recv() == version
        process.join(PATIENCE)


# -- TLS -------------------------------------------------------------------------------------------


def _request(connection: socket.socket) -> bytes:
    """Read a request without arguments to its end: what is left unread would be a reset."""
    request = b""
    while not request.endswith(b"\r\n\r\n{}") and (piece := connection.recv(1000)):
        request += piece
    return request


def _chain(folder: Path) -> Path:
    """Write a CA, ca.pem, and return the file of a server's key and certificate under it."""
    ca_key, key = P256Key.from_scalar(bytes(31) + b"\1"), P256Key.from_scalar(bytes(31) + b"\2")
    ca = issue_ca(key=ca_key, subject="a CA", path_length=0, not_before=0, not_after=1 << 32)
    leaf = issue_leaf(
        public_key=key,
        subject="an agent",
        alt_names=["localhost"],
        server_auth=True,
        ca_cert=certificate_pem(ca),
        ca_key=ca_key,
        not_before=0,
        not_after=1 << 32,
    )
    (folder / "ca.pem").write_text(certificate_pem(ca))
    (folder / "chain.pem").write_text(key.pkcs8_pem + certificate_pem(leaf))
    return folder / "chain.pem"


def test_https_wants_a_certificate_that_the_system_trusts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys go over it: a certificate of nobody is refused before anything is sent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(_chain(tmp_path))
    seen = []

    def serve(listener: socket.socket) -> None:
        for _ in range(2):
            connection, _ = listener.accept()
            with (
                contextlib.suppress(ssl.SSLError),
                connection,
                context.wrap_socket(connection, server_side=True) as encrypted,
            ):
                seen.append(_request(encrypted))
                encrypted.sendall(response({"a": 1}))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        url = f"https://localhost:{listener.getsockname()[1]}/api"
        with pytest.raises(BackendUnavailableError, match=r"(?i)certificate.verify"):
            AgentClient(url, timeout=PATIENCE).call("Info")
        assert not seen
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        assert AgentClient(url, timeout=PATIENCE).call("Info") == {"a": 1}
        thread.join(PATIENCE)
    assert seen[0].startswith(b"POST /api/Info HTTP/1.1\r\nHost: localhost:")


def test_nobody_pays_for_http_before_it_is_used() -> None:
    """The backend's modules load neither http nor ssl, and AgentKeys not even those."""
    program = """
import sys, attestkit
attestkit.AgentKeys
assert "attestkit.backends" not in sys.modules
import attestkit.backends.dstack_agent
print([name for name in ("http", "http.client", "ssl", "asyncio") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert done.stdout == "[]\n"
