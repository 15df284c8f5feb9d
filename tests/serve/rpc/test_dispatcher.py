"""Routing of requests to methods, encodings, limits and error statuses."""

import asyncio
import json
import logging
import threading
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from attestkit import errors
from attestkit.errors import UsageError
from attestkit.serve.config.limits import Limits
from attestkit.serve.counters import OTHER, Traffic
from attestkit.serve.external_auth.access_errors import ScopeError, TokenError
from attestkit.serve.http.request_body import BodyReader
from attestkit.serve.http.views import View, ViewRequest, ViewResponse
from attestkit.serve.rpc import protobuf_codec
from attestkit.serve.rpc.dispatcher import RpcApp
from attestkit.serve.rpc.messages import AttestResponse, GetKeyArgs, RawQuoteArgs
from attestkit.serve.rpc.service import Method, Service
from attestkit.serve.services.context import Guest
from attestkit.serve.services.device_queue import DeviceQueue
from tests.runner.cases import every_case
from tests.serve.asgi import BINARY_TYPE, JSON_TYPE, Client
from tests.untyped import untyped


class _Guest:
    """The part of Guest that the dispatcher uses."""

    device_blocks = False
    on_device = Guest.on_device

    def __init__(self) -> None:
        self.queue = DeviceQueue(1)

    def _device_queue(self) -> DeviceQueue:
        return self.queue


class _Call(NamedTuple):
    path: str
    thread: int


def _fail(_: Any, args: GetKeyArgs) -> None:
    if args.path == "foreign":
        raise OSError("/secret/path is not readable")
    kind = getattr(errors, args.path)
    raise kind(args.purpose, reason=min(kind.reasons(), default=""))


@pytest.fixture
def calls() -> list[_Call]:
    """Return the list of recorded calls."""
    return []


@pytest.fixture
def guest() -> _Guest:
    """Return a guest whose device does not block."""
    return _Guest()


@pytest.fixture
def client(guest: _Guest, calls: list[_Call], loop: asyncio.AbstractEventLoop) -> Client:
    """Return a client of an application with two services, a page, a header and a guard."""

    def note(_: Any, args: GetKeyArgs) -> None:
        calls.append(_Call(args.path, threading.get_ident()))

    def echo(_: Any, args: RawQuoteArgs) -> AttestResponse:
        return AttestResponse(args.report_data)

    def refuse(scope: Any) -> None:
        if (b"x-evil", b"1") in scope["headers"]:
            raise UsageError("refused", reason="wrong_value")

    root = Service(
        {
            "Note": Method(note, GetKeyArgs),
            "Device": Method(note, GetKeyArgs, device=True),
            "Echo": Method(echo, RawQuoteArgs),
            "Fail": Method(_fail, GetKeyArgs),
            "Ping": Method(lambda _, args: args),
        }
    )
    prpc = Service({"Note": Method(note, GetKeyArgs)}, "/prpc/", "Old.")

    async def page(_guest: Any, _asked: ViewRequest) -> ViewResponse:
        return ViewResponse(b"text/html", b"<p>page</p>")

    app = RpcApp(
        untyped(guest),
        [root, prpc],
        views={"/": View(page)},
        headers=[(b"server", b"test")],
        guard=refuse,
    )
    return Client(app, loop)


@pytest.mark.parametrize(
    "path",
    ["/Note", "/%4Eote", "/prpc/Note", "/prpc/Old.Note", "/prpc/Old.Old.Note", "/prpc/%4fld.Note"],
)
def test_path_leads_to_method(client: Client, calls: list[_Call], path: str) -> None:
    """One segment after the mount, percent-decoded, without the service's prefixes."""
    response = client.post(path, {"path": "a"})
    assert (response.status, response.body) == (200, b"null")
    assert [call.path for call in calls] == ["a"]


@every_case(
    ("path", "error"),
    [
        ("/Nope", "Service not found: Nope"),
        ("/note", "Service not found: note"),
        ("/Old.Note", "Service not found: Old.Note"),
        ("/a%2Fb", "Service not found: a/b"),
        ("/prpc", "Service not found: prpc"),
        ("/prpc/Old.Nope", "Service not found: Nope"),
        ("/prpc/Old.", "Service not found: "),
        ("/prpc/Ping", "Service not found: Ping"),
        ("/%D1%86", "Service not found: ц"),
        ("/%FF", "Service not found: \ufffd"),
        ("/prpc/", "No such path: /prpc/"),
        ("//Note", "No such path: //Note"),
        ("/Note/", "No such path: /Note/"),
        ("/a/b", "No such path: /a/b"),
    ],
)
@every_case("verb", ["GET", "POST"])
def test_unknown_path_is_404(client: Client, verb: str, path: str, error: str) -> None:
    """An unknown method is named, an unknown path is shown."""
    response = client.request(verb, path, b"", {"content-type": JSON_TYPE})
    assert (response.status, response.error()) == (404, error)


def test_post_ignores_query(client: Client) -> None:
    """POST reads the message from the body only."""
    assert client.post("/Echo?report_data=ab", {}).body == b'{"attestation":""}'


@pytest.mark.parametrize("verb", ["PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("path", ["/Note", "/"])
def test_other_http_method_is_404(client: Client, calls: list[_Call], verb: str, path: str) -> None:
    """Methods other than GET, HEAD and POST call nothing."""
    response = client.request(verb, path, b"{}")
    assert response.status == 404
    response.error()
    assert calls == []


def test_get_reads_message_from_query(client: Client) -> None:
    """GET reads the message from the query and ignores a body."""
    response = client.request("GET", "/Echo?report_data=0xAB&json", b'{"report_data":"cd"}')
    assert (response.status, response.body) == (200, b'{"attestation":"ab"}')
    assert client.read == 0


FORM = "application/x-www-form-urlencoded"


@every_case(
    ("query", "content_type"),
    [
        *[("", JSON_TYPE), ("", f"{JSON_TYPE}; charset=utf-8"), ("", "Application/JSON ;x=y")],
        # A body with a brace is JSON for curl's default content type.
        *[("", None), ("", ""), ("", FORM), ("", "text/plain;charset=UTF-8")],
        *[(f"?{flag}", "image/png") for flag in ("json", "json=", "json=1", "json=true")],
        ("?a=b&json", "image/png"),
    ],
)
def test_json_is_selected(client: Client, query: str, content_type: str | None) -> None:
    """JSON is selected by content type, by a brace, or by `?json`; so are its errors."""
    headers = {} if content_type is None else {"content-type": content_type}
    for body, status, answer in (
        (b'{"report_data":"ab"}', 200, {"attestation": "ab"}),
        (b'{"report_data":1}', 400, {"error": "report_data: must be a string of hex digits"}),
    ):
        response = client.request("POST", f"/Echo{query}", body, headers)
        assert (response.status, response.json()) == (status, answer)
        assert response.headers["content-type"] == JSON_TYPE


BINARY = {"content-type": BINARY_TYPE}


@pytest.mark.parametrize(
    "headers",
    [
        BINARY,
        {},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "text/plain"},
        {"content-type": "application/json-seq"},
        {"content-type": "application/x-protobuf; json"},
        {"accept": JSON_TYPE},
    ],
)
def test_other_post_is_protobuf(client: Client, headers: dict[str, str]) -> None:
    """Requests, responses and errors are binary, whatever other headers exist."""
    for body, status, answer in (
        (b"", 200, b""),
        (b"\x0a\x01\xab", 200, b"\x0a\x01\xab"),
        (b"\x0a\x05\xab", 400, b"\x0a\x31request body: not a protobuf message RawQuoteArgs"),
        (b"[]", 400, b"\x0a\x31request body: not a protobuf message RawQuoteArgs"),
    ):
        response = client.request("POST", "/Echo", body, headers)
        assert (response.status, response.body) == (status, answer)
        assert response.headers["content-type"] == BINARY_TYPE


def test_declared_protobuf_is_not_json(client: Client) -> None:
    """With a protobuf content type a JSON body is malformed, unless the query selects JSON."""
    for query in ("", "?json=0", "?json=false", "?a=json", "?xjson"):
        response = client.request("POST", f"/Echo{query}", b'{"report_data":"ab"}', BINARY)
        assert (response.status, response.headers["content-type"]) == (400, BINARY_TYPE)
        assert b"not a protobuf message" in response.body


def test_protobuf_method_error(client: Client) -> None:
    """Errors keep their status; unexpected ones contain only a request id."""
    response = client.request("POST", "/%FF", b"", BINARY)
    text = "Service not found: \ufffd".encode()
    assert (response.status, response.body) == (404, b"\x0a" + bytes([len(text)]) + text)
    assert response.headers["content-type"] == BINARY_TYPE
    fail = GetKeyArgs(path="BackendError", purpose="because")
    response = client.request("POST", "/Fail", b"".join(protobuf_codec.encode(fail)), BINARY)
    assert (response.status, response.body) == (500, b"\x0a\x07because")
    response = client.request("POST", "/Fail", b"\x0a\x07foreign", BINARY)
    assert (response.status, response.body[2:]) == (
        500,
        f"internal error, request {response.request_id}".encode(),
    )
    response = client.request("POST", "/Fail", bytes(Limits().body + 1), BINARY)
    assert (response.status, response.body[2:]) == (413, b"failed to read data: payload too large")


def test_large_body_without_content_type_is_refused_in_json(client: Client) -> None:
    """The error is JSON, because such a client is probably curl."""
    headers = {"content-length": str(Limits().body + 1)}
    assert client.request("POST", "/Echo", b"", headers).error().endswith("payload too large")


def test_method_without_request_ignores_payload(client: Client) -> None:
    """A payload is ignored if the request message is empty."""
    for response in (
        client.request("POST", "/Ping", b"{broken", {"content-type": JSON_TYPE}),
        client.get("/Ping?a=b&a=%FF"),
    ):
        assert (response.status, response.body) == (200, b"null")
    response = client.request("POST", "/Ping", b"\xff", BINARY)
    assert (response.status, response.body) == (200, b"")
    assert response.headers["content-type"] == BINARY_TYPE


def test_chunked_body_is_joined(client: Client) -> None:
    """A chunked body is joined."""
    parts = [b'{"report', b"", b'_data":', b'"ab"}']
    response = client.request("POST", "/Echo", parts, {"content-type": JSON_TYPE})
    assert response.body == b'{"attestation":"ab"}'


def test_body_at_limit_is_read(client: Client) -> None:
    """A body of exactly 10 MiB is accepted."""
    body = b'{"report_data":"' + b"00" * ((Limits().body - 18) // 2) + b'"}'
    assert len(body) == Limits().body
    assert client.request("POST", "/Echo", body, {"content-type": JSON_TYPE}).status == 200


@pytest.mark.parametrize("verb", ["POST", "GET"])
def test_declared_body_over_limit_is_not_read(client: Client, verb: str) -> None:
    """A Content-Length over the limit is refused before reading."""
    headers = {"content-type": JSON_TYPE, "content-length": str(Limits().body + 1)}
    response = client.request(verb, "/Echo", b"{}", headers)
    assert (response.status, response.error()) == (
        413,
        "failed to read data: payload too large",
    )
    assert client.read == 0
    assert response.headers["connection"] == "close"


def test_chunked_body_over_limit_is_refused(client: Client) -> None:
    """Reading ends at the first chunk over the limit."""

    def endless() -> Iterator[bytes]:
        while True:
            yield bytes(1 << 20)

    response = client.request("POST", "/Echo", endless(), {"content-type": JSON_TYPE})
    assert (response.status, response.error()) == (
        413,
        "failed to read data: payload too large",
    )
    assert client.read == Limits().body + (1 << 20)
    assert response.headers["connection"] == "close"


@every_case(
    ("path", "error"),
    [
        ("/Nope", "Service not found: Nope"),
        ("/%4Eope", "Service not found: Nope"),
        ("/prpc/Old.Nope", "Service not found: Nope"),
        ("/prpc/Ping", "Service not found: Ping"),
        ("/a/b", "No such path: /a/b"),
        ("/prpc/", "No such path: /prpc/"),
    ],
)
def test_unknown_path_with_large_body_is_404(client: Client, path: str, error: str) -> None:
    """The body is not read to its end, so the connection is closed; a small one is read."""

    def endless() -> Iterator[bytes]:
        while True:
            yield bytes(1 << 14)

    for body, read in ((bytes(70_000), 0), (endless(), 5 << 14), (bytes(Limits().body + 1), 0)):
        response = client.request("POST", path, body, {"content-type": JSON_TYPE})
        assert (response.status, response.error()) == (404, error)
        assert (response.headers["connection"], client.read) == ("close", read)
    binary = client.request("POST", path, bytes(70_000), BINARY)
    assert (binary.status, binary.headers["content-type"]) == (404, BINARY_TYPE)
    assert binary.headers["connection"] == "close"
    assert binary.body[2:] == error.encode()
    for content_type, sent in ((JSON_TYPE, bytes(1 << 16)), (FORM, b"{" + bytes((1 << 16) - 1))):
        response = client.request("POST", path, sent, {"content-type": content_type})
        assert (response.status, response.error()) == (404, error)
        assert "connection" not in response.headers
        assert client.read == 1 << 16


@every_case("path", ["/Echo", "/%45cho", "/prpc/Old.Note", "/prpc/Old.Old.Note", "/prpc/%4eote"])
def test_any_spelling_of_a_method_has_the_same_limit(client: Client, path: str) -> None:
    """The limit of a body is that of the method, however its path is written."""
    padded = json.dumps({"report_data": "ab", "path": "x"}).encode().ljust(100_000)
    for body in (padded, [padded[:9], padded[9:]]):
        assert client.request("POST", path, body, {"content-type": JSON_TYPE}).status == 200
    for large in (bytes(Limits().body + 1), [bytes(1 << 20)] * 11):
        response = client.request("POST", path, large, {"content-type": JSON_TYPE})
        assert (response.status, response.headers["connection"]) == (413, "close")


def test_client_disconnect_sends_nothing(client: Client, calls: list[_Call]) -> None:
    """An incomplete request calls nothing and sends nothing."""
    assert (client.disconnect("/Note"), calls) == ([], [])


STATUSES = {"FormatError": 400, "UsageError": 400, "NotFoundError": 404}


@every_case("name", errors.__all__)
def test_error_status_and_text(client: Client, name: str) -> None:
    """400 for the caller's errors, 404 for missing objects, otherwise 500."""
    response = client.post("/Fail", {"path": name, "purpose": "because"})
    assert (response.status, response.error()) == (STATUSES.get(name, 500), "because")


def test_unexpected_error_is_logged_not_returned(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """The client receives a request id, which is in the log with the traceback."""
    with caplog.at_level(logging.ERROR, "attestkit.serve"):
        response = client.post("/Fail", {"path": "foreign"})
    assert response.status == 500
    assert response.request_id == "0-00000001"
    assert response.error() == "internal error, request 0-00000001"
    assert "request 0-00000001 failed" in caplog.text
    assert "/secret/path" in caplog.text


def test_guard_precedes_routing(client: Client, calls: list[_Call]) -> None:
    """A refusal by the guard calls nothing, on any path."""
    for path in ("/Note", "/Nope", "/"):
        response = client.get(path, x_evil="1")
        assert (response.status, response.error()) == (400, "refused")
    assert calls == []


@every_case("path", ["/Echo", "/%45cho", "/Nope"])
def test_refused_request_is_counted_by_method(client: Client, path: str) -> None:
    """A request that is refused before the call is counted by its method; others as `other`."""

    async def refuse(request: Any, route: str | None) -> None:
        if (b"x-anonymous", b"1") in request["headers"]:
            raise TokenError(f"no token for {route}", reason="no_token")
        if (b"x-narrow", b"1") in request["headers"]:
            raise ScopeError("info")

    app = untyped(client.app)
    app.access = SimpleNamespace(check=refuse)
    requests: tuple[tuple[dict[str, str], bytes | list[bytes]], ...] = (
        ({"x-evil": "1"}, b"{}"),
        ({"x-anonymous": "1"}, b"{}"),
        ({"x-narrow": "1"}, b"{}"),
        ({}, bytes(Limits().body + 1)),
        ({}, [bytes(1 << 20)] * 2),
    )
    app._bodies, app.traffic = BodyReader(1 << 20), Traffic()
    found = [client.request("POST", path, body, headers) for headers, body in requests]
    is_known = path != "/Nope"
    statuses = [400, 401, 403, *([413, 503] if is_known else [404, 404])]
    assert [response.status for response in found] == statuses
    name = "Echo" if is_known else OTHER
    assert app.traffic.requests == Counter((name, status) for status in statuses)


def test_page_is_served_for_get_and_head(client: Client) -> None:
    """A page is served for GET and HEAD, not for POST."""
    response = client.get("/?json")
    assert (response.status, response.body) == (200, b"<p>page</p>")
    assert response.headers["content-type"] == "text/html"
    assert client.request("HEAD", "/").headers == response.headers
    response = client.post("/")
    assert (response.status, response.error()) == (404, "No such path: /")


def test_blocking_device_methods_run_in_thread(
    client: Client, guest: _Guest, calls: list[_Call]
) -> None:
    """Only device methods of a blocking backend run in its thread."""
    guest.device_blocks = True
    client.post("/Note", {"path": "inline"})
    client.post("/Device", {"path": "thread"})
    client.post("/Device", {"path": "thread"})
    assert json.loads(client.post("/Device", {"path": 1}).body)["error"]
    guest.queue.close()
    guest.device_blocks = False
    client.post("/Device", {"path": "inline"})
    here = threading.get_ident()
    assert {call.path for call in calls if call.thread == here} == {"inline"}
    assert len({call.thread for call in calls if call.path == "thread"}) == 1
    assert len(calls) == 4


def test_other_scope_is_refused(client: Client, loop: asyncio.AbstractEventLoop) -> None:
    """Scopes other than HTTP raise."""
    with pytest.raises(RuntimeError, match="lifespan"):
        loop.run_until_complete(client.app({"type": "lifespan"}, untyped(None), untyped(None)))


_TYPES = (b"", b"application/json", b"APPLICATION/JSON;x", b"text/plain", b"application/x-protobuf")


@every_case("query", ["", "?json", "?report_data=ab&json=1", "?report_data=z"])
@every_case("path", ["/Echo", "/Ping", "/Fail", "/prpc/Old.Note"])
def test_direct_and_asgi_responses_are_equal(client: Client, path: str, query: str) -> None:
    """A direct response equals that through ASGI."""
    app = client.app
    assert isinstance(app, RpcApp)
    app.guard = None
    target = f"{path}{query}".encode()
    call = app.direct(target, None)
    assert call is not None
    bodies = (b"", b"{", b'{"report_data":"ab","path":"UsageError"}', b'{"path":"foreign"}', b"[]")
    payloads: list[tuple[bytes, bytes | None]] = [(b"", None)]
    for content_type, body in [
        *payloads,
        *((t, b) for t in _TYPES for b in (*bodies, b"\x0a\x01a")),
    ]:
        headers = {"content-type": content_type.decode()} if content_type else {}
        slow = client.request(
            "GET" if body is None else "POST", target.decode(), body or b"", headers
        )
        status, head, pieces, size, request_id = app.respond(call, target, content_type, body)
        assert size == sum(map(len, pieces))
        found = dict(line.split(": ", 1) for line in head.decode().splitlines())
        assert found.pop("x-request-id") == request_id.decode() != slow.request_id
        assert (status, found) == (slow.status, slow.headers)
        assert b"".join(pieces) == slow.body.replace(slow.request_id.encode(), request_id)
