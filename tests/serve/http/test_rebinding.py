"""No web page reads a simulator's pages, by a name of its own that it had lead to this machine."""

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
from attestkit.serve.app_factory import Options, wire
from attestkit.serve.endpoints import Places
from tests.serve.asgi import Client
from tests.serve.client import Answer, Connection
from tests.serve.guests import SEED, MakeGuest
from tests.serve.server import Server, running_server
from tests.tees import FakeSnp

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
HOLDS = "loopback address alone: use localhost or 127.0.0.1, or have --http listen on another"


@pytest.fixture
def local(make_guest: MakeGuest, loop: asyncio.AbstractEventLoop) -> Client:
    """A client of an external listener that only this machine gets to."""
    return Client(listener_apps.external_app(make_guest(), only_local=True), loop)


@pytest.mark.parametrize("host", OURS)
def test_names_of_this_machine(local: Client, host: str) -> None:
    """A browser, curl or Prometheus on this machine names it so; the page's own requests too."""
    for path in ("/", "/prpc/Worker.Version"):
        assert local.get(path, host=host, origin="http://localhost:8090").status == 200


@pytest.mark.parametrize("host", OTHERS)
def test_names_of_others(local: Client, host: str) -> None:
    """Nothing is told to who calls this machine otherwise, whatever is asked for; but why."""
    for path in (*PAGES, "/assets/icon.svg", "/none/such"):
        answer = local.get(path, host=host)
        assert (answer.status, HOLDS in answer.error()) == (400, True)
    assert local.post("/prpc/Worker.Version").status == 200
    answer = local.request("POST", "/prpc/Worker.Version", b"{}", {"host": host})
    assert (answer.status, HOLDS in answer.error()) == (400, True)


# -- which listeners ------------------------------------------------------------------------------


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Ends what a test has wired."""
    with ExitStack() as stack:
        yield stack


def wired(
    stack: ExitStack,
    backend: Backend,
    http: tuple[str, int] | Path | None,
    taken: socket.socket | None = None,
) -> Client:
    """Return a client of the external listener of a server on this backend."""
    attester = stack.enter_context(Attester(backend))
    options = Options(
        handed_over={} if taken is None else {"http": taken},
        app_compose=AppCompose.parse(COMPOSE),
    )
    [listener] = wire(attester, Places(http=http), options, stack).listeners
    stack.callback(listener.socket.close)
    loop = asyncio.new_event_loop()
    stack.callback(loop.close)
    return Client(listener.app, loop)


def simulator() -> Simulator:
    """Return a simulated TD with the app."""
    return Simulator(seed=SEED, app_compose=COMPOSE)


def test_a_simulator_on_loopback(stack: ExitStack) -> None:
    """That is the default; so is a socket that was handed over."""
    for name in ("127.0.0.1", "localhost"):
        assert wired(stack, simulator(), (name, 0)).get("/", host="x.example").status == 400
    for family, host in ((socket.AF_INET, "127.0.0.3"), (socket.AF_INET6, "::1")):
        taken = stack.enter_context(socket.create_server((host, 0), family=family))
        external = wired(stack, simulator(), ("127.0.0.1", 0), taken)
        assert external.get("/", host="x.example").status == 400


def test_a_listener_for_others(stack: ExitStack, tmp_path: Path) -> None:
    """Who has it listen elsewhere, or on a unix socket behind a proxy, may call it as he likes."""
    for place in (("0.0.0.0", 0), tmp_path / "http.sock"):
        assert wired(stack, simulator(), place).get("/", host="x.example").status == 200


def test_hardware_on_loopback(stack: ExitStack) -> None:
    """Before it stands a proxy, which may hand on the name that it was called by."""
    external = wired(stack, FakeSnp(), ("127.0.0.1", 0))
    assert external.get("/prpc/Version", host="x.example").status == 200


# -- on the wire ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A simulator as it is by default."""
    with running_server() as server:
        yield server
        server.check_log()


def get(server: Server, target: str, headers: dict[str, str]) -> Answer:
    """GET from the external listener."""
    connection = Connection(server.url)
    try:
        return connection.send_request("GET", target, None, headers)
    finally:
        connection.close()


@pytest.mark.parametrize("target", PAGES)
def test_a_rebound_name_reads_nothing(server: Server, target: str) -> None:
    """Not from a server either, which answers simple requests on a way of its own."""
    for headers in (REBOUND, {**REBOUND, "Origin": "http://attacker.example"}):
        answer = get(server, target, headers)
        assert (answer.status, list(answer.json())) == (400, ["error"])
        assert HOLDS in answer.json()["error"]
    assert get(server, target, {}).status != 400


def test_a_request_without_a_host(server: Server) -> None:
    """As HTTP/1.0 has it: no browser sends that."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 60) as client:
        client.sendall(b"GET /prpc/Version HTTP/1.0\r\n\r\n")
        assert client.makefile("rb").readline().startswith(b"HTTP/1.1 200 ")
