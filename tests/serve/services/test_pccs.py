"""`--pccs` serves the simulator's collateral, and real clients fetch from it and verify."""

import asyncio
import http.client
import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import dcap_qvl
import pytest

from attestkit.attester import Attester
from attestkit.backends.simulator import Simulator
from attestkit.backends.simulator.pki.pccs import ServedPlatform, SimulatedPccs
from attestkit.backends.simulator.scenarios.config import QuoteConfig, Scenario
from attestkit.collateral import Collateral
from attestkit.errors import UsageError
from attestkit.quote import Quote
from attestkit.serve import serve
from attestkit.serve.config.agent_settings import decide
from attestkit.serve.config.command_line import Options
from attestkit.serve.config.option_values import Address
from attestkit.serve.endpoints import Places
from attestkit.serve.services.pccs import PccsApp, pccs_of
from tests.serve.asgi import Client
from tests.serve.client import call
from tests.serve.server import SEED, Server, refusal, running_server
from tests.thorough import slow

SUFFIXES: Final = (
    *("", "/", "/sgx/certification/v4", "/sgx/certification/v4/"),
    *("/tdx/certification/v4", "/tdx/certification/v4/"),
)
JS: Final = Path(__file__).resolve().parents[2] / "clients" / "js"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Run a server with a PCCS on a free port."""
    with running_server("--pccs", "127.0.0.1:0") as server:
        yield server


@pytest.fixture(scope="module")
def simulator() -> Simulator:
    """Return a TD of the server's seed."""
    return Simulator(seed=bytes.fromhex(SEED))


def now() -> int:
    """Return the time by the machine's clock, which the server has as well."""
    return int(datetime.now(timezone.utc).timestamp())


class Read(http.client.HTTPResponse):
    """A response whose body is read."""

    data = b""


def get(server: Server, target: str, verb: str = "GET") -> Read:
    """Return the response to one request."""
    connection = http.client.HTTPConnection(urlsplit(server.ready["pccs"]).netloc, timeout=10)
    connection.response_class = Read
    connection.request(verb, target)
    response = connection.getresponse()
    assert isinstance(response, Read)
    response.data = response.read()
    connection.close()
    return response


def test_the_ready_line_and_the_banner_say_where(server: Server) -> None:
    """The ready line has the real port, the banner the variable for clients."""
    url = server.ready["pccs"]
    parts = urlsplit(url)
    assert (parts.scheme, parts.hostname, parts.path) == ("http", "127.0.0.1", "")
    assert parts.port
    assert f"export PCCS_URL={url}\n" in server.log()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_our_fetch_gives_the_simulators_collateral(
    server: Server, simulator: Simulator, suffix: str
) -> None:
    """What is fetched over HTTP is the collateral itself, byte for byte."""
    quote = Quote.parse(simulator.get_quote(bytes(64)))
    before = simulator.collateral()  # at midnight it changes
    fetched = Collateral.fetch(quote, server.ready["pccs"] + suffix)
    assert fetched in (before, simulator.collateral())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_dcap_qvl_fetches_and_verifies(server: Server, simulator: Simulator, suffix: str) -> None:
    """The Python client of dcap-qvl gets the same, and the quote is up to date with it."""
    raw = simulator.get_quote(bytes(64))

    async def fetch() -> Any:
        return await dcap_qvl.get_collateral(server.ready["pccs"] + suffix, raw)

    before = simulator.collateral()  # at midnight it changes
    theirs = asyncio.run(fetch())
    report = dcap_qvl.verify_with_root_ca(raw, theirs, simulator.trust_anchor, now())
    assert report.status == "UpToDate"
    fetched = Collateral.from_json(theirs.to_json())
    assert replace(fetched, pck_certificate_chain=None) in (before, simulator.collateral())


def javascript(url: str, quote: bytes, root: bytes) -> "subprocess.CompletedProcess[str]":
    """Run the client of @phala/dcap-qvl: fetch, then verify."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    if not (JS / "node_modules" / "@phala" / "dcap-qvl").is_dir():
        pytest.skip("tests/clients/js/node_modules is missing: run `npm install` there")
    asked = {"url": url, "quote": quote.hex(), "root": root.hex(), "now": now()}
    return subprocess.run(
        [node, "fetch.mjs"],
        cwd=JS,
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [
        (5, ""),
        (2, ""),
        (3, "/"),
        # The two clients above have all suffixes; this one is a program of a third of a second.
        *slow(*((5, suffix) for suffix in SUFFIXES[1:])),
    ],
)
def test_the_javascript_client_fetches_and_verifies(
    server: Server, simulator: Simulator, kind: int, suffix: str
) -> None:
    """@phala/dcap-qvl, which asks for the processor's CRL, gets it and verifies.

    Also for a quote that tells its platform by an encrypted PPID alone.
    """
    odd = Scenario(quote=QuoteConfig(certification_type=kind))
    raw = Simulator(seed=bytes.fromhex(SEED), scenario=odd).get_quote(bytes(64))
    done = javascript(server.ready["pccs"] + suffix, raw, simulator.trust_anchor)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "UpToDate"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("tcb-OutOfDate", "OutOfDate"),
        ("ok-second-platform", "UpToDate"),
        ("pck-revoked", "revoked"),
        ("collateral-expired", "expired"),
    ],
)
def test_the_servers_scenario_is_what_clients_fetch(name: str, told: str) -> None:
    """From the server to the verdict of both clients: the status, or the reason of the refusal."""
    with running_server("--pccs", "127.0.0.1:0", "--scenario", name) as server:
        url = server.ready["pccs"]
        raw = bytes.fromhex(call(server.dstack, "GetQuote").json()["quote"])
        anchor = Simulator(seed=bytes.fromhex(SEED), scenario=name).trust_anchor

        async def fetch() -> Any:
            return await dcap_qvl.get_collateral(url, raw)

        theirs = asyncio.run(fetch())
        try:
            python = dcap_qvl.verify_with_root_ca(raw, theirs, anchor, now()).status
        except ValueError as error:
            python = str(error)
        assert told.lower() in python.lower()
        done = javascript(url, raw, anchor)
        assert told.lower() in (done.stdout or done.stderr).lower()


def test_responses_are_http_1_1_with_their_length(server: Server) -> None:
    """Version, Content-Length and type, the simulator's Server header, and no encoding."""
    response = get(server, "/sgx/certification/v4/rootcacrl")
    assert (response.status, response.version) == (200, 11)
    assert response.getheader("Content-Length") == str(len(response.data))
    assert response.getheader("Content-Type") == "application/pkix-crl"
    assert response.getheader("Transfer-Encoding") is None
    assert "simulator" in (response.getheader("Server") or "").lower()
    assert get(server, "/nothing").status == 404
    assert get(server, "/tdx/certification/v4/tcb").status == 400


@pytest.mark.parametrize("verb", ["POST", "PUT", "DELETE", "HEAD"])
def test_only_get_is_served(server: Server, verb: str) -> None:
    """Other methods are status 405 on every path."""
    response = get(server, "/sgx/certification/v4/rootcacrl", verb)
    assert (response.status, response.getheader("Allow")) == (405, "GET")


def test_a_failure_says_nothing_to_strangers(
    simulator: Simulator, loop: asyncio.AbstractEventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception is status 500 without its text, which goes to the log."""

    class Failing(SimulatedPccs):
        def _root_crl(self, _: object) -> Any:
            raise RuntimeError("a private thing")

    quote = Quote.parse(simulator.get_quote(bytes(64)))
    platform = ServedPlatform(quote.header.user_data[:16], quote.pck_chain[0])
    failing = Failing(simulator.collateral, [platform])
    assert pccs_of(simulator).answer("/sgx/certification/v4/rootcacrl", "").status == 200
    response = Client(PccsApp(failing), loop).get("/sgx/certification/v4/rootcacrl")
    assert (response.status, response.body) == (500, b"Internal error.")
    assert "a private thing" in caplog.text


def test_it_is_for_the_simulator(tmp_path: Path) -> None:
    """Another backend with --pccs is a usage error, as option and in serve()."""
    options = Options(backend="tdx_ioctl", pccs="127.0.0.1:0")
    with pytest.raises(UsageError, match=r"^--pccs is for the simulator only$"):
        decide(options, {"HOME": "/"}, tuple)
    told = refusal("--backend", "tdx_ioctl", "--pccs", "127.0.0.1:0", folder=tmp_path, code=1)
    assert "--pccs is for the simulator only" in told


class Foreign:
    """Somebody's simulated TEE, which has no collateral of ours."""

    name = "foreign"
    simulated = True
    blocking = False

    def __init__(self) -> None:
        self._simulator = Simulator(seed=bytes(32))

    @classmethod
    def probe(cls) -> None:
        """Return: it runs everywhere."""

    def get_quote(self, report_data: bytes) -> bytes:
        """Return a quote of the simulator's."""
        return self._simulator.get_quote(report_data)

    def read_event_log(self) -> bytes:
        """Return the log of the simulator's."""
        return self._simulator.read_event_log()

    def close(self) -> None:
        """Close the simulator."""
        self._simulator.close()


def test_another_simulated_tee_has_no_pccs(simulator: Simulator) -> None:
    """A TEE that calls itself simulated is not the simulator."""
    with (
        Attester(Foreign()) as attester,
        pytest.raises(UsageError, match="for the simulator only"),
    ):
        serve(
            attester,
            Places(pccs=("127.0.0.1", 0)),
            app_compose=simulator.app_compose,
            vm_config="{}",
        )


def test_where_it_listens_is_what_the_option_says(tmp_path: Path) -> None:
    """Off by default and with none; any address; a malformed or taken one is named."""
    settings = decide(Options(backend="simulator"), {"HOME": "/"}, tuple)
    assert settings.pccs is None
    for text, address in (("0.0.0.0:8081", Address("0.0.0.0", 8081)), ("none", None)):
        assert decide(Options(backend="simulator", pccs=text), {"HOME": "/"}, tuple).pccs == address
    told = refusal("--backend", "simulator", "--pccs", "8081", folder=tmp_path, code=1)
    assert "--pccs 8081: want HOST:PORT" in told
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        options = ("--backend", "simulator", "--dir", str(tmp_path), "--http", "none")
        told = refusal(*options, "--pccs", where, folder=tmp_path, code=3)
    assert f"--pccs {where}: the port is taken" in told


def test_without_the_option_there_is_none() -> None:
    """No listener, and nothing of it in the ready line."""
    with running_server() as server:
        assert "pccs" not in server.ready
