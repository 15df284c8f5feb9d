"""How long the server takes to be ready, and how much memory it needs then and later.

The peer of the start is an interpreter that imports what no such server can do without: uvicorn,
uvloop, cryptography. Memory is resident memory: before the first log, page or protobuf request, and
when every route has been asked once.
"""

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

from benchmarks.cases import OURS
from benchmarks.racing import Ledger
from benchmarks.results import Result
from tests.rigs.docker.engine import missing_for_docker, running_engine
from tests.serve.client import Connection, call
from tests.serve.server import Server, environment, running_server

ROUNDS = 15
PEER = "import uvicorn, uvloop, asyncio, cryptography.x509, coincurve, nacl.signing"
PAGES = ("/", "/metrics", "/docs", "/openapi.json", "/dstack_guest.proto", "/logs/said?text&bare")
BINARY = {"Content-Type": "application/octet-stream"}


def memory(server: Server) -> float:
    """Return the resident memory of a server in MB."""
    for line in Path(f"/proc/{server.process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("the server is gone")


def test_start_to_ready(ledger: Ledger, *, quick: bool) -> None:
    """From the start of the process to its ready line, both in turn."""
    ours, work, peer = [], [], []
    for _ in range(1 if quick else ROUNDS):
        begin = time.perf_counter()
        with running_server() as server:
            ours.append(time.perf_counter() - begin)
            work.append(_worked(server))
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", PEER], check=True)
        peer.append(time.perf_counter() - begin)
    values = {OURS: median(ours), "its imports alone": median(peer)}
    if not quick:
        note = f"{median(work) * 1000:.0f} ms of work"
        figure = median(ours) * 1000
        ledger.add(Result("ready", "server: start to ready", "s", values, {}, figure, note))


def _worked(server: Server) -> float:
    """Return the seconds that a server's threads have had of a processor."""
    tasks = Path(f"/proc/{server.process.pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def _status(endpoint: str, verb: str, path: str, headers: dict[str, str] | None = None) -> int:
    with contextlib.closing(Connection(endpoint)) as connection:
        return connection.send_request(verb, path, b"", headers).status


@pytest.fixture
def server() -> Iterator[Server]:
    """A server, with a container engine where one can run."""
    if missing_for_docker():
        with running_server() as server:
            yield server
        return
    with running_engine() as docker:
        docker.finish("said", "echo hello")
        with running_server(environ=environment(DOCKER_HOST=docker.address)) as server:
            yield server


def test_memory(server: Server, ledger: Ledger, *, quick: bool) -> None:
    """Idle, after each method in JSON, and after every page and a method in protobuf."""
    idle = memory(server)
    for method in ("GetQuote", "GetKey", "Info", "GetTlsKey", "Attest", "Version"):
        call(server.dstack, method)
    methods = memory(server)
    statuses = [_status(server.url, "GET", path) for path in PAGES]
    statuses.append(_status(server.dstack, "POST", "/Version", BINARY))
    every = memory(server)
    if not quick:
        what, after = (
            "server: memory before the first request",
            "server: memory after every route once",
        )
        note = f"{methods:.1f} MB after every method in JSON"
        ledger.add(Result("idle", what, "MB", {OURS: idle}, {}, idle))
        ledger.add(Result("every-route", after, "MB", {OURS: every}, {}, every, note))
    assert statuses == [200] * (len(PAGES) + 1) or missing_for_docker()
