"""Endorsements of simulated machines are fetched over HTTP, and verify their evidence."""

import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from attestkit.backends.simulator.gpu.gpu_config import GpuConfig
from attestkit.backends.simulator.gpu.gpu_host import SimulatedGpuServices
from attestkit.backends.simulator.gpu.simulated_gpus import SimulatedGpus
from attestkit.backends.simulator.service_response import ServiceResponse
from attestkit.collateral.http_getter import HttpGetter
from attestkit.errors import CollateralError
from attestkit.gpu import GpuEndorsements, GpuRules, GpuServices, verify
from attestkit.gpu.nras import verify_tokens
from tests.raising import raises

SEED = b"a seed of machines with services"
NONCE = bytes(range(32))
NOW = 1_780_000_000
MOMENT = datetime.fromtimestamp(NOW, timezone.utc)


class Server(ThreadingHTTPServer):
    """A server of the services of a machine, which counts requests by path."""

    def __init__(self, gpus: SimulatedGpus) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.services = SimulatedGpuServices(gpus, lambda: NOW)
        self.paths: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def gpu_services(self) -> GpuServices:
        """Return the URLs, with a client that has time on a busy machine."""
        http = HttpGetter(timeout=60)
        return GpuServices(
            http, http.post, self.url, f"{self.url}/ocsp", nras_url=self.url, nras_version=4
        )


class Handler(BaseHTTPRequestHandler):
    """Handles requests."""

    server: Server

    def do_GET(self) -> None:
        """Answer a GET."""
        self._answer(self.server.services.get(self.path))

    def do_POST(self) -> None:
        """Answer a POST."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(self.server.services.post(self.path, body))

    def _answer(self, found: ServiceResponse | None) -> None:
        self.server.paths.append(self.path)
        status, headers, body = found or ServiceResponse(404, (), b"")
        self.send_response(status)
        for name, value in (*headers, ("Content-Length", str(len(body)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


Serve = Callable[[SimulatedGpus], Server]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Return a function that starts a server, which stops with the test."""
    running: list[tuple[Server, threading.Thread]] = []

    def start(gpus: SimulatedGpus) -> Server:
        server = Server(gpus)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        running.append((server, thread))
        return server

    yield start
    for server, thread in running:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("config", "rims", "answers"),
    [
        # Each BROM, the provisioner's and the product's CA; signer of both RIMs, and its two CAs
        (GpuConfig(count=1), 2, 1 + 2 + 3),
        (GpuConfig(count=2, architecture="BLACKWELL"), 2, 2 + 2 + 3),
    ],
)
def test_fetched_endorsements_verify_evidence(
    serve: Serve, config: GpuConfig, rims: int, answers: int
) -> None:
    """Fetched endorsements suffice for the evidence; those that devices share are fetched once."""
    gpus = SimulatedGpus(SEED, config)
    server, evidence = serve(gpus), gpus.evidence(NONCE)
    services = server.gpu_services()
    found = GpuEndorsements.fetch(evidence, services, now=MOMENT, roots=gpus.roots)
    assert (len(found.rims), len(found.ocsp)) == (rims, answers)
    assert len(server.paths) == rims + answers
    result = verify(evidence, nonce=NONCE, now=MOMENT, endorsements=found, roots=gpus.roots)
    assert len(result.devices) == config.chosen_count


def test_fetched_endorsements_of_protected_machine(serve: Serve) -> None:
    """8 GPUs and 4 switches need one answer for each BROM, and those of three RIMs' chains."""
    gpus = SimulatedGpus(SEED, GpuConfig(count=8, protected_pcie=True))
    server, evidence = serve(gpus), gpus.evidence(NONCE)
    services = server.gpu_services()
    found = GpuEndorsements.fetch(evidence, services, now=MOMENT, roots=gpus.roots)
    assert len(evidence.devices) == 12
    assert len(found.rims) == 3
    assert len({*found.ocsp}) == len(found.ocsp) < 12 * 3 + 3 * 3
    assert len(server.paths) == len(found.rims) + len(found.ocsp)
    result = verify(evidence, nonce=NONCE, now=MOMENT, endorsements=found, roots=gpus.roots)
    assert len(result.devices) == 12


def test_fetched_tokens_are_verified(serve: Serve) -> None:
    """Tokens and keys come from the service of the machine, and hold for its devices."""
    gpus = SimulatedGpus(SEED, GpuConfig(count=2))
    server, evidence = serve(gpus), gpus.evidence(NONCE)
    services = server.gpu_services()
    found = GpuEndorsements().fetch_tokens(evidence, NONCE, services)
    assert server.paths == ["/v4/attest/gpu", "/.well-known/jwks.json"]
    assert found.jwks is not None
    (answer,) = found.nras
    result = verify_tokens(answer, found.jwks, NONCE, MOMENT)
    assert [device.name for device in result.devices] == ["GPU-0", "GPU-1"]
    rules = GpuRules(nras="instead")
    verified = verify(
        evidence, nonce=NONCE, now=MOMENT, endorsements=found, roots=gpus.roots, rules=rules
    )
    assert len(verified.devices) == 2


def test_fetch_of_machine_without_rim_names_it(serve: Serve) -> None:
    """A RIM that the service lacks is named."""
    gpus = SimulatedGpus(SEED, GpuConfig(count=1))
    other = SimulatedGpus(SEED, GpuConfig(architecture="BLACKWELL"))
    server = serve(other)
    with raises(CollateralError, "missing", part="NV_GPU_DRIVER_GH100_"):
        GpuEndorsements.fetch(
            gpus.evidence(NONCE), server.gpu_services(), now=MOMENT, roots=gpus.roots
        )
