"""Each listener has what is its own; the port for development nothing that a web page can send."""

import asyncio

import pytest

from attestkit.serve import listener_apps
from attestkit.serve.services import dstack_guest, tappd
from attestkit.serve.services.context import Guest
from tests.serve.asgi import Client
from tests.serve.guests import MakeGuest


@pytest.fixture
def dev(guest: Guest, loop: asyncio.AbstractEventLoop) -> Client:
    """A client of the port for development."""
    return Client(listener_apps.dev_app(guest), loop)


@pytest.mark.parametrize("path", ["/", "/metrics", "/logs/a", "/assets/icon.svg", "/api/Info"])
def test_pages_are_on_the_external_listener_alone(
    make_guest: MakeGuest, loop: asyncio.AbstractEventLoop, path: str
) -> None:
    """The sockets and the port for development have methods and what describes them."""
    public = make_guest(compose={"public_sysinfo": True, "public_logs": True})
    for app in (
        listener_apps.dstack_app(public),
        listener_apps.tappd_app(public),
        listener_apps.dev_app(public),
    ):
        assert Client(app, loop).get(path).status == 404


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/DstackGuest.GetKey", "Service not found: DstackGuest.GetKey"),
        ("/prpc/GetKey", "No such path: /prpc/GetKey"),
        ("/Worker.Info", "Service not found: Worker.Info"),
        ("/DeriveKey", "Service not found: DeriveKey"),
    ],
)
def test_names_that_dstack_does_not_know(dstack: Client, path: str, error: str) -> None:
    """On dstack.sock no prefix is stripped, and nothing is mounted below another path."""
    response = dstack.get(path)
    assert (response.status, response.error()) == (404, error)


def test_the_host_does_not_matter(dstack: Client, tappd: Client, external: Client) -> None:
    """Clients of the sockets call their host as they like, and one of the port by any name."""
    for host in ("dstack", "localhost", "example.com:1", ""):
        assert dstack.get("/Version", host=host).status == 200
        assert tappd.get("/prpc/Version", host=host).status == 200
        assert external.get("/prpc/Version", host=host).status == 200


def test_both_services_are_there(dev: Client, dstack: Client) -> None:
    """DstackGuest at the root, Tappd below /prpc/, with the same answers as on the sockets."""
    for name in dstack_guest.SERVICE.methods:
        assert dev.get(f"/{name}").status != 404
    for name in tappd.SERVICE.methods:
        assert dev.get(f"/prpc/Tappd.{name}").status != 404
    assert dev.post("/GetKey", {"path": "a"}).body == dstack.post("/GetKey", {"path": "a"}).body
    assert dev.get("/").status == 404


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:8091", "[::1]", "[::1]:8091"]
)
def test_loopback_names(dev: Client, host: str) -> None:
    """A client on this machine names it so."""
    assert dev.get("/GetKey", host=host).status == 200


@pytest.mark.parametrize(
    "host",
    [
        *("", "example.com", "localhost.example.com:80", "127.0.0.1.example.com", "127.0.0.2"),
        *("[::2]", "[::1].example.com", "[::1]x", "127.0.0.1:80:example.com", "localhost:x@a"),
    ],
)
def test_foreign_hosts(dev: Client, host: str) -> None:
    """A name that was rebound to this machine is refused, on every path."""
    for path in ("/GetKey", "/nope"):
        response = dev.get(path, host=host)
        assert (response.status, "Host" in response.error()) == (400, True)


def test_requests_of_web_pages(dev: Client) -> None:
    """A page that calls shows its origin, and one that only links is told by the browser."""
    for headers in (
        {"origin": "https://example.com"},
        {"origin": "null"},
        {"origin": "http://localhost:8091"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
        {"referer": "https://example.com/localhost"},
        {"referer": "http://localhost.example.com/"},
    ):
        response = dev.get("/EmitEvent?event=a", **headers)
        assert (response.status, "refused" in response.error()) == (400, True)
    assert dev.get("/GetKey", referer="http://localhost:8091/docs").status == 200
    for site in ("none", "same-origin"):
        assert dev.get("/GetKey", sec_fetch_site=site).status == 200
