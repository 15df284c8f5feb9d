"""`--pccs-http` serves the simulator's collateral to dcap-qvl's and attestkit's clients."""

import asyncio
import json
import shutil
import socket
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import dcap_qvl
import pytest

from attestkit.backends.simulator import Simulator
from attestkit.backends.simulator.pki.pccs import ServedPlatform, SimulatedPccs
from attestkit.backends.simulator.scenarios.config import QuoteConfig, Scenario
from attestkit.collateral import Collateral
from attestkit.quote import Quote
from attestkit.serve.services.pccs import PccsApp, make_pccs
from tests.serve.asgi import Client
from tests.serve.server import SEED, Server, refusal, run_program, running_server
from tests.thorough import slow

SUFFIXES: Final = (
    *("", "/", "/sgx/certification/v4", "/sgx/certification/v4/"),
    *("/tdx/certification/v4", "/tdx/certification/v4/"),
)
JS: Final = Path(__file__).resolve().parents[2] / "clients" / "js"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Return a server with a PCCS on a free port."""
    with running_server("--pccs-http", "127.0.0.1:0") as server:
        yield server


@pytest.fixture(scope="module")
def simulator() -> Simulator:
    """Return a simulator with the server's seed."""
    return Simulator(seed=bytes.fromhex(SEED))


def current_time() -> int:
    """Return the current Unix time."""
    return int(datetime.now(timezone.utc).timestamp())


def test_pccs_url_is_printed(server: Server) -> None:
    """The ready line has the port, the banner the environment variable."""
    url = server.ready["pccs"]
    parts = urlsplit(url)
    assert (parts.scheme, parts.hostname, parts.path) == ("http", "127.0.0.1", "")
    assert parts.port
    assert f"export PCCS_URL={url}\n" in server.log()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_pccs_attestkit_client_fetches_collateral(
    server: Server, simulator: Simulator, suffix: str
) -> None:
    """Fetched collateral equals the simulator's."""
    quote = Quote.parse(simulator.get_quote(bytes(64)))
    before = simulator.collateral()  # changes at midnight
    fetched = Collateral.fetch(quote, server.ready["pccs"] + suffix)
    assert fetched in (before, simulator.collateral())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_pccs_dcap_qvl_client_verifies(server: Server, simulator: Simulator, suffix: str) -> None:
    """dcap-qvl fetches the same collateral and verifies the quote as UpToDate."""
    raw = simulator.get_quote(bytes(64))

    async def fetch() -> Any:
        return await dcap_qvl.get_collateral(server.ready["pccs"] + suffix, raw)

    before = simulator.collateral()  # changes at midnight
    theirs = asyncio.run(fetch())
    report = dcap_qvl.verify_with_root_ca(raw, theirs, simulator.trust_anchor, current_time())
    assert report.status == "UpToDate"
    fetched = Collateral.from_json(theirs.to_json())
    assert replace(fetched, pck_certificate_chain=None) in (before, simulator.collateral())


def run_javascript_client(url: str, quote: bytes, root: bytes) -> str:
    """Run @phala/dcap-qvl's client: fetch, then verify; return the TCB status."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    if not (JS / "node_modules" / "@phala" / "dcap-qvl").is_dir():
        pytest.skip("tests/clients/js/node_modules is missing: run `npm install` there")
    asked = {"url": url, "quote": quote.hex(), "root": root.hex(), "now": current_time()}
    done = run_program([node, "fetch.mjs"], cwd=JS, input=json.dumps(asked), timeout=120)
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["status"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "suffix"),
    [
        (5, ""),
        (2, ""),
        (3, "/"),
        # Other clients cover all suffixes; starting this one takes 0.3 s.
        *slow(*((5, suffix) for suffix in SUFFIXES[1:])),
    ],
)
def test_pccs_javascript_client_verifies(
    server: Server, simulator: Simulator, kind: int, suffix: str
) -> None:
    """@phala/dcap-qvl fetches the processor CA's CRL and verifies.

    This includes quotes that identify the platform by an encrypted PPID only.
    """
    scenario = Scenario(quote=QuoteConfig(certification_type=kind))
    raw = Simulator(seed=bytes.fromhex(SEED), scenario=scenario).get_quote(bytes(64))
    url = server.ready["pccs"] + suffix
    assert run_javascript_client(url, raw, simulator.trust_anchor) == "UpToDate"


def test_pccs_internal_error_is_not_shown(
    simulator: Simulator, loop: asyncio.AbstractEventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception is a 500 without its text, which is logged."""

    class Failing(SimulatedPccs):
        def respond(self, path: str, query: str) -> Any:
            raise RuntimeError(f"a private thing: {path}{query}")

    quote = Quote.parse(simulator.get_quote(bytes(64)))
    platform = ServedPlatform(quote.header.user_data[:16], quote.pck_chain[0])
    failing = Failing(simulator.collateral, [platform])
    assert make_pccs(simulator).respond("/sgx/certification/v4/rootcacrl", "").status == 200
    response = Client(PccsApp(failing), loop).get("/sgx/certification/v4/rootcacrl")
    assert (response.status, response.body) == (500, b"Internal error.")
    assert "a private thing" in caplog.text


def test_pccs_requires_simulator(tmp_path: Path) -> None:
    """--pccs-http with another backend is a usage error."""
    expected = refusal(
        "--backend", "tdx_ioctl", "--pccs-http", "127.0.0.1:0", folder=tmp_path, code=1
    )
    assert "--pccs-http: requires the simulator" in expected


def test_pccs_address_option(tmp_path: Path) -> None:
    """Errors name a malformed or occupied address."""
    expected = refusal("--backend", "simulator", "--pccs-http", "8081", folder=tmp_path, code=1)
    assert "--pccs-http: must be HOST:PORT with a port of 0 to 65535, or none: 8081" in expected
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        options = ("--backend", "simulator", "--dir", str(tmp_path), "--http", "none")
        expected = refusal(*options, "--pccs-http", where, folder=tmp_path, code=3)
    assert f"--pccs-http {where}: the port is in use" in expected
