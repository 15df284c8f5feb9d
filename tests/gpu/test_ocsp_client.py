"""Requests reach a responder over HTTP, and only an answer to the question is returned."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from attestkit._crypto.x509.ocsp.answer import MAX_ANSWER, read_ocsp_answer
from attestkit._crypto.x509.ocsp.answer_writer import write_ocsp_answer, write_ocsp_error
from attestkit._crypto.x509.ocsp.request import read_ocsp_request
from attestkit.collateral.http_getter import HttpGetter
from attestkit.errors import CollateralError, UsageError
from attestkit.gpu.endorsement_fetcher import fetch_ocsp
from tests.pki.ocsp_pki import (
    DAY,
    NOW,
    answer_about,
    check_ocsp,
    der,
    issuer_certificate,
    responder_of,
    subject_certificate,
)
from tests.raising import raises
from tests.runner.cases import every_case

NONCE = b"n" * 32
Answer = Callable[[bytes], tuple[int, bytes]]


class Responder(HTTPServer):
    """A responder that a test answers for."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = answer
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/ocsp"


class Handler(BaseHTTPRequestHandler):
    """Handles a POST."""

    server: Responder

    def do_POST(self) -> None:
        """Answer."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.requests.append((self.command, self.path, headers))
        status, answer = self.server.answer(body)
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.send_header("Location", "http://127.0.0.1:1/")
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def responder(answer: Answer) -> Iterator[Responder]:
    """Run a responder."""
    with Responder(answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def respond(request: bytes) -> tuple[int, bytes]:
    """Answer with the nonce and the hash of the request."""
    asked = read_ocsp_request(request)
    answer = write_ocsp_answer(responder_of(), asked.cert_id, NOW, NOW + DAY, nonce=asked.nonce)
    return 200, answer


def fetch(url: str, **options: Any) -> bytes:
    """Ask about the subject."""
    subject, issuer = der(subject_certificate()), der(issuer_certificate())
    return fetch_ocsp(subject, issuer, HttpGetter(timeout=30).post, url, **options)


@every_case("hash_name", ["sha1", "sha256", "sha384"])
@every_case("nonce", [None, NONCE])
def test_fetch_ocsp_over_http(hash_name: str, nonce: bytes | None) -> None:
    """The request is a POST with the type of OCSP; the answer is that about the certificate."""
    with responder(respond) as server:
        answer = fetch(server.url, hash_name=hash_name, nonce=nonce)
    subject, issuer = der(subject_certificate()), der(issuer_certificate())
    assert read_ocsp_answer(answer).nonce == nonce
    assert check_ocsp([answer], subject, issuer, NOW).status == "good"
    ((method, path, headers),) = server.requests
    assert (method, path) == ("POST", "/ocsp")
    assert headers["content-type"] == "application/ocsp-request"
    assert headers["accept"] == "application/ocsp-response"
    assert headers.keys() == {
        *("host", "accept", "accept-encoding", "connection", "user-agent"),
        *("content-type", "content-length"),
    }


@every_case(
    ("answer", "reason", "part"),
    [
        (lambda _: (302, b""), "fetch_failed", "status 302"),
        (lambda _: (500, b""), "fetch_failed", "status 500"),
        (lambda _: (200, b""), "malformed", "OCSP answer"),
        (lambda _: (200, write_ocsp_error("unauthorized")), "fetch_failed", "unauthorized"),
        (lambda _: (200, answer_about(serial=5)), "malformed", "not about the certificate"),
        (lambda _: (200, answer_about()), "malformed", "nonce"),
        (lambda _: (200, answer_about(nonce=b"m" * 32)), "malformed", "nonce"),
        (lambda _: (200, answer_about(nonce=NONCE + b"n")), "malformed", "nonce"),
        (lambda _: (200, answer_about(nonce=NONCE[:-1])), "malformed", "nonce"),
        (lambda _: (200, bytes(MAX_ANSWER + 1)), "too_large", "at most"),
        (lambda _: (200, bytes((1 << 20) + 1)), "too_large", "1 MiB"),
    ],
)
def test_fetch_ocsp_with_bad_answer_raises_collateral_error(
    answer: Answer, reason: str, part: str
) -> None:
    """Redirects, errors, and answers to another question are refused."""
    with responder(answer) as server, raises(CollateralError, reason, part=part):
        fetch(server.url, nonce=NONCE)


def test_fetch_ocsp_with_nonce_of_wrong_size_asks_nothing() -> None:
    """Arguments are checked before anything is sent."""
    with responder(respond) as server, raises(UsageError, "wrong_size"):
        fetch(server.url, nonce=b"")
    assert not server.requests


def test_fetch_ocsp_without_responder_raises_collateral_error() -> None:
    """A responder that cannot be reached is an error that names its URL."""
    with responder(respond) as server:
        url = server.url
    with raises(CollateralError, "fetch_failed", start=url):
        fetch(url)
    with raises(CollateralError, "fetch_failed"):
        fetch("ftp://127.0.0.1/")
