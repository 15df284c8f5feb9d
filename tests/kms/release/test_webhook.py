"""Authorization by an HTTP server: requests as upstream sends them, and hostile answers."""

import json
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.errors import ConfigError, FormatError, KmsError, UsageError
from attestkit.kms.release.authorization import AuthorityInfo, Decision
from attestkit.kms.release.webhook import (
    MAX_BODY,
    MAX_REASON,
    AuthWebhook,
    read_authority,
    read_decision,
)
from tests.collateral.http_server import CreateServer, Server, create_response
from tests.kms.release.boot_infos import boot_info, from_fields
from tests.runner.cases import every_case
from tests.untyped import untyped
from tests.vectors import data, needs_shared

RECORDED: dict[str, Any] = json.loads(
    data("dstack/upstream-312dc605/kms.json") or b'{"boot_auth":[],"rows":[]}'
)
ALLOWED = {"isAllowed": True, "reason": "", "gatewayAppId": "0xgw"}
AUTHORITY = {
    "status": "ok",
    "kmsContractAddr": "0x11",
    "ethRpcUrl": "",
    "gatewayAppId": "0xgw",
    "chainId": 1,
    "appImplementation": "0x22",
    "appAuthImplementation": "0x22",
}


def serve(create_server: CreateServer, answer: bytes) -> tuple[Server, list[bytes]]:
    """Return a server that reads a whole request before it answers, and the bodies it read."""
    bodies: list[bytes] = []

    def respond(connection: socket.socket) -> None:
        head, _, body = server.requests[-1].partition(b"\r\n\r\n")
        lines = [line.split(b": ") for line in head.split(b"\r\n")[1:]]
        size = next((int(value) for name, value in lines if name.lower() == b"content-length"), 0)
        while len(body) < size:
            body += connection.recv(65536)
        bodies.append(body)
        connection.sendall(answer)

    server: Server = create_server(respond)
    return server, bodies


def error_of(create_server: CreateServer, answer: bytes) -> KmsError:
    """Return the error for an answer to a request about an app."""
    server, _ = serve(create_server, answer)
    with pytest.raises(KmsError) as caught:
        AuthWebhook(server.url).decide("app", boot_info())
    assert caught.value.url == f"{server.url}/bootAuth/app"
    assert len(str(caught.value)) < 4096
    return caught.value


def test_decision_is_that_of_the_answer(create_server: CreateServer) -> None:
    """isAllowed, reason and gatewayAppId are taken over; unknown members are ignored."""
    server, _ = serve(create_server, create_response(json.dumps(ALLOWED).encode()))
    assert AuthWebhook(server.url).decide("app", boot_info()) == Decision.allow("0xgw")
    fields = {"isAllowed": False, "reason": "no", "gatewayAppId": "", "epoch": 1}
    server, _ = serve(create_server, create_response(json.dumps(fields).encode()))
    assert AuthWebhook(f"{server.url}/").decide("kms", boot_info()) == Decision.refuse("no")


@needs_shared
@pytest.mark.parametrize("recorded", RECORDED["boot_auth"], ids=lambda row: str(row["path"]))
def test_request_is_that_of_upstream(create_server: CreateServer, recorded: dict[str, Any]) -> None:
    """Path, headers and body are those that the real KMS sent."""
    server, bodies = serve(create_server, create_response(json.dumps(ALLOWED).encode()))
    role = recorded["path"].rpartition("/")[2]
    AuthWebhook(server.url).decide(role, from_fields(json.loads(recorded["body"])))
    head = server.requests[0].partition(b"\r\n\r\n")[0].decode()
    assert head.startswith(f"POST {recorded['path']} HTTP/1.1\r\n")
    fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:])
    assert fields["content-type"] == recorded["headers"]["content-type"]
    assert fields["user-agent"].startswith(recorded["headers"]["user-agent"])
    assert fields["accept"] == recorded["headers"]["accept"]
    assert bodies == [recorded["body"].encode()]


def test_description_is_that_of_the_server(create_server: CreateServer) -> None:
    """GET of the URL feeds GetMeta."""
    server, _ = serve(create_server, create_response(json.dumps(AUTHORITY).encode()))
    expected = AuthorityInfo(
        gateway_app_id="0xgw",
        kms_contract_address="0x11",
        chain_id=1,
        app_auth_implementation="0x22",
    )
    assert AuthWebhook(server.url).describe() == expected
    assert server.requests[0].startswith(b"GET / HTTP/1.1\r\n")


@needs_shared
def test_errors_have_upstream_texts(create_server: CreateServer) -> None:
    """Another status, and a missing member, are reported as the real KMS does."""
    status = b"HTTP/1.1 500 X\r\nContent-Length: 600\r\n\r\n" + b"x" * 600
    cases = (
        ("getappkey-webhook-500", "refused", status),
        ("getappkey-webhook-incomplete", "malformed", create_response(b'{"isAllowed":true}')),
    )
    recorded = {row["id"]: row["error"] for row in RECORDED["rows"] if "error" in row}
    for name, reason, answer in cases:
        error = error_of(create_server, answer)
        assert error.reason == reason
        expected = recorded[name].removeprefix("App not allowed: ").partition(" at line")[0]
        text = str(error).replace(error.url, "http://127.0.0.1:8002/bootAuth/app")
        assert text.startswith(expected.rstrip("…x"))


def test_long_error_body_is_cut(create_server: CreateServer) -> None:
    """At most 512 bytes of a body are shown, without control characters."""
    answer = b"HTTP/1.1 503 X\r\nContent-Length: 600\r\n\r\n" + b"\x1b" + b"x" * 599
    text = str(error_of(create_server, answer))
    assert "returned 503 Service Unavailable: \\u001bx" in text
    assert text.count("x") - text.count("\\u001bx") < 515
    assert "\x1b" not in text


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"isAllowed":1,"reason":"","gatewayAppId":""}',
        b'{"isAllowed":"true","reason":"","gatewayAppId":""}',
        b'{"isAllowed":true,"reason":null,"gatewayAppId":""}',
        b'{"isAllowed":true,"gatewayAppId":""}',
        b'{"isAllowed":false,"isAllowed":true,"reason":"","gatewayAppId":""}',
        b'{"isAllowed":true,"reason":"\\ud800","gatewayAppId":""}',
        json.dumps({**ALLOWED, "reason": "x" * (MAX_REASON + 1)}).encode(),
        json.dumps(ALLOWED).encode() + b" " * MAX_BODY,
        b"[" * 60_000,
    ],
    ids=lambda body: repr(body[:40]),
)
def test_malformed_answer_allows_nothing(create_server: CreateServer, body: bytes) -> None:
    """An answer that is not a decision is an error."""
    assert error_of(create_server, create_response(body)).reason == "malformed"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"SSH-2.0\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\n",
    ],
)
def test_broken_connection_allows_nothing(create_server: CreateServer, raw: bytes) -> None:
    """A connection that ends early, or another protocol, is an error."""
    assert error_of(create_server, raw).reason in {"connection", "malformed"}


def test_redirect_is_not_followed(create_server: CreateServer) -> None:
    """A redirect could lead to another authority."""
    other, _ = serve(create_server, create_response(json.dumps(ALLOWED).encode()))
    head = f"HTTP/1.1 307 X\r\nLocation: {other.url}/bootAuth/app\r\nContent-Length: 0\r\n\r\n"
    assert error_of(create_server, head.encode()).reason == "refused"
    assert not other.requests


def test_unreachable_server_allows_nothing() -> None:
    """A refused connection is an error with its reason."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(KmsError) as caught:
        AuthWebhook(f"http://127.0.0.1:{port}").decide("app", boot_info())
    assert caught.value.reason == "connection"


def test_silent_server_times_out() -> None:
    """A server that does not answer is given up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        hook = AuthWebhook(url, timeout=0.2)
        with pytest.raises(KmsError) as caught:
            hook.decide("app", boot_info())
        assert caught.value.reason == "timeout"
        with pytest.raises(KmsError) as caught:
            hook.describe()
        assert caught.value.reason == "timeout"


@every_case(
    "url",
    ["", "ftp://host", "host:80", "http://", "http://user@host", "http://h?x=1", "http://h#f",
     "http://h:port", "http://[::1", "http://h\n", "http://h /x", "http://h/\r\nX: y", "http://h/é",
     "http://h/" + "a" * 2048],
)  # fmt: skip
def test_invalid_url_is_refused(url: str) -> None:
    """Only http and https URLs without user and query are valid."""
    with pytest.raises(ConfigError) as caught:
        AuthWebhook(url)
    assert caught.value.reason == "wrong_value"


def test_arguments_are_checked() -> None:
    """A timeout of zero would never get an answer."""
    with pytest.raises(UsageError):
        AuthWebhook("http://host", timeout=0)
    with pytest.raises(UsageError):
        AuthWebhook(untyped(b"http://host"))


@every_case("name", ["kmsContractAddr", "gatewayAppId", "chainId", "appImplementation"])
def test_description_requires_its_members(name: str) -> None:
    """Each member is required, and has its type."""
    for fields in ({**AUTHORITY, name: None}, {**AUTHORITY, name: []}, {**AUTHORITY, name: True}):
        with pytest.raises(FormatError):
            read_authority(fields)


@given(st.dictionaries(st.sampled_from(sorted(ALLOWED)), st.booleans() | st.text() | st.none()))
def test_any_fields_raise_only_format_errors(fields: dict[str, Any]) -> None:
    """A decision is allowed only if all members are valid."""
    try:
        found = read_decision(fields)
    except FormatError:
        return
    assert found.is_allowed is fields["isAllowed"]
    assert found.reason.isprintable()
