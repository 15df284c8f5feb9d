"""`--verifier-metrics`: what a verifier service has judged, of one process or of several."""

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from attestkit.errors import CollateralError, CollateralExpiredError, VerificationError
from attestkit.serve.counters import CONTENT_TYPE, Stats
from attestkit.serve.verifier_service.app import VerifierApp
from attestkit.serve.verifier_service.metrics import VerifierMetricsApp
from attestkit.serve.verifier_service.response import STEPS
from tests.serve.asgi import Client
from tests.serve.metrics.test_agent import PROMTOOL, _check, _families, _value
from tests.serve.server import PATIENCE, Server, command, environment, ready_server, run_to_end
from tests.serve.verifier_service.judges import StandIn, evidence
from tests.serve.verifier_service.test_verifier_instances import eventually
from tests.serve.verifier_service.verifying_load import children
from tests.serve.worker_pool.test_supervisor import handed_over

if TYPE_CHECKING:
    from attestkit.verifier.pipeline import Verifier

GOOD = {"attestation": evidence().to_bytes().hex()}
ALONE = ("--backend", "none", "--verifier", "127.0.0.1:0", "--verifier-metrics", "127.0.0.1:0")


class Service:
    """A verifier and its metrics, in this process."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._stats, self._loop = Stats(), loop
        app = VerifierMetricsApp(lambda: self._stats, self._stats.of("verifier_metrics"))
        self.shown = Client(app, loop)

    def judge(self, judged: StandIn, body: object) -> None:
        """Have something judged."""
        with ThreadPoolExecutor(1) as executor:
            app = VerifierApp(
                cast("Verifier", judged),
                executor,
                traffic=self._stats.of("verifier"),
                verdicts=self._stats.verdicts,
            )
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            Client(app, self._loop).request("POST", "/verify", data)

    def text(self) -> str:
        """Return the metrics."""
        response = self.shown.get("/metrics")
        assert (response.status, response.headers["content-type"]) == (200, CONTENT_TYPE.decode())
        return response.body.decode()


@pytest.fixture
def service(loop: asyncio.AbstractEventLoop) -> Service:
    """A service that has judged nothing."""
    return Service(loop)


@pytest.mark.parametrize(
    ("judged", "body", "verdict"),
    [
        (StandIn(), GOOD, ("accepted", "")),
        (StandIn(), {}, ("refused", "reading")),
        (StandIn(authenticate=VerificationError("no")), GOOD, ("refused", "quote")),
        (StandIn(replay=VerificationError("no")), GOOD, ("refused", "quote")),
        (StandIn(image_hash=VerificationError("no")), GOOD, ("refused", "os_image")),
        (StandIn(app_info=VerificationError("no")), GOOD, ("refused", "event_log")),
        (StandIn(appraise=VerificationError("no")), GOOD, ("refused", "policy")),
        (StandIn(appraise=ValueError("ours")), GOOD, ("failed", "policy")),
        (StandIn(appraise=VerificationError("no", reason="internal")), GOOD, ("failed", "policy")),
        (StandIn(authenticate=CollateralError("no PCCS")), GOOD, ("failed", "quote")),
        (StandIn(authenticate=CollateralExpiredError("old")), GOOD, ("refused", "quote")),
    ],
)
def test_a_verdict_is_counted_by_the_step_that_refused(
    service: Service, judged: StandIn, body: object, verdict: tuple[str, str]
) -> None:
    """Once, and nowhere else."""
    service.judge(judged, body)
    text = service.text()
    given = dict(zip(("verdict", "step"), verdict, strict=True))
    assert _value(text, "attestkit_verdicts_total", **given) == 1
    assert sum(sample.value for sample in _families(text)["attestkit_verdicts"].samples) == 1
    answered = {"listener": "verifier", "method": "verify", "status": "200"}
    assert _value(text, "attestkit_requests_total", **answered) == 1


@pytest.mark.parametrize("body", [b"no JSON", {"quote": 1}])
def test_what_is_no_request_is_no_verdict(service: Service, body: object) -> None:
    """It is an answered request alone."""
    service.judge(StandIn(), body)
    samples = _families(service.text())["attestkit_verdicts"].samples
    assert [sample.value for sample in samples] == [0] * 11  # all that there can be


def test_every_step_has_a_name() -> None:
    """The names are labels, which dashboards keep."""
    assert list(STEPS.values()) == ["reading", "quote", "os_image", "event_log", "policy"]


@pytest.mark.parametrize(
    ("verb", "path"),
    [("GET", "/"), ("POST", "/metrics"), ("GET", "/metrics/"), ("POST", "/verify")],
)
def test_nothing_else_is_here(service: Service, verb: str, path: str) -> None:
    """The verifier is at its own address, and only there."""
    response = service.shown.request(verb, path, b"{}")
    assert response.status == 404
    assert "GET /metrics" in response.error()


def test_the_head_alone(service: Service) -> None:
    """HEAD has the length and no body."""
    response = service.shown.request("HEAD", "/metrics")
    assert (response.status, response.body) == (200, b"")
    assert int(response.headers["content-length"]) > 100


def test_a_name_led_to_this_machine(loop: asyncio.AbstractEventLoop) -> None:
    """Where only this machine gets to it no web page does, by a name of its own."""
    local = Client(VerifierMetricsApp(Stats, only_local=True), loop)
    for host in ("localhost:9464", "127.0.0.1", "[::1]:9464"):
        assert local.get("/metrics", host=host).status == 200
    answer = local.get("/metrics", host="attacker.example")
    assert answer.status == 400
    assert "--verifier-metrics" in answer.error()
    assert Client(VerifierMetricsApp(Stats), loop).get("/metrics", host="a.example").status == 200


def scraped(server: Server) -> str:
    """Return the metrics of a running service."""
    answer = httpx.get(f"{server.ready['verifier_metrics']}/metrics", timeout=PATIENCE)
    assert answer.status_code == 200
    return answer.text


def refused(text: str) -> float:
    """Return how many requests without evidence were judged."""
    samples = [
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.labels == {"verdict": "refused", "step": "reading"}
    ]
    return sum(samples)


def ask(server: Server, times: int) -> None:
    """Ask for a verdict on nothing, over a connection for each."""
    for _ in range(times):
        answer = httpx.post(f"{server.ready['verifier']}/verify", json={}, timeout=PATIENCE)
        assert answer.json()["is_valid"] is False


def test_one_process(tmp_path: Path) -> None:
    """It shows its own counts, at once, and promtool has nothing to say of them."""
    with ready_server(command(*ALONE), tmp_path, environment()) as server:
        ask(server, 3)
        text = scraped(server)
        assert refused(text) == 3
        assert "attestkit_workers" not in text
        if PROMTOOL is not None:
            assert _check(text) == set()
        verifier = httpx.get(f"{server.ready['verifier']}/metrics", timeout=PATIENCE)
        assert verifier.status_code == 404
        assert server.stop() == 0
    server.check_log()


def test_several_processes(tmp_path: Path) -> None:
    """They are one service: the sum, how many there are, and what a killed one had told stays."""
    with ready_server(command(*ALONE, "--workers", "2"), tmp_path, environment()) as server:
        ask(server, 8)
        eventually(lambda: refused(scraped(server)) == 8, "the counts do not come")
        text = scraped(server)
        assert _value(text, "attestkit_workers") == 2
        assert _value(text, "attestkit_worker_restarts_total") == 0
        if PROMTOOL is not None:
            assert _check(text) == set()
        for worker in children(server.process.pid):
            os.kill(worker, signal.SIGKILL)
        eventually(lambda: _value(scraped(server), "attestkit_worker_restarts_total") == 2, "none")
        eventually(lambda: _value(scraped(server), "attestkit_workers") == 2, "no others start")
        assert refused(scraped(server)) == 8
        ask(server, 2)
        eventually(lambda: refused(scraped(server)) == 10, "the counts of the others do not come")
        assert server.stop() == 0


def test_its_place_is_taken(tmp_path: Path) -> None:
    """Nothing is served then, and it is told which option is to be another."""
    with ready_server(command(*ALONE), tmp_path, environment()) as server:
        taken = server.ready["verifier_metrics"].removeprefix("http://")
        for more in ((), ("--workers", "2")):
            done = run_to_end(*ALONE[:-1], taken, *more, folder=tmp_path)
            assert done.returncode != 0
            [line] = done.stderr.splitlines()
            assert "--verifier-metrics" in line
        assert server.stop() == 0


def open_connections(text: str) -> float:
    """Return how many connections the verifiers have, as far as they have told."""
    families = _families(text)["attestkit_open_connections"].samples
    return sum(at.value for at in families if at.labels == {"listener": "verifier"})


def has_let_go(worker: int, listening: Path) -> bool:
    """Tell whether a process has closed what it was handed."""
    try:
        return Path(f"/proc/{worker}/fd/3").readlink() != listening
    except FileNotFoundError:
        return True


def test_who_stops_in_good_order_tells_everything(tmp_path: Path) -> None:
    """What it answers after its last sign of life is counted too."""
    words = command(*ALONE, "--workers", "1", "--access-log")
    with ready_server(words, tmp_path, environment()) as server:
        place = urlsplit(server.ready["verifier"])
        [worker] = children(server.process.pid)
        with socket.create_connection((place.hostname, place.port), PATIENCE) as client:
            client.sendall(
                b"POST /verify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{"
            )
            eventually(lambda: open_connections(scraped(server)) == 1, "it is not let in")
            listening = Path(f"/proc/{worker}/fd/3").readlink()
            os.kill(worker, signal.SIGTERM)
            eventually(lambda: has_let_go(worker, listening), "it does not stop")
            client.sendall(b"}")
            assert client.recv(65536).startswith(b"HTTP/1.1 200")
        eventually(lambda: worker not in children(server.process.pid), "it does not end")
        text = scraped(server)
        assert refused(text) == 1
        scrapes = {"listener": "verifier_metrics", "method": "metrics", "status": "200"}
        assert _value(text, "attestkit_requests_total", **scrapes) > 1
        eventually(lambda: '"GET /metrics" 200' in server.log(), "no line for a scrape")
        assert server.stop() == 0


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--workers", "1")])
def test_a_socket_that_was_handed_over(tmp_path: Path, more: tuple[str, ...]) -> None:
    """The service manager's own: it is served, and whoever comes later waits for the next."""
    words = command(*ALONE, *more)
    with handed_over("verifier_metrics", words, tmp_path) as (server, port):
        assert urlsplit(server.ready["verifier_metrics"]).port == port
        ask(server, 1)
        eventually(lambda: refused(scraped(server)) == 1, "it is not counted")
        assert server.stop() == 0


@contextlib.contextmanager
def collector(server: Server) -> Iterator[socket.socket]:
    """Be one that has had its answer, and keeps the connection."""
    place = urlsplit(server.ready["verifier_metrics"])
    with socket.create_connection((place.hostname, place.port), PATIENCE) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.recv(16).startswith(b"HTTP/1.1 200")
        yield client


@pytest.mark.slow
@pytest.mark.parametrize("sent", [b"", b"GET /metrics HTTP/1.1\r\nHost: "])
def test_who_stays_does_not_keep_it(tmp_path: Path, sent: bytes) -> None:
    """Neither a collector that keeps its connection nor a stranger who stops in mid-request."""
    words = command(*ALONE, "--workers", "1", "--limit", "drain_seconds=3600")
    with ready_server(words, tmp_path, environment()) as server, collector(server) as client:
        client.sendall(sent)
        assert server.stop() == 0


@pytest.mark.slow
def test_its_limits_are_those_that_were_given(tmp_path: Path) -> None:
    """One connection, and the second is turned away."""
    words = command(*ALONE, "--workers", "1", "--limit", "connections=1")
    with ready_server(words, tmp_path, environment()) as server:
        with collector(server):
            url = f"{server.ready['verifier_metrics']}/metrics"
            assert httpx.get(url, timeout=PATIENCE).status_code == 503
        assert server.stop() == 0
