"""Methods and pages of each listener, and host checks of the development listener."""

import pytest

from attestkit.serve.services.context import Guest
from tests.serve.asgi import Client
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
        response = dstack.get(f"/{name}")
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
    assert dev.get("/GetKey", host=host).status == 200


@pytest.mark.parametrize(
    "host",
    [
        *("", "example.com", "localhost.example.com:80", "127.0.0.1.example.com", "127.0.0.2"),
        *("[::2]", "[::1].example.com", "[::1]x", "127.0.0.1:80:example.com", "localhost:x@a"),
    ],
)
def test_dev_listener_refuses_foreign_host(dev: Client, host: str) -> None:
    """A foreign host (DNS rebinding) is refused on every path."""
    for path in ("/GetKey", "/nope"):
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
        response = dev.get("/EmitEvent?event=a", **headers)
        assert (response.status, "refused" in response.error()) == (400, True)
    assert dev.get("/GetKey", referer="http://localhost:8091/docs").status == 200
    for site in ("none", "same-origin"):
        assert dev.get("/GetKey", sec_fetch_site=site).status == 200
