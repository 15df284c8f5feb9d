"""Mount points of the API's generations: which path leads to which method, and to none."""

import json
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

from attestkit.serve import listener_apps
from attestkit.serve.rpc.dispatcher import RpcApp
from attestkit.serve.services import dstack_guest, guest_v1, tappd, worker_api
from attestkit.serve.services.context import Guest
from tests.runner.cases import every_case
from tests.serve.asgi import BINARY_TYPE, JSON_TYPE, Client
from tests.serve.guests import GuestClient
from tests.serve.services.test_request_fields import VALID
from tests.vectors import load, needs_shared

VECTORS: Final = load("guest_v1.json")
V1_VALID: Final[dict[str, dict[str, Any]]] = {
    "IssueCert": {"subject": "a", "usage_ra_tls": True},
    "GetKey": {"domain": "a", "algorithm": "ed25519"},
    "Attest": {"report_data": "00"},
}
# Kinds of routes in the vectors.
NO_METHOD: Final = (
    "json error",
    "json error, `v1` is a method name of the alias (unconfirmed)",
)
SERVED: Final = ("v1", "v0", "v0 alias", "Tappd")
# Methods that return or use a key, or change the log.
GUARDED: Final = {
    *("GetTlsKey", "GetKey", "Sign", "EmitEvent", "IssueCert", "DeriveKey", "DeriveK256Key"),
}
CHANGING: Final = {"GetTlsKey", "IssueCert", "EmitEvent"}  # not the same response twice


@pytest.fixture
def clients(guest: Guest, guest_client: GuestClient) -> dict[str, Client]:
    """Return clients of each listener of one guest, by the vectors' names."""
    names = {"internal": "dstack", "external": "external", "tappd": "tappd", "dev": "dev"}
    return {name: guest_client(app, guest) for name, app in names.items()}


@needs_shared
@every_case("row", VECTORS.get("routes", []), ids=lambda row: f"{row['listener']} {row['path']}")
def test_route_matches_vectors(clients: dict[str, Client], row: dict[str, Any]) -> None:
    """Status and kind of every route equal the vectors; where nothing is mounted, no v1 is shown.

    A client tells a missing method of v1 from a missing v1 by the text of the error.
    """
    for verb in ("GET", "POST"):
        response = clients[row["listener"]].request(
            verb, row["path"], b"", {"content-type": JSON_TYPE}
        )
        assert response.status == row["upstream_status"]
        name, kind = row["path"].rpartition("/")[2], row["kind"]
        if kind == "page":
            assert not response.error().startswith("Service not found")
        elif kind == "v1, algorithm missing":
            assert response.error().startswith("algorithm is required")
        elif kind in NO_METHOD:
            assert response.error() == f"Service not found: {name}"
        else:
            assert kind in SERVED
            found = response.json()
            if name.endswith("Version"):
                assert found["version"].startswith("0.6." if kind == "v1" else "0.5.")
            else:
                assert ("tcb_info" in found) == (kind != "v1")


ALIASES: Final = [
    *(
        ("internal", f"/{name}", f"/v0/{name}", VALID.get(name, {}))
        for name in dstack_guest.SERVICE.methods
        if name not in CHANGING
    ),
    *(
        ("external", f"/prpc/{name}", f"/prpc/{prefix}{name}", {"algorithm": "ed25519"})
        for name in worker_api.SERVICE.methods
        for prefix in ("Worker.", "Worker.Worker.", "v0/", "v0/Worker.")
    ),
]


@every_case(("listener", "path", "alias", "message"), ALIASES)
def test_alias_has_same_response(
    clients: dict[str, Client], listener: str, path: str, alias: str, message: dict[str, Any]
) -> None:
    """An alias is the same handler: equal bytes, in JSON and protobuf, also of errors."""
    client = clients[listener]
    assert client.post(alias, message)[:3] == client.post(path, message)[:3]
    assert client.post(path, message).status == 200
    for body in (b"", b"\xff"):
        binary = {"content-type": BINARY_TYPE}
        answers = [client.request("POST", at, body, binary)[:3] for at in (path, alias)]
        assert answers[0] == answers[1]
    wrong: dict[str, Any] = {field: [] for field in message}
    assert client.post(alias, wrong)[:3] == client.post(path, wrong)[:3]


@pytest.mark.parametrize("name", sorted(CHANGING))
def test_alias_of_changing_method_is_served(dstack: Client, name: str) -> None:
    """Methods with a new response for each call are served at each mount."""
    for mount in ("/", "/v0/", "/v1/"):
        served = guest_v1.SERVICE if mount == "/v1/" else dstack_guest.SERVICE
        status = 200 if name in served.methods else 404
        assert dstack.post(f"{mount}{name}", VALID.get(name, {})).status == status


@pytest.mark.parametrize(
    "path", ["/v1/", "/v1//Version", "/v1/Version/", "/v1/a/b", "/V1/Version", "/v1/.", "/v0/"]
)
def test_v1_has_no_other_paths(dstack: Client, path: str) -> None:
    """Other paths below the mount are 404, without the text of a missing method."""
    response = dstack.get(path)
    assert response.status == 404
    assert (path == "/v1/.") == response.error().startswith("Service not found")


@pytest.mark.parametrize("path", ["/v1/version", "/v1/GETKEY", "/v1/GetKey%00", "/v1/Get%4Bey%20"])
def test_method_names_are_exact(dstack: Client, path: str) -> None:
    """Method names have one letter case and no other characters."""
    assert dstack.get(path).error().startswith("Service not found: ")


def spellings(name: str) -> Iterator[str]:
    """Yield ways to write the path of a method of any service."""
    escaped = "".join(f"%{ord(letter):02X}" for letter in name)
    mounts = (
        *("/", "/v0/", "/v1/", "/prpc/", "/prpc/v0/", "/prpc/v1/", "/api/", "//", "/v1//"),
        *("/prpc/%76%31/", "/%76%31/", "/prpc/../v1/", "/prpc/v1/../../", "/V1/", "/v1%2F"),
    )
    for mount in mounts:
        for prefix in ("", "Worker.", "DstackGuest.", "Tappd.", "Worker.Tappd.", "Worker%2E"):
            for written in (name, escaped, f"{name}/", f"{name}%2F", name.lower()):
                yield f"{mount}{prefix}{written}"


@pytest.mark.slow
@every_case(
    "name",
    sorted(
        ({*dstack_guest.SERVICE.methods, *tappd.SERVICE.methods, *guest_v1.SERVICE.methods})
        - {*worker_api.SERVICE.methods, *worker_api.SERVICE_V1.methods}
    ),
)
def test_internal_methods_are_not_on_external_listener(
    clients: dict[str, Client], name: str
) -> None:
    """No spelling of a path reaches a key, quote or event method on the external listener."""
    message = VALID.get(name) or V1_VALID.get(name) or {}
    body = json.dumps(message).encode()
    for path in spellings(name):
        for verb in ("GET", "POST", "HEAD"):
            response = clients["external"].request(verb, path, body, {"content-type": JSON_TYPE})
            assert response.status == 404, path


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(GUARDED))
def test_guarded_methods_need_json_post_on_development_listener(
    clients: dict[str, Client], guest: Guest, name: str
) -> None:
    """No spelling of a path evades the rule of the development listener."""
    before = guest.attester.registers()
    message = VALID.get(name) or V1_VALID[name]
    body = json.dumps(message).encode()
    for path in spellings(name):
        for verb, kind in (("GET", JSON_TYPE), ("POST", "text/plain"), ("POST", BINARY_TYPE)):
            response = clients["dev"].request(verb, path, body, {"content-type": kind})
            assert response.status in {400, 404}, path
    assert guest.attester.registers() == before


# The mounts of dstack 0.6: listener, mount, package, service, the prefix that is stripped, methods.
# tappd.sock has the methods of DstackGuest too.
V0: Final = "GetTlsKey GetKey GetQuote Attest EmitEvent Info Sign Verify Version"
TAPPD: Final = "DeriveKey DeriveK256Key TdxQuote RawQuote Info Version"
MOUNT_TABLE: Final = (
    (
        *("internal", "/v1/", "dstack.guest.v1", "DstackGuest", ""),
        "IssueCert GetKey Attest AttestGpu Info Version",
    ),
    ("internal", "/v0/", "dstack_guest", "DstackGuest", "", V0),
    ("internal", "/", "dstack_guest", "DstackGuest", "", V0),
    ("external", "/prpc/v1/", "dstack.guest.v1", "Worker", "", "Info Version Health"),
    *(
        ("external", mount, "dstack_guest", "Worker", "Worker.", methods)
        for mount in ("/prpc/v0/", "/prpc/")
        for methods in ("Info Version GetAttestationForAppKey",)
    ),
    ("tappd", "/prpc/", "dstack_guest", "Tappd", "Tappd.", f"{TAPPD} {V0}"),
    (
        *("guest_api", "/api/", "guest_api", "GuestApi", ""),
        "Info SysInfo GpuInfo NetworkInfo ListContainers Shutdown",
    ),
)


@pytest.mark.parametrize("row", MOUNT_TABLE, ids=lambda row: f"{row[0]} {row[1]}")
def test_mount_has_methods_of_table(
    guest: Guest, guest_client: GuestClient, row: tuple[str, ...]
) -> None:
    """Each mount has the methods of its row and no other; only some strip a prefix."""
    listener, mount, package, name, prefix, methods = row
    client = guest_client({"internal": "dstack"}.get(listener, listener), guest)
    app = client.app
    assert isinstance(app, RpcApp)
    [service] = [one for one in app.services if mount in one.mounts]
    assert (service.package, service.name, service.prefix) == (package, name, prefix)
    assert {*service.methods} == {*methods.split()}
    every = {method for found in MOUNT_TABLE for method in found[5].split()}
    for method in {*every, "AttestAppKey", "GpuInfo"}:
        for before in ("", "Worker.", "Tappd.", "Tappd.Tappd.", "Worker.Worker.", "DstackGuest."):
            is_served = method in service.methods and before in {"", prefix, prefix * 2}
            response = client.request("HEAD", f"{mount}{before}{method}")
            assert (response.status != 404) == is_served


def test_services_of_listeners() -> None:
    """Only the sockets and the development listener have the services with keys."""
    internal = (dstack_guest.SERVICE, guest_v1.SERVICE, tappd.SERVICE)
    external = listener_apps.EXTERNAL_SERVICES
    assert external == (worker_api.SERVICE, worker_api.SERVICE_V1)
    assert not GUARDED & {name for service in external for name in service.methods}
    assert {name for service in internal for name in service.methods} >= GUARDED


@pytest.mark.parametrize(
    ("listener", "path"),
    [
        *(("internal", path) for path in ("/GetKey", "/v0/GetKey", "/v1/GetKey", "/v1/Info")),
        *(("external", path) for path in ("/prpc/Info", "/prpc/v0/Info", "/prpc/v1/Health")),
        ("tappd", "/prpc/DeriveKey"),
    ],
)
def test_large_body_is_413(clients: dict[str, Client], listener: str, path: str) -> None:
    """A body over the limit is 413 on every mount, in the encoding of the request."""
    client = clients[listener]
    size = 10 * 1024 * 1024 + 1
    headers = {"content-type": JSON_TYPE, "content-length": str(size)}
    response = client.request("POST", path, [b"{"], headers)
    assert response.status == 413
    assert "payload too large" in response.error()
    assert response.headers["connection"] == "close"
    binary = client.request("POST", path, [b"\0" * size], {"content-type": BINARY_TYPE})
    assert (binary.status, binary.headers["content-type"]) == (413, BINARY_TYPE)
    assert b"payload too large" in binary.body


@every_case(
    ("listener", "path"),
    [
        *(("internal", path) for path in ("/Nope", "/v0/Nope", "/v1/Nope")),
        *(("external", path) for path in ("/prpc/Nope", "/prpc/v1/Nope", "/prpc/Worker.Nope")),
        *(("tappd", path) for path in ("/Nope", "/prpc/Nope", "/prpc/Tappd.Nope")),
    ],
)
def test_unknown_method_with_large_body_is_404(
    clients: dict[str, Client], listener: str, path: str
) -> None:
    """A client learns that the method is missing, also with a body that is not read to its end."""
    for size in (70_000, 11 * 1024 * 1024):
        for body in (bytes(size), [bytes(size)]):
            headers = {"content-type": JSON_TYPE}
            response = clients[listener].request("POST", path, body, headers)
            assert (response.status, response.error()) == (404, "Service not found: Nope")
            assert response.headers["connection"] == "close"


@every_case(
    ("listener", "path"),
    [
        *(("internal", path) for path in ("/GetQuote", "/%47etQuote", "/v0/%47etQuote")),
        ("internal", "/v1/%41ttest"),
        *(("tappd", f"/prpc/{before}TdxQuote") for before in ("", "Tappd.", "Tappd.Tappd.")),
        ("external", "/prpc/Worker.Worker.Version"),
    ],
)
def test_method_of_any_spelling_accepts_large_body(
    clients: dict[str, Client], listener: str, path: str
) -> None:
    """A request of 100 kB is served, however its path is written."""
    body = b'{"report_data":"ab"}'.ljust(100_000)
    response = clients[listener].request("POST", path, body, {"content-type": JSON_TYPE})
    assert response.status == 200


@pytest.mark.parametrize("path", ["/{}", "/v0/{}", "/v1/{}", "/prpc/{}", "/x/{}"])
def test_error_text_is_bounded(dstack: Client, path: str) -> None:
    """A long name is not returned whole."""
    response = dstack.get(path.format("x" * 20_000))
    assert response.status == 404
    assert len(response.body) < 400


@pytest.mark.parametrize(
    ("listener", "at"),
    [
        *(("internal", f"/v1/{name}") for name in ("Info", "Version")),
        *(("external", f"/prpc/v1/{name}") for name in ("Info", "Version", "Health")),
    ],
)
def test_messages_without_fields(clients: dict[str, Client], listener: str, at: str) -> None:
    """Nothing and any object are accepted; other JSON is a 400, and so is malformed protobuf."""
    client = clients[listener]
    send: Callable[[bytes, str], Any] = lambda body, kind: client.request(  # noqa: E731
        "POST", at, body, {"content-type": kind}
    )
    want = client.get(at)
    assert want.status == 200
    for body in (b"", b"{}", b'{"x":[1]}'):
        assert send(body, JSON_TYPE).body == want.body
    for body in (b"null", b"[]", b"{", b"1", b'"a"', b"anything"):
        assert send(body, JSON_TYPE).status == 400
    assert send(b"", BINARY_TYPE).status == 200
    assert send(b"\xff", BINARY_TYPE).status == 400
    assert client.request("POST", at, b'{"x":1}', {}).body == want.body  # a brace is JSON


def test_encodings_of_v1(dstack: Client) -> None:
    """JSON, query and protobuf are those of v0: `?json`, HEAD, unknown fields, hex of any form."""
    want = dstack.post("/v1/Attest", {"report_data": "abcd"})
    assert want.status == 200
    binary = {"content-type": BINARY_TYPE}
    body = b'{"report_data":"0xABcd","later":{"a":[1]}}'
    for verb, target, sent, headers in (
        ("POST", "/v1/Attest?json", body, binary),
        ("POST", "/v1/Attest", body, {"content-type": "application/json; charset=utf-8"}),
        ("POST", "/v1/Attest", body, {}),
        ("GET", "/v1/Attest?report_data=0xabCD&later=1", b"", {}),
    ):
        assert dstack.request(verb, target, sent, headers)[:3] == want[:3]
    known = dstack.request("POST", "/v1/Attest", b"\x0a\x02\xab\xcd", binary)
    later = dstack.request("POST", "/v1/Attest", b"\x0a\x02\xab\xcd\xa2\x06\x01x", binary)
    assert later[:3] == known[:3]
    head = dstack.request("HEAD", "/v1/Attest?report_data=abcd")
    assert (head.status, head.body) == (200, b"")
    assert head.headers == want.headers
    for malformed in (
        *(b'{"report_data":"0xabg"}', b'{"report_data":"abc"}', b'{"report_data":null}'),
        *(b'{"report_data":1}', b'{"include_boottime_gpu_evidence":1}', b"[]", b"null", b"{"),
    ):
        response = dstack.request("POST", "/v1/Attest", malformed, {"content-type": JSON_TYPE})
        assert response.status == 400
        assert response.error()
