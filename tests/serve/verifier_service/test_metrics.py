"""`--verifier-metrics`: counters of a verifier service with one process or several."""

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

import httpx
import pytest

from attestkit.errors import CollateralError, CollateralExpiredError, VerificationError
from attestkit.serve.counters import CONTENT_TYPE, Stats
from attestkit.serve.job_queue import JobThreads
from attestkit.serve.verifier_service.app import VerifierApp
from attestkit.serve.verifier_service.metrics import VerifierMetricsApp
from tests.serve.asgi import Client
from tests.serve.client import get
from tests.serve.metrics.test_agent import PROMTOOL, _check, _families, _value
from tests.serve.server import PATIENCE, Server, command, environment, ready_server, refusal
from tests.serve.verifier_service.judges import FakeVerifier, create_evidence
from tests.serve.verifier_service.test_verifier_instances import wait_until
from tests.serve.verifier_service.verifying_load import list_child_processes
from tests.serve.worker_pool.test_supervisor import serve_on_inherited_socket

if TYPE_CHECKING:
    from attestkit.verifier.verifier import Verifier

pytestmark = pytest.mark.slow  # its tests start programs

GOOD = {"attestation": create_evidence().to_bytes().hex()}
REJECTED = VerificationError("no", reason="unusable")
EMPTY = {"verdict": "refused", "step": "reading"}  # a request without evidence
ALONE = ("--backend", "none", "--verifier", "127.0.0.1:0", "--verifier-metrics", "127.0.0.1:0")


class ServiceWithMetrics:
    """A verifier and its metrics, in this process."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._stats, self._loop = Stats(), loop
        app = VerifierMetricsApp(lambda: self._stats, self._stats.of("verifier_metrics"))
        self.metrics_client = Client(app, loop)

    def verify(self, fake: FakeVerifier, body: object) -> None:
        """Send a body to /verify, with a fake verifier."""
        with JobThreads(1) as executor:
            app = VerifierApp(
                cast("Verifier", fake),
                executor,
                executor,
                traffic=self._stats.of("verifier"),
                verdicts=self._stats.verdicts,
            )
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            Client(app, self._loop).request("POST", "/verify", data)

    def read_metrics(self) -> str:
        """Return the metrics."""
        response = self.metrics_client.get("/metrics")
        assert (response.status, response.headers["content-type"]) == (200, CONTENT_TYPE.decode())
        return response.body.decode()


@pytest.fixture
def service(loop: asyncio.AbstractEventLoop) -> ServiceWithMetrics:
    """Return a service without requests."""
    return ServiceWithMetrics(loop)


@pytest.mark.parametrize(
    ("fake", "body", "verdict"),
    [
        (FakeVerifier(), GOOD, ("accepted", "")),
        (FakeVerifier(), {}, ("refused", "reading")),
        *[
            (FakeVerifier(**{name: REJECTED}), GOOD, ("refused", step))
            for name, step in (
                ("authenticate", "quote"),
                ("replay", "quote"),
                ("image_hash", "os_image"),
                ("app_info", "event_log"),
                ("appraise", "policy"),
            )
        ],
        (FakeVerifier(appraise=ValueError("ours")), GOOD, ("failed", "policy")),
        (
            FakeVerifier(authenticate=CollateralError("no PCCS", reason="missing")),
            GOOD,
            ("failed", "quote"),
        ),
        (
            FakeVerifier(authenticate=CollateralExpiredError("old", reason="tcb_info_expired")),
            GOOD,
            ("refused", "quote"),
        ),
    ],
)
def test_verdict_is_counted_once_by_step(
    service: ServiceWithMetrics, fake: FakeVerifier, body: object, verdict: tuple[str, str]
) -> None:
    """A verdict is counted once, under the step that refused."""
    service.verify(fake, body)
    read_metrics = service.read_metrics()
    given = dict(zip(("verdict", "step"), verdict, strict=True))
    assert _value(read_metrics, "attestkit_verdicts_total", **given) == 1
    assert (
        sum(sample.value for sample in _families(read_metrics)["attestkit_verdicts"].samples) == 1
    )
    answered = {"listener": "verifier", "method": "verify", "status": "200"}
    assert _value(read_metrics, "attestkit_requests_total", **answered) == 1


@pytest.mark.parametrize("body", [b"no JSON", {"quote": 1}])
def test_malformed_request_counts_no_verdict(service: ServiceWithMetrics, body: object) -> None:
    """A malformed request is counted as a request, not as a verdict."""
    service.verify(FakeVerifier(), body)
    samples = _families(service.read_metrics())["attestkit_verdicts"].samples
    assert [sample.value for sample in samples] == [0] * 11  # all combinations of labels


@pytest.mark.parametrize(
    ("verb", "path"),
    [("GET", "/"), ("POST", "/metrics"), ("GET", "/metrics/"), ("POST", "/verify")],
)
def test_request_other_path_is_404(service: ServiceWithMetrics, verb: str, path: str) -> None:
    """The metrics listener serves only GET /metrics."""
    response = service.metrics_client.request(verb, path, b"{}")
    assert response.status == 404
    assert "GET /metrics" in response.error()


def test_head_request_has_no_body(service: ServiceWithMetrics) -> None:
    """HEAD returns the length and no body."""
    response = service.metrics_client.request("HEAD", "/metrics")
    assert (response.status, response.body) == (200, b"")
    assert int(response.headers["content-length"]) > 100


def test_foreign_host_on_loopback_is_400(loop: asyncio.AbstractEventLoop) -> None:
    """A metrics listener on loopback rejects foreign Host headers (DNS rebinding)."""
    local = Client(VerifierMetricsApp(Stats, only_local=True), loop)
    for host in ("localhost:9464", "127.0.0.1", "[::1]:9464"):
        assert local.get("/metrics", host=host).status == 200
    answer = local.get("/metrics", host="attacker.example")
    assert answer.status == 400
    assert "--verifier-metrics" in answer.error()
    assert Client(VerifierMetricsApp(Stats), loop).get("/metrics", host="a.example").status == 200


@contextlib.contextmanager
def running(folder: Path, *options: str) -> Iterator[Server]:
    """Run a verifier with metrics; it stops in order."""
    with ready_server(command(*ALONE, *options), folder, environment()) as server:
        yield server
        assert server.stop() == 0


def scrape_metrics(server: Server) -> str:
    """Return the metrics of a running service."""
    answer = get(server.ready["verifier_metrics"], "/metrics")
    assert answer.status == 200
    return answer.body.decode()


def count_refused(text: str) -> float:
    """Return the number of verdicts on requests without evidence."""
    return _value(text, "attestkit_verdicts_total", **EMPTY)


def wait_for_value(server: Server, value: float, name: str, /, **labels: str) -> None:
    """Wait until a metric has a value."""
    wait_until(
        lambda: _value(scrape_metrics(server), name, **labels) == value, f"{name} is not {value}"
    )


def send_empty_requests(server: Server, times: int) -> None:
    """Send requests without evidence, each over a new connection."""
    for _ in range(times):
        answer = httpx.post(f"{server.ready['verifier']}/verify", json={}, timeout=PATIENCE)
        assert answer.json()["is_valid"] is False


def test_single_process_serves_own_counts(tmp_path: Path) -> None:
    """A single process serves its own counts; promtool accepts the format."""
    with running(tmp_path) as server:
        send_empty_requests(server, 3)
        read_metrics = scrape_metrics(server)
        assert count_refused(read_metrics) == 3
        assert "attestkit_workers" not in read_metrics
        if PROMTOOL is not None:
            assert _check(read_metrics) == set()
        verifier = httpx.get(f"{server.ready['verifier']}/metrics", timeout=PATIENCE)
        assert verifier.status_code == 404
    server.check_log()


def test_worker_pool_serves_aggregated_counts(tmp_path: Path) -> None:
    """Workers share one sum, which keeps the counts of a killed worker."""
    with running(tmp_path, "--workers", "2") as server:
        send_empty_requests(server, 8)
        wait_for_value(server, 8, "attestkit_verdicts_total", **EMPTY)
        read_metrics = scrape_metrics(server)
        assert _value(read_metrics, "attestkit_workers") == 2
        assert _value(read_metrics, "attestkit_worker_restarts_total") == 0
        if PROMTOOL is not None:
            assert _check(read_metrics) == set()
        for worker in list_child_processes(server.process.pid):
            os.kill(worker, signal.SIGKILL)
        wait_for_value(server, 2, "attestkit_worker_restarts_total")
        wait_for_value(server, 2, "attestkit_workers")
        assert count_refused(scrape_metrics(server)) == 8
        send_empty_requests(server, 2)
        wait_for_value(server, 10, "attestkit_verdicts_total", **EMPTY)


def test_metrics_address_in_use_fails_startup(tmp_path: Path) -> None:
    """If the address is in use, startup fails; the error names the option."""
    with running(tmp_path) as server:
        used_address = server.ready["verifier_metrics"].removeprefix("http://")
        for extra_options in ((), ("--workers", "2")):
            options = (*ALONE[:-1], used_address, *extra_options)
            assert "--verifier-metrics" in refusal(*options, folder=tmp_path, code=3)


def count_open_connections(read_metrics: str) -> float:
    """Return the number of open connections that the workers reported."""
    families = _families(read_metrics)["attestkit_open_connections"].samples
    return sum(at.value for at in families if at.labels == {"listener": "verifier"})


def has_closed_socket(worker: int, listening: Path) -> bool:
    """Return whether a process has closed its inherited socket."""
    try:
        return Path(f"/proc/{worker}/fd/3").readlink() != listening
    except FileNotFoundError:
        return True


@pytest.mark.slow
def test_worker_reports_final_counts_on_shutdown(tmp_path: Path) -> None:
    """Requests answered after the last heartbeat are counted too."""
    with running(tmp_path, "--workers", "1", "--access-log") as server:
        address = urlsplit(server.ready["verifier"])
        [worker] = list_child_processes(server.process.pid)
        with socket.create_connection((address.hostname, address.port), PATIENCE) as client:
            client.sendall(
                b"POST /verify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{"
            )
            wait_until(
                lambda: count_open_connections(scrape_metrics(server)) == 1,
                "the connection is not counted",
            )
            listening = Path(f"/proc/{worker}/fd/3").readlink()
            os.kill(worker, signal.SIGTERM)
            wait_until(
                lambda: has_closed_socket(worker, listening), "the worker does not close its socket"
            )
            client.sendall(b"}")
            assert client.recv(65536).startswith(b"HTTP/1.1 200")
        wait_until(
            lambda: worker not in list_child_processes(server.process.pid),
            "the worker does not exit",
        )
        read_metrics = scrape_metrics(server)
        assert count_refused(read_metrics) == 1
        scrapes = {"listener": "verifier_metrics", "method": "metrics", "status": "200"}
        assert _value(read_metrics, "attestkit_requests_total", **scrapes) > 1
        wait_until(lambda: '"GET /metrics" 200' in server.log(), "no line for a scrape")


@pytest.mark.slow
@pytest.mark.parametrize("extra_options", [(), ("--workers", "1")])
def test_inherited_metrics_socket_is_served(tmp_path: Path, extra_options: tuple[str, ...]) -> None:
    """A metrics socket of the service manager is served, and stays open after the server ends."""
    words = command(*ALONE, *extra_options)
    with serve_on_inherited_socket("verifier_metrics", words, tmp_path) as (server, port):
        assert urlsplit(server.ready["verifier_metrics"]).port == port
        send_empty_requests(server, 1)
        wait_for_value(server, 1, "attestkit_verdicts_total", **EMPTY)
        assert server.stop() == 0


@contextlib.contextmanager
def keep_open(server: Server) -> Iterator[socket.socket]:
    """Request the metrics once and keep the connection open."""
    address = urlsplit(server.ready["verifier_metrics"])
    with socket.create_connection((address.hostname, address.port), PATIENCE) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.recv(16).startswith(b"HTTP/1.1 200")
        yield client


@pytest.mark.slow
@pytest.mark.parametrize("sent", [b"", b"GET /metrics HTTP/1.1\r\nHost: "])
def test_open_metrics_connection_does_not_delay_shutdown(tmp_path: Path, sent: bytes) -> None:
    """Neither an idle connection nor an incomplete request delays shutdown."""
    with (
        running(tmp_path, "--workers", "1", "--limit", "drain_seconds=3600") as server,
        keep_open(server) as client,
    ):
        client.sendall(sent)
        assert server.stop() == 0


@pytest.mark.slow
def test_metrics_listener_obeys_limits(tmp_path: Path) -> None:
    """--limit connections=1 applies to the metrics listener."""
    with running(tmp_path, "--workers", "1", "--limit", "connections=1") as server:
        with keep_open(server):
            url = f"{server.ready['verifier_metrics']}/metrics"
            assert httpx.get(url, timeout=PATIENCE).status_code == 503
        assert server.stop() == 0
