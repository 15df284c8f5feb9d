"""Methods and pages of each listener, and host checks of the development listener."""

import json
from typing import Any
from urllib.parse import urlencode

import pytest

from attestkit.serve import listener_apps
from attestkit.serve.services import tappd as tappd_service
from attestkit.serve.services.context import Guest
from tests.serve.asgi import BINARY_TYPE, JSON_TYPE, Client
from tests.serve.guests import GuestClient, MakeGuest


@pytest.fixture
def dev(guest: Guest, guest_client: GuestClient) -> Client:
    """Return a client of the development listener."""
    return guest_client("dev", guest)


@pytest.mark.parametrize("path", ["/", "/metrics", "/logs/a", "/assets/icon.svg", "/api/Info"])
def test_pages_are_on_external_listener_only(
    make_guest: MakeGuest, guest_client: GuestClient, path: str
) -> None:
    """Sockets and development listener serve only methods and their documentation."""
    public = make_guest(compose={"public_sysinfo": True, "public_logs": True})
    for listener in ("dstack", "tappd", "dev"):
        assert guest_client(listener, public).get(path).status == 404


def test_dstack_unknown_name_is_404(dstack: Client) -> None:
    """On dstack.sock no prefix is stripped, and nothing is mounted at other paths."""
    for name in ("DstackGuest.GetKey", "Worker.Info", "DeriveKey"):
        for mount in ("", "v0/", "v1/"):
            response = dstack.get(f"/{mount}{name}")
            assert (response.status, response.error()) == (404, f"Service not found: {name}")
    assert dstack.get("/prpc/GetKey").error() == "No such path: /prpc/GetKey"


def test_host_is_not_checked_on_sockets(dstack: Client, tappd: Client, external: Client) -> None:
    """Clients of the sockets and the external listener may send any host."""
    for host in ("dstack", "localhost", "example.com:1", ""):
        assert dstack.get("/Version", host=host).status == 200
        assert tappd.get("/prpc/Version", host=host).status == 200
        assert external.get("/prpc/Version", host=host).status == 200


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:8091", "[::1]", "[::1]:8091"]
)
def test_dev_listener_accepts_loopback_host(dev: Client, host: str) -> None:
    """Every loopback name is accepted."""
    assert dev.get("/Version", host=host).status == 200


@pytest.mark.parametrize(
    "host",
    [
        *("", "example.com", "localhost.example.com:80", "127.0.0.1.example.com", "127.0.0.2"),
        *("[::2]", "[::1].example.com", "[::1]x", "127.0.0.1:80:example.com", "localhost:x@a"),
    ],
)
def test_dev_listener_refuses_foreign_host(dev: Client, host: str) -> None:
    """A foreign host (DNS rebinding) is refused on every path."""
    for path in ("/Info", "/nope"):
        response = dev.get(path, host=host)
        assert (response.status, "Host" in response.error()) == (400, True)


def test_dev_listener_refuses_browser_requests(dev: Client) -> None:
    """Requests with an Origin or Sec-Fetch-Site of another site are refused."""
    for headers in (
        {"origin": "https://example.com"},
        {"origin": "null"},
        {"origin": "http://localhost:8091"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
        {"referer": "https://example.com/localhost"},
        {"referer": "http://localhost.example.com/"},
    ):
        response = dev.get("/Version", **headers)
        assert (response.status, "refused" in response.error()) == (400, True)
    assert dev.get("/Version", referer="http://localhost:8091/docs").status == 200
    for site in ("none", "same-origin"):
        assert dev.get("/Version", sec_fetch_site=site).status == 200


GUARDED = {
    "GetTlsKey": {"subject": "a"},
    "GetKey": {"path": "a"},
    "Sign": {"algorithm": "ed25519", "data": "00"},
    "EmitEvent": {"event": "a", "payload": "00"},
    "DeriveKey": {"path": "a"},
    "DeriveK256Key": {"path": "a"},
    "v1.IssueCert": {"subject": "a"},
    "v1.GetKey": {"domain": "a", "algorithm": "ed25519"},
}
"""Methods that return or use a key of the app or change the log, with a valid request."""
NOT_JSON = (None, "", "text/plain", "application/x-www-form-urlencoded", "application/jsonp")


def paths_of(name: str) -> list[str]:
    """Return all spellings of a method's path on the development listener."""
    version, _, short = name.rpartition(".")
    if version:
        return [f"/{version}/{short}", f"/{version}/%{ord(short[0]):x}{short[1:]}"]
    spelled = [f"/prpc/{name}", f"/prpc/Tappd.{name}", f"/prpc/Tappd.Tappd.{name}"]
    if name not in tappd_service.SERVICE.methods:
        escaped = f"%{ord(name[0]):x}{name[1:]}"
        spelled += [f"/{name}", f"/{escaped}", f"/v0/{name}", f"/v0/{escaped}"]
    return spelled


@pytest.mark.parametrize("name", GUARDED)
def test_dev_listener_requires_json_post_for_keys_and_events(
    guest: Guest, dev: Client, name: str
) -> None:
    """Requests that a page may send without permission (GET, forms, text) use no key and no log."""
    message, before = GUARDED[name], guest.attester.registers()
    body, query = json.dumps(message).encode(), urlencode(message)
    for path in paths_of(name):
        for verb in ("GET", "HEAD"):
            for target in (path, f"{path}?{query}", f"{path}?json&{query}"):
                refused = dev.request(verb, target, body, {"content-type": JSON_TYPE})
                assert refused.status == 400
        for kind in NOT_JSON:
            headers = {} if kind is None else {"content-type": kind}
            for target in (path, f"{path}?json"):
                assert dev.request("POST", target, body, headers).status == 400
        assert dev.request("POST", path, b"", {"content-type": BINARY_TYPE}).status == 400
    assert guest.attester.registers() == before
    for path in paths_of(name):
        for kind in (JSON_TYPE, "Application/JSON; charset=utf-8"):
            assert dev.request("POST", path, body, {"content-type": kind}).status == 200
    assert (guest.attester.registers() != before) == (name == "EmitEvent")


def test_dev_listener_requires_one_kind_of_content(dev: Client) -> None:
    """A second Content-Type does not hide the first."""
    types = [(b"content-type", b"text/plain"), (b"content-type", b"application/json")]
    for headers in (types, types[::-1]):
        scope: dict[str, Any] = {
            "type": "http",
            "method": "POST",
            "raw_path": b"/GetKey",
            "query_string": b"",
            "headers": [(b"host", b"localhost"), *headers],
        }
        assert dev.loop.run_until_complete(dev._call(scope, [b"{}"])).status == 400


def test_dev_listener_guards_every_method_but_the_listed() -> None:
    """A new method is guarded by default, and no method that uses a key is left out."""
    guarded = {
        service.route(name).name
        for service in listener_apps.DEV_SERVICES
        for name, method in service.methods.items()
        if method.json_only
    }
    assert guarded == set(GUARDED)


def test_sockets_accept_every_encoding_of_keys(dstack: Client, tappd: Client) -> None:
    """The sockets, which no web page reaches, are not restricted."""
    assert dstack.get("/GetKey?path=a").status == 200
    assert dstack.request("POST", "/GetKey", b"", {"content-type": BINARY_TYPE}).status == 200
    assert tappd.get("/prpc/DeriveKey?path=a").status == 200
