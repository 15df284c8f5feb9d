"""DNS rebinding: a simulator on loopback rejects foreign hosts, in Host or in the target."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from attestkit.attester import Attester
from attestkit.backends.base import Backend
from attestkit.backends.simulator import Simulator
from attestkit.dstack.app_compose import AppCompose
from attestkit.serve import listener_apps
from attestkit.serve.app_factory import ServerOptions, build_server
from attestkit.serve.endpoints import ListenAddresses
from attestkit.serve.http.request_checks import with_named_host
from tests.machines.tees import FakeSnp
from tests.runner.cases import every_case
from tests.serve.asgi import Client
from tests.serve.client import connect, get
from tests.serve.guests import SEED, MakeGuest
from tests.serve.server import Server

COMPOSE = b'{"manifest_version": 2, "name": "an app", "runner": "bash"}'
REBOUND = {"Host": "attacker.example"}
OURS = (
    *("localhost", "LOCALHOST:8090", "localhost.", "app.localhost", "a.b-c.localhost:1"),
    *("127.0.0.1", "127.0.0.1:8090", "127.1.2.3", "[::1]", "[::1]:8090"),
)
OTHERS = (
    *("", "attacker.example", "attacker.example:8090", "localhost.attacker.example"),
    *("127.0.0.1.attacker.example", "notlocalhost", "localhost:x", ".localhost", "[::2]"),
    *("128.0.0.1", "0.0.0.0:8090", "192.0.2.1", "a@localhost", "localhost/", "x:1@127.0.0.1"),
)
PAGES = ("/", "/metrics", "/prpc/Worker.Info", "/logs/x", "/docs")
HOLDS = "listens on loopback only; use localhost or 127.0.0.1, or give --http another address"


@pytest.fixture
def local(make_guest: MakeGuest, loop: asyncio.AbstractEventLoop) -> Client:
    """Return a client of an external listener on loopback."""
    return Client(listener_apps.external_app(make_guest(), only_local=True), loop)


@pytest.mark.parametrize("host", OURS)
def test_loopback_host_is_accepted(local: Client, host: str) -> None:
    """Every loopback name is accepted, with an Origin too."""
    for path in ("/", "/prpc/Worker.Version"):
        assert local.get(path, host=host, origin="http://localhost:8090").status == 200


@pytest.mark.parametrize("host", OTHERS)
def test_foreign_host_is_refused(local: Client, host: str) -> None:
    """A foreign Host header is a 400 on every path; the error states the remedy."""
    for path in (*PAGES, "/assets/icon.svg", "/none/such"):
        answer = local.get(path, host=host)
        assert (answer.status, HOLDS in answer.error()) == (400, True)
    assert local.post("/prpc/Worker.Version").status == 200
    answer = local.request("POST", "/prpc/Worker.Version", b"{}", {"host": host})
    assert (answer.status, HOLDS in answer.error()) == (400, True)


# -- listeners that check the host ----------------------------------------------------------------


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Return a stack that is closed after the test."""
    with ExitStack() as stack:
        yield stack


def create_external_client(
    stack: ExitStack,
    backend: Backend,
    http: tuple[str, int] | Path | None,
    taken: socket.socket | None = None,
) -> Client:
    """Return a client of the external listener of a server on this backend."""
    attester = stack.enter_context(Attester(backend))
    options = ServerOptions(
        handed_over={} if taken is None else {"http": taken},
        app_compose=AppCompose.parse(COMPOSE),
    )
    [listener] = build_server(attester, ListenAddresses(http=http), options, stack).listeners
    stack.callback(listener.socket.close)
    loop = asyncio.new_event_loop()
    stack.callback(loop.close)
    return Client(listener.app, loop)


def create_simulator() -> Simulator:
    """Return a simulator with the app."""
    return Simulator(seed=SEED, app_compose=COMPOSE)


def test_simulator_on_loopback_checks_host(stack: ExitStack) -> None:
    """The simulator checks the host on loopback addresses, also of an inherited socket."""
    for name in ("127.0.0.1", "localhost"):
        external = create_external_client(stack, create_simulator(), (name, 0))
        assert external.get("/", host="x.example").status == 400
    for family, host in ((socket.AF_INET, "127.0.0.3"), (socket.AF_INET6, "::1")):
        taken = stack.enter_context(socket.create_server((host, 0), family=family))
        external = create_external_client(stack, create_simulator(), ("127.0.0.1", 0), taken)
        assert external.get("/", host="x.example").status == 400


def test_simulator_elsewhere_does_not_check_host(stack: ExitStack, tmp_path: Path) -> None:
    """On another address or a unix socket the host is not checked."""
    for place in (("0.0.0.0", 0), tmp_path / "http.sock"):
        external = create_external_client(stack, create_simulator(), place)
        assert external.get("/", host="x.example").status == 200


def test_hardware_on_loopback_does_not_check_host(stack: ExitStack) -> None:
    """On hardware a proxy may pass on the public name."""
    external = create_external_client(stack, FakeSnp(), ("127.0.0.1", 0))
    assert external.get("/prpc/Version", host="x.example").status == 200


# -- a running server -----------------------------------------------------------------------------


@pytest.mark.parametrize("target", PAGES)
def test_rebound_host_is_refused_by_server(dev_server: Server, target: str) -> None:
    """A running server rejects a foreign host on its direct path too."""
    for headers in (REBOUND, {**REBOUND, "Origin": "http://attacker.example"}):
        answer = get(dev_server.url, target, headers)
        assert (answer.status, list(answer.json())) == (400, ["error"])
        assert HOLDS in answer.json()["error"]
    assert get(dev_server.url, target, {}).status != 400


# -- targets in absolute form ----------------------------------------------------------------------

HOST = (b"host", b"localhost")
DEV_VERSION = "/Version"
VERSION = "/prpc/Worker.Version"


def request_status(url: str, line: str, *fields: str) -> int:
    """Send a request; return the status of the response."""
    with connect(url) as client:
        head = (line, *fields, "Connection: close", "", "")
        client.sendall("\r\n".join(head).encode("latin-1"))
        return int(client.makefile("rb").readline().split()[1])


@pytest.mark.parametrize(
    "authority",
    [
        *("http://evil.example", "HTTP://EVIL.EXAMPLE:80", "https://evil.example"),
        "http://x@localhost",
        *("http://localhost.evil.example", "http://192.0.2.1:8090", "http://[::2]"),
    ],
)
def test_foreign_authority_is_refused(dev_server: Server, authority: str) -> None:
    """A foreign authority in the target is a 400, whatever the Host header."""
    for url, path in ((dev_server.dev_url, DEV_VERSION), (dev_server.url, VERSION)):
        assert request_status(url, f"GET {authority}{path} HTTP/1.1", "Host: localhost") == 400
        assert request_status(url, f"GET {authority}{path} HTTP/1.0") == 400


def test_loopback_authority_is_accepted(dev_server: Server) -> None:
    """A loopback authority is accepted; a foreign Host beside it is refused."""
    for url, path in ((dev_server.dev_url, DEV_VERSION), (dev_server.url, VERSION)):
        port = url.rpartition(":")[2]
        for authority in (f"http://localhost:{port}", "http://127.0.0.1", "HTTP://LOCALHOST"):
            assert request_status(url, f"GET {authority}{path} HTTP/1.1", "Host: localhost") == 200
            assert request_status(url, f"GET {authority}{path} HTTP/1.0") == 200
            assert (
                request_status(url, f"GET {authority}{path} HTTP/1.1", "Host: evil.example") == 400
            )
        assert request_status(url, f"GET {path} HTTP/1.1", "Host: localhost") == 200


def test_request_without_host_is_accepted(dev_server: Server) -> None:
    """HTTP/1.0 without Host is accepted, because browsers always send one."""
    with connect(dev_server.url) as client:
        client.sendall(b"GET /prpc/Version HTTP/1.0\r\n\r\n")
        assert client.makefile("rb").readline().startswith(b"HTTP/1.1 200 ")


@every_case(
    ("target", "added"),
    [
        (b"http://a", [b"a"]),
        (b"http://a:1/b", [b"a:1"]),
        (b"HtTp://[::1]:2?c=d", [b"[::1]:2"]),
        (b"coap+tcp://e#f", [b"e"]),
        (b"http://u@a/http://b/", [b"u@a"]),
        (b"http:///b", [b""]),
        *((t, []) for t in (b"/", b"/http://a/", b"//a/b", b"*", b"", b"a:443", b"/?http://a")),
    ],
)
def test_with_named_host_appends_authority(target: bytes, added: list[bytes]) -> None:
    """An authority is appended unchanged, with port and user info; other targets name none."""
    assert with_named_host(target, [HOST]) == [HOST, *((b"host", one) for one in added)]
