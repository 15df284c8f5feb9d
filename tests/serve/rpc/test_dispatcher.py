"""Requests reach their method in every form the API allows, and mistakes get the right status."""

import asyncio
import json
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest

from attestkit import errors
from attestkit.errors import AttestKitError, NotFoundError, UsageError
from attestkit.serve.config.limits import Limits
from attestkit.serve.http.views import Answer, Asked, View
from attestkit.serve.rpc import protobuf_codec
from attestkit.serve.rpc.dispatcher import Method, RpcApp, Service, status_of
from attestkit.serve.rpc.messages import AttestResponse, GetKeyArgs, RawQuoteArgs
from attestkit.serve.services.context import Guest
from tests.serve.asgi import BINARY_TYPE, JSON_TYPE, Client
from tests.untyped import untyped


class _Guest:
    """As much of a Guest as the dispatcher touches."""

    executor: ThreadPoolExecutor | None = None
    _writes = 0
    on_device = Guest.on_device


class _Seen(NamedTuple):
    path: str
    thread: int


def _fail(_: Any, args: GetKeyArgs) -> None:
    if args.path == "foreign":
        raise OSError("/secret/path is not readable")
    raise getattr(errors, args.path)(args.purpose)


@pytest.fixture
def seen() -> list[_Seen]:
    """What the methods of the application were called with."""
    return []


@pytest.fixture
def guest() -> _Guest:
    """A guest whose device does not block."""
    return _Guest()


@pytest.fixture
def client(guest: _Guest, seen: list[_Seen], loop: asyncio.AbstractEventLoop) -> Client:
    """An application of two services, a page, a header and a guard."""

    def note(_: Any, args: GetKeyArgs) -> None:
        seen.append(_Seen(args.path, threading.get_ident()))

    def echo(_: Any, args: RawQuoteArgs) -> AttestResponse:
        return AttestResponse(args.report_data)

    def refuse(scope: Any) -> None:
        if (b"x-evil", b"1") in scope["headers"]:
            raise UsageError("refused")

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

    async def page(_guest: Any, _asked: Asked) -> Answer:
        return Answer(b"text/html", b"<p>page</p>")

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
def test_paths_that_lead_to_a_method(client: Client, seen: list[_Seen], path: str) -> None:
    """One segment after the mount, percent escapes decoded, every leading prefix stripped."""
    response = client.post(path, {"path": "a"})
    assert (response.status, response.body) == (200, b"null")
    assert [call.path for call in seen] == ["a"]


@pytest.mark.parametrize(
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
@pytest.mark.parametrize("verb", ["GET", "POST"])
def test_paths_that_lead_nowhere(client: Client, verb: str, path: str, error: str) -> None:
    """An unknown method is a 404 that names it, an unmounted path one that shows it."""
    response = client.request(verb, path, b"", {"content-type": JSON_TYPE})
    assert (response.status, response.error()) == (404, error)


@pytest.mark.parametrize("verb", ["PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("path", ["/Note", "/"])
def test_other_verbs_are_not_found(client: Client, seen: list[_Seen], verb: str, path: str) -> None:
    """Only GET, HEAD and POST exist, and nothing runs for another."""
    response = client.request(verb, path, b"{}")
    assert response.status == 404
    response.error()
    assert seen == []


def test_get_reads_the_query(client: Client) -> None:
    """GET takes the message from the query and ignores a body."""
    response = client.request("GET", "/Echo?report_data=0xAB&json", b'{"report_data":"cd"}')
    assert (response.status, response.body) == (200, b'{"attestation":"ab"}')
    assert client.read == 0


def test_post_ignores_the_query(client: Client) -> None:
    """POST takes the message from the body only."""
    assert client.post("/Echo?report_data=ab", {}).body == b'{"attestation":""}'


def test_head_is_get_without_body(client: Client) -> None:
    """HEAD has the headers of GET, Content-Length included, and no body."""
    get = client.get("/Echo?report_data=ab")
    head = client.request("HEAD", "/Echo?report_data=ab")
    assert (head.status, head.headers, head.body) == (200, get.headers, b"")
    assert client.request("HEAD", "/Nope").status == 404


@pytest.mark.parametrize(
    "content_type",
    [JSON_TYPE, "application/json; charset=utf-8", "Application/JSON ;x=y", "application/json;"],
)
def test_json_content_types(client: Client, content_type: str) -> None:
    """The media type decides, whatever its letter case and parameters."""
    body = b'{"report_data":"ab"}'
    response = client.request("POST", "/Echo", body, {"content-type": content_type})
    assert (response.status, response.body) == (200, b'{"attestation":"ab"}')
    assert response.headers["content-type"] == JSON_TYPE


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": ""},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "text/plain;charset=UTF-8"},
    ],
)
def test_brace_makes_json_of_an_undeclared_body(client: Client, headers: dict[str, str]) -> None:
    """A first curl without a header works: the body starts with a brace."""
    response = client.request("POST", "/Echo", b'{"report_data":"ab"}', headers)
    assert (response.status, response.body) == (200, b'{"attestation":"ab"}')
    response = client.request("POST", "/Echo", b'{"report_data":1}', headers)
    assert response.status == 400
    assert response.error() == "report_data must be a string of hex digits"


@pytest.mark.parametrize("flag", ["json", "json=", "json=1", "json=true", "a=b&json"])
def test_query_makes_json_of_any_body(client: Client, flag: str) -> None:
    """`?json` demands JSON mode whatever the content type says."""
    response = client.request(
        "POST", f"/Echo?{flag}", b'{"report_data":"ab"}', {"content-type": "image/png"}
    )
    assert (response.status, response.body) == (200, b'{"attestation":"ab"}')


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
def test_every_other_post_is_protobuf(client: Client, headers: dict[str, str]) -> None:
    """Request, answer and errors are binary, whatever else the headers say."""
    for body, status, answer in (
        (b"", 200, b""),
        (b"\x0a\x01\xab", 200, b"\x0a\x01\xab"),
        (b"\x0a\x05\xab", 400, b"\x0a\x2fthe body is not a protobuf message RawQuoteArgs"),
        (b"[]", 400, b"\x0a\x2fthe body is not a protobuf message RawQuoteArgs"),
    ):
        response = client.request("POST", "/Echo", body, headers)
        assert (response.status, response.body) == (status, answer)
        assert response.headers["content-type"] == BINARY_TYPE


def test_json_is_no_protobuf(client: Client) -> None:
    """A body is what its content type says, also where it starts with a brace."""
    response = client.request("POST", "/Echo", b'{"report_data":"ab"}', BINARY)
    assert (response.status, response.headers["content-type"]) == (400, BINARY_TYPE)
    assert b"not a protobuf message" in response.body


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/Nope", 404, b"Service not found: Nope"),
        ("/prpc/Old.Nope", 404, b"Service not found: Nope"),
        ("/%FF", 404, "Service not found: \ufffd".encode()),
        ("/a/b", 404, b"No such path: /a/b"),
        ("/", 404, b"No such path: /"),
    ],
)
def test_errors_in_protobuf_mode(client: Client, path: str, status: int, text: bytes) -> None:
    """What leads nowhere is told in one string, field 1."""
    response = client.request("POST", path, b"", BINARY)
    assert (response.status, response.body) == (status, b"\x0a" + bytes([len(text)]) + text)
    assert response.headers["content-type"] == BINARY_TYPE


def test_failures_in_protobuf_mode(client: Client) -> None:
    """Errors of methods keep their status; foreign ones give a request id and nothing else."""
    fail = GetKeyArgs(path="BackendError", purpose="because")
    response = client.request("POST", "/Fail", b"".join(protobuf_codec.encode(fail)), BINARY)
    assert (response.status, response.body) == (500, b"\x0a\x07because")
    response = client.request("POST", "/Fail", b"\x0a\x07foreign", BINARY)
    assert (response.status, response.body[2:]) == (
        500,
        f"internal error, request {response.request_id}".encode(),
    )
    response = client.request("POST", "/Fail", bytes(Limits().body + 1), BINARY)
    assert (response.status, response.body[2:]) == (400, b"failed to read data: payload too large")


def test_a_large_body_without_a_type_is_refused_in_json(client: Client) -> None:
    """Whoever sends a form to see what happens reads the answer in a terminal."""
    headers = {"content-length": str(Limits().body + 1)}
    assert client.request("POST", "/Echo", b"", headers).error().endswith("payload too large")


def test_method_without_message_ignores_its_payload(client: Client) -> None:
    """Where the request is empty, whatever comes with it does not matter."""
    for response in (
        client.request("POST", "/Ping", b"{broken", {"content-type": JSON_TYPE}),
        client.get("/Ping?a=b&a=%FF"),
    ):
        assert (response.status, response.body) == (200, b"null")
    response = client.request("POST", "/Ping", b"\xff", BINARY)
    assert (response.status, response.body) == (200, b"")
    assert response.headers["content-type"] == BINARY_TYPE


def test_body_in_pieces(client: Client) -> None:
    """A chunked body is put together."""
    parts = [b'{"report', b"", b'_data":', b'"ab"}']
    response = client.request("POST", "/Echo", parts, {"content-type": JSON_TYPE})
    assert response.body == b'{"attestation":"ab"}'


def test_body_at_the_limit_is_read(client: Client) -> None:
    """Ten mebibytes exactly are taken."""
    body = b'{"report_data":"' + b"00" * ((Limits().body - 18) // 2) + b'"}'
    assert len(body) == Limits().body
    assert client.request("POST", "/Echo", body, {"content-type": JSON_TYPE}).status == 200


@pytest.mark.parametrize("verb", ["POST", "GET"])
def test_declared_body_over_the_limit_is_not_read(client: Client, verb: str) -> None:
    """One byte more is refused by its Content-Length, before anything is read."""
    headers = {"content-type": JSON_TYPE, "content-length": str(Limits().body + 1)}
    response = client.request(verb, "/Echo", b"{}", headers)
    assert (response.status, response.error()) == (
        400,
        "failed to read data: payload too large",
    )
    assert client.read == 0
    assert response.headers["connection"] == "close"


def test_chunked_body_over_the_limit_is_counted(client: Client) -> None:
    """Without a length the bytes are counted, and reading ends with the one too many."""

    def endless() -> Iterator[bytes]:
        while True:
            yield bytes(1 << 20)

    response = client.request("POST", "/Echo", endless(), {"content-type": JSON_TYPE})
    assert (response.status, response.error()) == (
        400,
        "failed to read data: payload too large",
    )
    assert client.read == Limits().body + (1 << 20)
    assert response.headers["connection"] == "close"


def test_client_that_goes_away_is_not_answered(
    client: Client, seen: list[_Seen], loop: asyncio.AbstractEventLoop
) -> None:
    """A request cut short runs nothing and sends nothing."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "raw_path": b"/Note"}
    loop.run_until_complete(
        client.app({**scope, "query_string": b"", "headers": []}, receive, send)
    )
    assert (seen, sent) == ([], [])


STATUSES = {"FormatError": 400, "UsageError": 400, "NotFoundError": 404}


@pytest.mark.parametrize("name", errors.__all__)
def test_our_errors_have_their_status_and_text(client: Client, name: str) -> None:
    """400 for the caller's mistakes, 404 for what is not there, 500 for everything else."""
    response = client.post("/Fail", {"path": name, "purpose": "because"})
    assert (response.status, response.error()) == (STATUSES.get(name, 500), "because")


def test_subclasses_keep_the_status() -> None:
    """A more special error has the status of its kind."""

    class OursError(NotFoundError):
        pass

    assert [status_of(e("x")) for e in (OursError, UsageError, AttestKitError)] == [404, 400, 500]


def test_foreign_errors_stay_in_the_log(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """The client gets a request id, the log has it beside the traceback."""
    with caplog.at_level(logging.ERROR, "attestkit.serve"):
        response = client.post("/Fail", {"path": "foreign"})
    assert response.status == 500
    assert response.request_id == "0-00000001"
    assert response.error() == "internal error, request 0-00000001"
    assert "request 0-00000001 failed" in caplog.text
    assert "/secret/path" in caplog.text


def test_every_response_has_the_headers(client: Client) -> None:
    """Success, error and page alike."""
    for response in (client.get("/Ping"), client.get("/Nope"), client.get("/")):
        assert response.headers["server"] == "test"


def test_guard_comes_first(client: Client, seen: list[_Seen]) -> None:
    """What the guard refuses runs nothing, on any path."""
    for path in ("/Note", "/Nope", "/"):
        response = client.get(path, x_evil="1")
        assert (response.status, response.error()) == (400, "refused")
    assert seen == []


def test_page(client: Client) -> None:
    """A page is shown with GET and HEAD, and is not there for POST."""
    response = client.get("/?json")
    assert (response.status, response.body) == (200, b"<p>page</p>")
    assert response.headers["content-type"] == "text/html"
    assert client.request("HEAD", "/").headers == response.headers
    response = client.post("/")
    assert (response.status, response.error()) == (404, "No such path: /")


def test_error_of_a_page_is_json(loop: asyncio.AbstractEventLoop) -> None:
    """A page that fails answers as a method would."""

    async def fail(_guest: Any, _asked: Asked) -> Answer:
        raise errors.BackendError("no page")

    app = RpcApp(untyped(_Guest()), [], views={"/": View(fail)})
    response = Client(app, loop).get("/")
    assert (response.status, response.error()) == (500, "no page")


def test_blocking_device_has_its_own_thread(
    client: Client, guest: _Guest, seen: list[_Seen]
) -> None:
    """Device methods of a backend that blocks run in its thread, all others do not."""
    with ThreadPoolExecutor(1) as guest.executor:
        client.post("/Note", {"path": "inline"})
        client.post("/Device", {"path": "thread"})
        client.post("/Device", {"path": "thread"})
        assert json.loads(client.post("/Device", {"path": 1}).body)["error"]
    guest.executor = None
    client.post("/Device", {"path": "inline"})
    here = threading.get_ident()
    assert {call.path for call in seen if call.thread == here} == {"inline"}
    assert len({call.thread for call in seen if call.path == "thread"}) == 1
    assert len(seen) == 4


def test_other_scopes_are_refused(client: Client, loop: asyncio.AbstractEventLoop) -> None:
    """Only HTTP is spoken; a server sees that at once."""
    with pytest.raises(RuntimeError, match="lifespan"):
        loop.run_until_complete(client.app({"type": "lifespan"}, untyped(None), untyped(None)))


_TYPES = (b"", b"application/json", b"APPLICATION/JSON;x", b"text/plain", b"application/x-protobuf")


@pytest.mark.parametrize("query", ["", "?json", "?report_data=ab&json=1", "?report_data=z"])
@pytest.mark.parametrize("path", ["/Echo", "/Ping", "/Fail", "/prpc/Old.Note"])
def test_both_ways_answer_alike(client: Client, path: str, query: str) -> None:
    """A request that is answered directly gets what it would get through ASGI."""
    app = client.app
    assert isinstance(app, RpcApp)
    app._guard = None
    target = f"{path}{query}".encode()
    call = app.direct(target, None)
    assert call is not None
    bodies = (b"", b"{", b'{"report_data":"ab","path":"UsageError"}', b'{"path":"foreign"}', b"[]")
    ways: list[tuple[bytes, bytes | None]] = [(b"", None)]
    for content_type, body in [*ways, *((t, b) for t in _TYPES for b in (*bodies, b"\x0a\x01a"))]:
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
