"""Access to the external listener with scopes: routes, spellings of paths, and peers."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from attestkit._outcomes.reasons import UsageReason
from attestkit.errors import UsageError
from attestkit.serve import listener_apps
from attestkit.serve.container_logs import view
from attestkit.serve.external_auth.access_control import (
    SCOPES,
    ExternalAuth,
    assign_scopes,
    check_scopes,
)
from attestkit.serve.rpc.dispatcher import RpcApp
from attestkit.serve.rpc.service import Method
from attestkit.serve.services.context import Guest
from tests.raising import raises
from tests.runner.cases import every_case
from tests.serve.asgi import BINARY_TYPE, JSON_TYPE, Client, Response
from tests.serve.external_auth.tokens import KEY, OTHER_KEY, make_token
from tests.serve.guests import NOW, Counting, GuestClient, MakeGuest

MakeClient = Callable[..., Client]
REMOTE = ("192.0.2.1", 4711)
METRICS = {"raw_path": b"/metrics", "client": REMOTE}
PUBLIC = {"public_sysinfo": True, "public_logs": True, "public_tcbinfo": True}
ROUTES = {
    "/prpc/Info": "info",
    "/prpc/Worker.Info": "info",
    "/prpc/v0/Info": "info",
    "/prpc/v0/Worker.Info": "info",
    "/prpc/v1/Info": "info",
    "/prpc/Version": "version",
    "/prpc/v1/Version": "version",
    "/prpc/v1/Health": "health",
    "/prpc/Worker.GetAttestationForAppKey?algorithm=ed25519": "attestation",
    "/": "info",
    "/assets/icon.svg": "info",
    "/docs": "info",
    "/openapi.json": "info",
    "/dstack_guest.proto": "info",
    "/metrics": "metrics",
    "/logs/a": "logs",
}


@pytest.fixture
def guarded(make_guest: MakeGuest, guest_client: GuestClient) -> MakeClient:
    """Return a factory of clients of an external listener that requires tokens."""

    def make(*anonymous: str, guest: Guest | None = None, **options: Any) -> Client:
        found = guest or make_guest(**{"compose": PUBLIC, **options})
        client = guest_client("dstack", found)
        auth = ExternalAuth((OTHER_KEY.public_key, KEY.public_key), check_scopes(anonymous))
        client.app = listener_apps.external_app(found, auth=auth)
        client.peer = REMOTE
        return client

    return make


def app_id_of(client: Client) -> str:
    """Return the app id of a client's listener."""
    app = client.app
    assert isinstance(app, RpcApp)
    assert isinstance(app.guest, Guest)
    return app.guest.decode_evidence().info.app_id.hex()


def authorize(client: Client, scope: str, **claims: Any) -> dict[str, str]:
    """Return the header with a token for the app of a client."""
    aud = claims.pop("aud", None) or app_id_of(client)
    token = make_token({"exp": NOW + 300, "aud": aud, "scope": scope, **claims})
    return {"authorization": f"Bearer {token.decode()}"}


def check_refused(response: Response, status: int, challenge: str) -> None:
    """Assert that a response is a refusal with this challenge."""
    assert (response.status, response.headers["www-authenticate"]) == (status, challenge)
    assert "access token" in response.error()


INVALID = 'Bearer error="invalid_token"'


@every_case(("path", "scope"), ROUTES.items())
def test_route_requires_exactly_its_scope(guarded: MakeClient, path: str, scope: str) -> None:
    """Without a token a route is 401, with every other scope 403, with its own it is served."""
    client = guarded()
    check_refused(client.get(path), 401, "Bearer")
    others = " ".join(name for name in SCOPES if name != scope)
    challenge = f'Bearer error="insufficient_scope", scope="{scope}"'
    check_refused(client.get(path, **authorize(client, others)), 403, challenge)
    response = client.get(path, **authorize(client, scope))
    assert response.status == (500 if path.startswith("/logs/") else 200)  # no container engine
    assert client.get(path, **authorize(client, " ".join(SCOPES))).status == response.status


def test_every_route_has_one_scope(guarded: MakeClient) -> None:
    """The table above has every route of the listener, and a route without a scope is refused."""
    app = guarded().app
    assert isinstance(app, RpcApp)
    shown = {"Info", "v1.Info", "Version", "v1.Version", "v1.Health", "GetAttestationForAppKey"}
    shown |= {"/", "/assets/", "/docs", "/openapi.json", "/metrics", "/logs/"}
    assert {name for name in app.route_names if not name.endswith(".proto")} == shown
    assert set(assign_scopes(app.route_names, {"/docs"} | app.views.keys()).values()) == {*SCOPES}
    with pytest.raises(RuntimeError, match="no scope for the route GetKey"):
        assign_scopes([*shown, "GetKey"], {"/docs", "/openapi.json"})


@pytest.mark.parametrize("part", ["method", "view"])
def test_new_route_without_scope_is_refused(
    guest: Guest, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """A listener that checks tokens cannot be built with a method or page that has no scope."""
    if part == "view":
        views = {"/new": listener_apps.make_views(guest)["/"]}
        monkeypatch.setattr(view, "make_views", lambda _: views)
    else:
        service = listener_apps.EXTERNAL_SERVICES[0]
        added = service._replace(methods={**service.methods, "New": Method(lambda *_: None)})
        monkeypatch.setattr(listener_apps, "EXTERNAL_SERVICES", (added,))
    with pytest.raises(RuntimeError, match="no scope for the route"):
        listener_apps.external_app(guest, auth=ExternalAuth((KEY.public_key,)))


@every_case(
    "path",
    [
        *("//metrics", "/./metrics", "/metrics/", "/%6detrics", "/metrics%00", "/metrics;a"),
        *("/METRICS", "/prpc/v1/..", "/prpc/../metrics", "/prpc/v1/../../metrics", "/logs/"),
        *("/logs//a", "/logs/../metrics", "/logs/a/..", "/assets/../metrics", "/docs/", "/x"),
        *("/prpc//Info", "/prpc/%49nfo/", "/prpc/v2/Version", "/prpc/v1/Worker.Info", "/prpc/"),
        *("/prpc/GetKey", "/GetKey", "/v1/GetKey", "/prpc/v1", "/prpc/Version/", "metrics", "*"),
        *(
            "/prpc/V%65rsion/x",
            "/prpc/v1/Versions",
            "/?x=/prpc/Version",
            "/metrics?x=/prpc/Version",
        ),
    ],
)
def test_no_spelling_of_a_path_passes_without_token(guarded: MakeClient, path: str) -> None:
    """Other spellings are unknown paths or the same route: 401 without a token, for each verb."""
    client = guarded("version", "health")
    for verb in ("GET", "HEAD", "POST", "PUT", "OPTIONS", "get"):
        response = client.request(verb, path)
        assert response.status == 401, verb
        assert response.headers["www-authenticate"] == "Bearer"
    response = client.get(path, **authorize(client, "version"))
    assert response.status == (403 if path.startswith(("/?", "/metrics?")) else 404)


@pytest.mark.parametrize(
    "path", ["/prpc/Worker.Worker.Info", "/prpc/%49nfo", "/prpc/Worker.%49nfo"]
)
def test_spellings_of_a_method_require_its_scope(guarded: MakeClient, path: str) -> None:
    """A path that the dispatcher resolves to Info requires the scope of Info."""
    client = guarded("version")
    check_refused(client.get(path), 401, "Bearer")
    assert client.get(path, **authorize(client, "version")).status == 403
    assert client.get(path, **authorize(client, "info")).status == 200


def test_head_and_query_are_no_way_around(guarded: MakeClient) -> None:
    """HEAD is refused as GET is, and a token in the query is never read."""
    client = guarded()
    token = authorize(client, "metrics")["authorization"].removeprefix("Bearer ")
    assert client.request("HEAD", "/metrics").status == 401
    assert client.request("HEAD", "/metrics", headers=authorize(client, "metrics")).status == 200
    for name in ("access_token", "authorization", "token"):
        check_refused(client.get(f"/metrics?{name}={token}"), 401, "Bearer")
    body = f"access_token={token}".encode()
    form = {"content-type": "application/x-www-form-urlencoded"}
    assert client.request("POST", "/prpc/Info", body, form).status == 401


@every_case(
    "value",
    [
        *("", "Bearer", "Bearer ", "Basic YTpi", "Token {}", "{}", "Bearer {} {}", "Bearer {}, x"),
        *("Bearer {},Bearer {}", "Bearer\t{}", 'Bearer "{}"', "Bearer {}\u00e9", "Bearer {};a"),
        *("NotBearer {}", "Bearer  x{}", "Bearer " + "A" * 9000),
    ],
)
def test_malformed_authorization_is_refused(guarded: MakeClient, value: str) -> None:
    """The header must be one token with the scheme Bearer."""
    client = guarded()
    token = authorize(client, "metrics")["authorization"].removeprefix("Bearer ")
    check_refused(client.get("/metrics", authorization=value.replace("{}", token)), 401, INVALID)


def test_scheme_of_any_case_is_accepted(guarded: MakeClient) -> None:
    """The scheme's case does not matter (RFC 9110, 11.1)."""
    client = guarded()
    value = authorize(client, "version")["authorization"]
    for scheme in ("bearer", "BEARER"):
        sent = value.replace("Bearer", scheme)
        assert client.get("/prpc/Version", authorization=sent).status == 200


def test_two_authorization_headers_are_refused(guarded: MakeClient) -> None:
    """Two headers are refused in any order, though one of them, or each, is valid."""
    client = guarded()
    valid = authorize(client, "metrics")["authorization"]
    # The test client turns `_` into `-` and takes each name once, so one header is given in bytes.
    for pair in ((valid, valid), (valid, "Bearer x"), ("Bearer x", valid), ("Basic YTpi", valid)):
        status = client.loop.run_until_complete(send_headers(client, pair))
        assert status == 401


async def send_headers(
    client: Client, values: tuple[str, ...], scope: Mapping[str, object] = METRICS
) -> int:
    """GET a path with several Authorization headers; return the status."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"authorization", value.encode()) for value in values]
    request = {"type": "http", "method": "GET", "query_string": b"", "headers": headers}
    await client.app({**request, **scope}, receive, send)
    status: int = sent[0]["status"]
    return status


@pytest.mark.parametrize(
    "claims",
    [{"exp": NOW - 61}, {"nbf": NOW + 61}, {"aud": "cd" * 20}, {"exp": None}],
)
def test_invalid_claims_are_refused(guarded: MakeClient, claims: dict[str, Any]) -> None:
    """An expired or future token, or one for another app, is a 401."""
    client = guarded()
    check_refused(client.get("/metrics", **authorize(client, "metrics", **claims)), 401, INVALID)


@pytest.mark.parametrize("peer", [("127.0.0.1", 1), ("127.9.9.9", 1), ("::1", 1), None])
def test_only_version_is_exempt_for_local_peers(
    guarded: MakeClient, peer: tuple[str, int] | None
) -> None:
    """A watchdog needs no token; a proxy on this machine opens nothing but Version."""
    client = guarded()
    client.peer = peer
    exempt = {path for path in ROUTES if client.get(path).status != 401}
    assert exempt == {"/prpc/Version", "/prpc/v1/Version"}
    forwarded = {"x_forwarded_for": "127.0.0.1", "forwarded": "for=127.0.0.1", "host": "localhost"}
    assert client.get("/metrics", **forwarded).status == 401


@pytest.mark.parametrize(
    "host",
    ["192.0.2.1", "10.0.0.1", "::", "::ffff:192.0.2.1", "fe80::1%eth0", "localhost", "0.0.0.0"],
)
def test_version_is_not_exempt_for_remote_peers(guarded: MakeClient, host: str) -> None:
    """Headers that name a loopback address do not make a peer local."""
    client = guarded()
    client.peer = (host, 1)
    forwarded = {"x_forwarded_for": "127.0.0.1", "x_real_ip": "127.0.0.1", "host": "localhost"}
    assert client.get("/prpc/Version", **forwarded).status == 401


@pytest.mark.parametrize(
    ("client", "server", "status"),
    [
        (None, ("0.0.0.0", 8090), 401),
        (None, ("/run/external.sock", None), 200),
        (None, None, 200),
        (("", 0), None, 401),
        (("2", 8000), None, 401),  # a vsock address
        (("127.0.0.1", 1), ("127.0.0.1", 8090), 200),
    ],
)
def test_peer_without_address_is_local_on_unix_socket_only(
    guarded: MakeClient, client: object, server: object, status: int
) -> None:
    """A TCP peer whose address the kernel no longer knows is not taken for a local one."""
    listener = guarded()
    scope = {"raw_path": b"/prpc/Version", "client": client, "server": server}
    found = listener.loop.run_until_complete(send_headers(listener, (), scope))
    assert found == status


@pytest.mark.parametrize(
    ("auth", "reason"),
    [
        (ExternalAuth(()), "missing"),
        (ExternalAuth((KEY.public_key, b"")), "invalid_key"),
        (ExternalAuth((KEY.public_key[1:],)), "invalid_key"),
        (ExternalAuth((bytes(32),)), "invalid_key"),  # a point of small order
        (ExternalAuth((KEY.public_key, b"\1" + bytes(31))), "invalid_key"),
        (ExternalAuth((KEY.public_key,), frozenset({"*"})), "unknown_name"),
    ],
)
def test_access_control_invalid_keys_are_refused(
    guest: Guest, auth: ExternalAuth, reason: UsageReason
) -> None:
    """Keys for which others could sign are refused, however they are given."""
    with raises(UsageError, reason):
        listener_apps.external_app(guest, auth=auth)


def test_ipv4_mapped_loopback_is_local(guarded: MakeClient) -> None:
    """An IPv6 socket shows IPv4 peers as mapped addresses."""
    client = guarded()
    client.peer = ("::ffff:127.0.0.1", 1)
    assert client.get("/prpc/Version").status == 200


def test_anonymous_scopes_need_no_token(guarded: MakeClient) -> None:
    """An anonymous scope is served with any Authorization header; all others are not."""
    client = guarded("version", "health")
    served = {path for path in ROUTES if client.get(path).status == 200}
    assert {ROUTES[path] for path in served} == {"version", "health"}
    assert client.get("/prpc/v1/Health", authorization="Basic YTpi").status == 200


def test_token_opens_nothing_that_the_app_hides(guarded: MakeClient) -> None:
    """Pages and values that app-compose.json hides stay hidden with every scope."""
    hidden = dict.fromkeys(PUBLIC, False)
    client = guarded(compose=hidden)
    header = authorize(client, " ".join(SCOPES))
    for path in ("/metrics", "/logs/a"):
        assert client.get(path).status == 401
        assert client.get(path, **header).status == 404
    for path in ("/prpc/Info", "/prpc/v1/Info"):
        found = client.get(path, **header).json()
        assert found["vm_config"] == ""
        assert found.get("tcb_info", found.get("app_compose")) == ""
    for name in ("GetKey", "Sign", "EmitEvent", "v1/GetKey"):
        assert client.post(f"/prpc/{name}").status == 401
        assert client.get(f"/prpc/{name}", **header).status == 404


def test_refusal_has_the_encoding_of_the_request(guarded: MakeClient) -> None:
    """The error is JSON, or protobuf for a protobuf request, and the body is not read."""
    client = guarded()
    binary = client.request("POST", "/prpc/Info", b"\0" * 100_000, {"content-type": BINARY_TYPE})
    assert (binary.status, binary.headers["content-type"]) == (401, BINARY_TYPE)
    assert b"access token" in binary.body
    assert client.read == 0
    body = json.dumps({"a": "b" * 100_000}).encode()
    check_refused(client.request("POST", "/x", body, {"content-type": JSON_TYPE}), 401, "Bearer")
    assert client.read == 0


def test_invalid_tokens_cause_no_device_work(guarded: MakeClient, make_guest: MakeGuest) -> None:
    """The app id is read once, and only for a token that a known key has signed."""
    guest = make_guest(Counting, compose=PUBLIC)
    backend = guest.attester.backend
    assert isinstance(backend, Counting)
    client = guarded(guest=guest)
    forged = make_token({"exp": NOW + 300, "aud": "ab" * 20}, key=OTHER_KEY)[:-4] + b"AAAA"
    for value in (f"Bearer {forged.decode()}", "Bearer x"):
        assert client.get("/metrics", authorization=value).status == 401
    assert backend.quotes == 0
    header = authorize(client, "version")
    for _ in range(3):
        assert client.get("/prpc/Version", **header).status == 200
    assert backend.quotes == 1


def test_guarded_listener_has_no_fast_path(guarded: MakeClient) -> None:
    """No method is answered before the check."""
    app = guarded().app
    assert isinstance(app, RpcApp)
    assert app.direct(b"/prpc/Version", None) is None
    assert app.direct(b"/prpc/v1/Info", None) is None
