"""The WSGI middleware: it answers for the document, and leaves all else to the app."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.validate import validator

import httpx

from attestkit.client.document import PATH
from attestkit.client.document_endpoint import AT_ONCE, WAITING
from attestkit.client.services.own_document import OwnDocument
from attestkit.client.wsgi import Attested
from tests.client.middleware.documents import NONCE, PEER, tee
from tests.client.middleware.test_asgi import Failing, Held
from tests.runner.cases import every_case

TLS: Final = [PEER.spki_sha256]
QUERY: Final = f"nonce={NONCE.hex()}"
SECONDS: Final = 20.0


def echo_app() -> Any:
    """Return an app that returns the body of a POST to /echo."""

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if environ["PATH_INFO"] != "/echo":
            status, body = "404 Not Found", b""
        elif environ["REQUEST_METHOD"] != "POST":
            status, body = "405 Method Not Allowed", b""
        else:
            size = int(environ.get("CONTENT_LENGTH") or 0)
            status, body = "200 OK", environ["wsgi.input"].read(size)
        headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))]
        start_response(status, headers)
        return [body]

    return app


def client(app: Any) -> httpx.Client:
    """Return a client of an app."""
    transport = httpx.WSGITransport(app=app)
    return httpx.Client(transport=transport, base_url="https://app.example.com")


def test_document_and_app() -> None:
    """The document is answered, and the app is as before."""
    with client(Attested(echo_app(), tee(), tls=TLS)) as http:
        answer = http.get(f"{PATH}?{QUERY}")
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "no-store"
        [machine] = OwnDocument().read((answer.content,), NONCE, PEER, None).machines
        tee().verify(machine.evidence, report_data=machine.report_data)
        assert http.post("/echo", content=b"body").content == b"body"
        assert http.get("/echo").status_code == 405
        assert http.get(f"{PATH}/").status_code == 404


@every_case(
    ("method", "query", "status"),
    [
        ("GET", "", 400),
        ("GET", f"{QUERY}&{QUERY}", 400),
        ("GET", QUERY.upper(), 400),
        ("POST", QUERY, 405),
        ("HEAD", QUERY, 405),
    ],
)
def test_other_requests_are_refused(method: str, query: str, status: int) -> None:
    """The nonce is 64 lower-case hex digits, given once, with GET."""
    with client(Attested(echo_app(), Failing(ValueError()), tls=TLS)) as http:
        answer = http.request(method, f"{PATH}?{query}")
    assert answer.status_code == status
    assert answer.headers["cache-control"] == "no-store"


def test_failure_is_not_told() -> None:
    """The client gets 503 without details."""
    with client(Attested(echo_app(), Failing(ValueError("secret")), tls=TLS)) as http:
        answer = http.get(f"{PATH}?{QUERY}")
    assert answer.status_code == 503
    assert "secret" not in answer.text


def test_requests_are_bounded() -> None:
    """Four quotes are made at once, 16 wait, a further one is refused."""
    held, answers = Held(), SimpleQueue[int]()

    def get() -> None:
        with client(app) as http:
            answers.put(http.get(f"{PATH}?{QUERY}").status_code)

    app = Attested(echo_app(), held, tls=TLS)
    threads = [threading.Thread(target=get) for _ in range(AT_ONCE + WAITING + 1)]
    for thread in threads:
        thread.start()
    assert answers.get(timeout=SECONDS) == 503  # while the others wait
    held.release.release(AT_ONCE + WAITING)
    for _ in range(AT_ONCE + WAITING):
        assert answers.get(timeout=SECONDS) == 200
    for thread in threads:
        thread.join(SECONDS)
    assert held.most == AT_ONCE


class Quiet(WSGIRequestHandler):
    """A handler that logs nothing."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as in the base class
        """Log nothing."""


@contextmanager
def serve(app: Any) -> Iterator[str]:
    """Serve an app with Python's own server."""
    with make_server("127.0.0.1", 0, app, WSGIServer, Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_server_of_the_standard_library() -> None:
    """The middleware does what PEP 3333 says, and so a checker of it accepts."""
    attested = Attested(validator(echo_app()), tee(), tls=TLS)
    with serve(validator(attested)) as url, httpx.Client(base_url=url, trust_env=False) as http:
        assert http.get(f"{PATH}?{QUERY}").status_code == 200
        assert http.get(PATH).status_code == 400
        assert http.post("/echo", content=b"body").content == b"body"
