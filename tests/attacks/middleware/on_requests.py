"""Attempts on the middleware by requests: methods, nonces, paths, headers, and floods."""

import json
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from attestkit.attestation import Attestation
from attestkit.client import wsgi
from attestkit.client.document import PATH, read_document
from attestkit.client.document_endpoint import AT_ONCE, WAITING, TlsKeys
from attestkit.testing.tls_listener import LoopbackCa
from tests.attacks.attempts import Surfaces
from tests.attacks.middleware.on_documents import QUERY, Answer, check_genuine, get, verify
from tests.client.middleware.documents import NONCE, PEER, tee

attacks = Surfaces("middleware")
SECRET: Final = "/dev/secret-device"


class Counting:
    """A TEE that counts its quotes."""

    def __init__(self) -> None:
        self.made = 0

    def attest(self, *, report_data: bytes) -> Attestation:
        """Return evidence."""
        self.made += 1
        return tee().attest(report_data=report_data)


def _makes_none(status: int, **request: Any) -> Answer:
    """Send a request, which must have this status, and cause no quote."""
    check_genuine()
    counting = Counting()
    answer = get(source=counting, **request)
    assert (answer.status, counting.made) == (status, 0)
    assert "access-control-allow-origin" not in answer.headers
    return answer


def _is_not_allowed(request: dict[str, Any]) -> None:
    _makes_none(405, **{"method": "POST", **request})


def _is_no_nonce(query: bytes) -> None:
    _makes_none(400, query=query)


_TRICKS: Final[dict[str, dict[str, Any]]] = {
    "a method override in a header": {"headers": {"x-http-method-override": "GET"}},
    "a method in lower case": {"method": "get"},
    "a preflight of a web page": {
        "method": "OPTIONS",
        "headers": {"origin": "https://evil.example", "access-control-request-method": "GET"},
    },
    "a trace": {"method": "TRACE"},
}
for _name, _request in _TRICKS.items():
    attacks.add(
        "confuse",
        f"document by {_name}",
        partial(_is_not_allowed, _request),
    )

for _name, _query in {
    "its digits encoded": b"nonce=" + b"%61" * 64,
    "its name encoded": QUERY.replace(b"n", b"%6e", 1),
    "brackets": QUERY.replace(b"=", b"[]="),
    "a semicolon between two": QUERY + b";" + QUERY,
    "digits of another script": b"nonce=" + "\u0660".encode() * 64,
    "a NUL behind it": QUERY + b"\0",
    "a line feed behind it": QUERY + b"\n",
    "a second one of another length": QUERY + b"&nonce=00",
}.items():
    attacks.add(
        "confuse",
        f"nonce with {_name}",
        partial(_is_no_nonce, _query),
    )


def _of_the_app(path: str) -> None:
    """Check that the application answers, in whose name caches keep the answer."""
    answer = _makes_none(404, path=path)
    assert answer.body == b"of the app"


for _name, _path in {
    "a style sheet beneath it": f"{PATH}/style.css",
    "a parameter of the segment": f"{PATH};a=b.css",
    "another case": PATH.upper(),
    "two slashes": f"/{PATH}",
    "dot segments": f"/a/..{PATH}",
    "a NUL behind it": f"{PATH}\0.css",
    "a slash that was encoded twice": "/.well-known%2Fattestkit",
}.items():
    attacks.add(
        "confuse",
        f"document in a cache under {_name}",
        partial(_of_the_app, _path),
    )


@attacks.attempt("confuse")
def document_over_a_web_socket() -> None:
    """The path of the document belongs to HTTP alone."""
    check_genuine()
    counting = Counting()
    get(type="websocket", source=counting)
    assert counting.made == 0


@attacks.attempt("replay")
def document_from_a_cache_by_conditions_and_ranges() -> None:
    """Neither a part of it nor "not modified" is an answer, and no cache may keep it."""
    answer = get(headers={"if-none-match": "*", "range": "bytes=0-9", "if-range": '"a"'})
    assert answer.status == 200
    assert answer.headers["cache-control"] == "no-store"
    assert not {"etag", "last-modified", "accept-ranges", "age"} & answer.headers.keys()
    verify(answer.body)


@attacks.attempt("confuse")
def web_page_reads_the_document() -> None:
    """No header allows a page of another origin to read it, nor a browser to guess a type."""
    answer = get(headers={"origin": "https://evil.example", "referer": "https://evil.example/"})
    names = answer.headers.keys()
    assert not any(name.startswith("access-control-") for name in names)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-type"] == "application/json"


@attacks.attempt("confuse")
def headers_of_a_proxy_change_the_statement() -> None:
    """Host and headers of proxies are the client's claims, and not attested."""
    found = get(
        headers={
            "host": "evil.example",
            "x-forwarded-host": "evil.example",
            "x-forwarded-client-cert": "Hash=" + "aa" * 32,
            "forwarded": "host=evil.example",
        }
    )
    statement = read_document(found.body, NONCE).statement
    assert statement.tls == (PEER.spki_sha256,)
    assert b"evil" not in statement.encoded


class _Failing:
    def attest(self, *, report_data: bytes) -> Attestation:
        del report_data
        raise RuntimeError(f"{SECRET}: " + "\r\nSet-Cookie: a=b")


@attacks.attempt("confuse")
def error_of_the_device_in_the_answer() -> None:
    """The client gets an identifier alone."""
    answer = get(source=_Failing())
    assert answer.status == 503
    assert json.loads(answer.body).keys() == {"error", "id"}
    assert SECRET.encode() not in answer.body
    assert not any("\n" in value for value in answer.headers.values())


# -- floods ----------------------------------------------------------------------------------------


@attacks.attempt("exhaust")
def query_of_the_size_that_servers_take() -> None:
    """It is refused in time that is proportional to its size."""
    before = time.process_time()
    for query in (b"&" * (1 << 16), b"nonce=0&" * (1 << 13), b"nonce=" + b"0" * (1 << 16)):
        _makes_none(400, query=query)
    assert time.process_time() - before < 0.5


class _Held:
    """A TEE whose quotes wait."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.running = self.most = 0
        self._lock = threading.Lock()

    def attest(self, *, report_data: bytes) -> Attestation:
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
        assert self.go.wait(20)
        with self._lock:
            self.running -= 1
        return tee().attest(report_data=report_data)


def _call_wsgi(app: Any, method: str = "GET", query: str = QUERY.decode()) -> int:
    found: list[str] = []
    environ = {"PATH_INFO": PATH, "QUERY_STRING": query, "REQUEST_METHOD": method}
    app(environ, lambda status, _headers: found.append(status))
    return int(found[0].split()[0])


@attacks.attempt("exhaust")
def flood_of_questions_from_many_threads() -> None:
    """Four quotes are made at once, sixteen wait, and all others are refused at once."""
    check_genuine()
    held, statuses = _Held(), list[int]()
    app = wsgi.Attested(lambda *_: [b""], held, tls=[PEER.spki_sha256])
    threads = [
        threading.Thread(target=lambda: statuses.append(_call_wsgi(app)), daemon=True)
        for _ in range(60)
    ]
    for one in threads:
        one.start()
    refused = len(threads) - AT_ONCE - WAITING
    deadline = time.monotonic() + 20
    while len(statuses) < refused and time.monotonic() < deadline:
        time.sleep(0.005)
    assert statuses == [503] * refused
    held.go.set()
    for one in threads:
        one.join(20)
    assert held.most <= AT_ONCE
    assert statuses.count(200) == AT_ONCE + WAITING
    assert _call_wsgi(app) == 200


@attacks.attempt("exhaust")
def flood_of_requests_that_are_refused_takes_no_place() -> None:
    """Wrong nonces and methods, and quotes that fail, leave all places free."""
    check_genuine()
    failing = wsgi.Attested(lambda *_: [b""], tee(), tls=[PEER.spki_sha256])
    for _ in range(AT_ONCE + WAITING + 1):
        assert _call_wsgi(failing, query="nonce=0") == 400
        assert _call_wsgi(failing, method="POST") == 405
    assert _call_wsgi(failing) == 200


@attacks.attempt("exhaust")
def quotes_that_fail_give_their_places_back() -> None:
    """An attacker who makes the device fail does not use up the places."""
    app = wsgi.Attested(lambda *_: [b""], _Failing(), tls=[PEER.spki_sha256])
    for _ in range(AT_ONCE + WAITING + 1):
        assert _call_wsgi(app) == 503
    app._tee = tee()
    assert _call_wsgi(app) == 200


# -- the file of the certificate -------------------------------------------------------------------


def _replaced(make: Callable[[Path], object], tmp_path: Path) -> None:
    """Replace the file by something else: the last keys remain, and nothing waits."""
    file = tmp_path / "leaf.pem"
    file.write_text(LoopbackCa().issue().certificate_chain[0])
    keys = TlsKeys(file)
    before = keys.current()
    file.unlink()
    make(file)
    found: list[tuple[bytes, ...]] = []
    thread = threading.Thread(target=lambda: found.append(keys.current()), daemon=True)
    thread.start()
    thread.join(5)
    assert found == [before]


_REPLACED: Final[dict[str, Callable[[Path], object]]] = {
    "a pipe": os.mkfifo,
    "a link to an endless device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": Path.mkdir,
    "a link to itself": lambda path: path.symlink_to(path),
    "2 MiB": lambda path: path.write_bytes(bytes(2 << 20)),
}
for _name, _make in _REPLACED.items():
    attacks.add("exhaust", f"certificate file that becomes {_name}", partial(_replaced, _make))
