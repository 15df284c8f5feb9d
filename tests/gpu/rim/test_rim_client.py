"""The client of the RIM service: requests, and answers that are rejected."""

import json
from base64 import b64encode
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import pytest

from attestkit.collateral.http_getter import HttpGetter
from attestkit.collateral.responses import Getter, Response
from attestkit.errors import CollateralError, UsageError
from attestkit.gpu import GpuServices
from attestkit.gpu.endorsement_fetcher import MAX_RIM_ANSWER, fetch_rim
from attestkit.gpu.rim.document import MAX_SIZE
from tests.gpu.rim.rims import manifest, sign
from tests.raising import raises
from tests.runner.cases import every_case

IDENTIFIER = "NV_GPU_DRIVER_GH100_550.90.07"
RIM = sign(manifest())


def answer(**changes: Any) -> dict[str, Any]:
    """Return the members of an answer; None leaves one out."""
    fields = {
        "id": IDENTIFIER,
        "rim": b64encode(RIM).decode(),
        "sha256": sha256(RIM).hexdigest(),
        "last_updated": "2025-01-01T00:00:00Z",
        "rim_format": "TCG",
        "request_id": "1",
        **changes,
    }
    return {name: value for name, value in fields.items() if value is not None}


def serving(body: bytes, status: int = 200) -> Getter:
    """Return a getter that has one answer for every URL."""
    return lambda _url: Response(status, {}, body)


def fetch(body: bytes, status: int = 200) -> bytes:
    """Fetch the RIM with this answer."""
    return fetch_rim(IDENTIFIER, serving(body, status))


def test_rim_is_returned_byte_for_byte() -> None:
    """The URL is that of NVIDIA or of a mirror, and the RIM is what was encoded."""
    requested = []

    def get(url: str) -> Response:
        requested.append(url)
        return Response(200, {}, json.dumps(answer()).encode())

    assert fetch_rim(IDENTIFIER, get) == RIM
    assert fetch_rim(IDENTIFIER, get, "http://localhost:8000/mirror/") == RIM
    assert requested == [
        f"https://rim.attestation.nvidia.com/v1/rim/{IDENTIFIER}",
        f"http://localhost:8000/mirror/v1/rim/{IDENTIFIER}",
    ]


def test_rim_is_fetched_over_http() -> None:
    """A server's answer is read with attestkit's own getter, which sends a key if there is one."""
    keys: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(answer()).encode()
            keys.append(self.headers["Authorization"])
            self.send_response(200 if self.path == f"/v1/rim/{IDENTIFIER}" else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            assert fetch_rim(IDENTIFIER, HttpGetter(), url) == RIM
            getter = GpuServices(rim_key="secret").open_rim()
            assert fetch_rim(IDENTIFIER, getter, url) == RIM
            with raises(CollateralError, "missing"):
                fetch_rim("NV_GPU_DRIVER_GH100_1", HttpGetter(), url)
        finally:
            server.shutdown()
            thread.join()
    assert keys == [None, "Bearer secret", None]


def test_rim_key_that_cannot_be_sent_is_refused() -> None:
    """A getter of the caller's own does not receive the key, and a key is printable text."""
    with raises(UsageError, "conflict"):
        GpuServices(getter=HttpGetter(), rim_key="secret").open_rim()
    for key in ("", "a\r\nb: c"):
        with raises(UsageError, "encoding"):
            GpuServices(rim_key=key).open_rim()
    assert "secret" not in repr(GpuServices(rim_key="secret"))


def test_minimal_answer_is_accepted() -> None:
    """Members beside identifier, RIM and hash are optional; unknown ones are ignored."""
    fields = answer(last_updated=None, rim_format=None, request_id=None, more=[1])
    assert fetch(json.dumps(fields).encode()) == RIM
    upper = answer(sha256=sha256(RIM).hexdigest().upper())
    assert fetch(json.dumps(upper).encode()) == RIM


LARGE = b64encode(bytes(MAX_SIZE + 1)).decode()
ANSWERS: dict[str, tuple[object, str]] = {
    "not an object": ([], "malformed"),
    "no identifier": (answer(id=None), "malformed"),
    "another identifier": (answer(id="NV_GPU_DRIVER_GH100_1"), "malformed"),
    "no RIM": (answer(rim=None), "malformed"),
    "RIM is no text": (answer(rim=1), "malformed"),
    "RIM not base64": (answer(rim="*"), "malformed"),
    "RIM base64url": (answer(rim="__8="), "malformed"),
    "large RIM": (answer(rim=LARGE, sha256=sha256(bytes(MAX_SIZE + 1)).hexdigest()), "too_large"),
    "no hash": (answer(sha256=None), "malformed"),
    "another hash": (answer(sha256=sha256(b"").hexdigest()), "malformed"),
    "short hash": (answer(sha256=sha256(RIM).hexdigest()[:62]), "malformed"),
    "hash not hex": (answer(sha256="z" * 64), "malformed"),
    "CoRIM": (answer(rim_format="CORIM"), "malformed"),
    "format is no text": (answer(rim_format=1), "malformed"),
}


@every_case(("fields", "reason"), ANSWERS.values(), ids=ANSWERS)
def test_invalid_answer_is_rejected(fields: object, reason: str) -> None:
    """An answer without the RIM that was asked for, or with another, is rejected."""
    with raises(CollateralError, reason, start=f"RIM {IDENTIFIER}: "):
        fetch(json.dumps(fields).encode())


@every_case(
    "body",
    [b"", b"not JSON", b"\xff", b"{" * 300, b'{"id": "a", "id": "b"}', b'{"id": NaN}'],
)
def test_invalid_json_is_rejected(body: bytes) -> None:
    """Answers are strict JSON."""
    with raises(CollateralError, "malformed"):
        fetch(body)


def test_every_prefix_of_an_answer_is_rejected() -> None:
    """An answer that was cut off is malformed."""
    body = json.dumps(answer(rim="PGEvPg==", sha256=sha256(b"<a/>").hexdigest())).encode()
    assert fetch(body) == b"<a/>"
    for end in range(len(body)):
        with raises(CollateralError, "malformed"):
            fetch(body[:end])


def test_large_answer_is_rejected() -> None:
    """An answer has at most 1 MiB, whatever the getter allows."""
    with raises(CollateralError, "too_large"):
        fetch(b" " * (MAX_RIM_ANSWER + 1))


@every_case(
    ("status", "reason"),
    [(404, "missing"), (401, "fetch_failed"), (403, "fetch_failed"), (500, "fetch_failed")],
)
def test_error_of_the_service(status: int, reason: str) -> None:
    """The reasons of an unknown identifier and of an unreachable service differ."""
    with raises(CollateralError, reason, part=f"status {status}"):
        fetch(json.dumps(answer()).encode(), status)


@every_case(
    "identifier",
    ["", ".", "..", "../ids", "a/b", "a?b", "a#b", "a b", "a%2fb", "a\n", "é", "a" * 129, "\0"],
)
def test_identifier_is_never_a_path(identifier: str) -> None:
    """An identifier that a device's text would turn into another URL is not requested."""
    with raises(CollateralError, "missing"):
        fetch_rim(identifier, pytest.fail)


def test_error_of_the_getter_is_raised() -> None:
    """An error of the getter reaches the caller."""

    def get(url: str) -> Response:
        raise CollateralError(f"{url}: no network", reason="fetch_failed")

    with raises(CollateralError, "fetch_failed", part="no network"):
        fetch_rim(IDENTIFIER, get)
