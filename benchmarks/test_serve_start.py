"""How long the server takes to be ready, and how much memory it needs then and later.

Run `pytest benchmarks/test_serve_start.py -s`. The peer of the start is an interpreter that imports
what no such server can do without: uvicorn, uvloop, cryptography. Targets: ready within 450 ms, 60
MB before the first log, page or protobuf request, 90 MB when every route has been asked once.
"""

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

from tests.rigs.docker_engine import missing, running_engine
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


def test_start_to_ready() -> None:
    """From the start of the process to its ready line, both in turn."""
    ours, peer = [], []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        with running_server():
            ours.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", PEER], check=True)  # noqa: S603 - our own line
        peer.append(time.perf_counter() - begin)
    print(f"\nstart to ready {median(ours) * 1000:.0f} ms, imports alone {median(peer) * 1000:.0f}")


def _status(endpoint: str, verb: str, path: str, headers: dict[str, str] | None = None) -> int:
    with contextlib.closing(Connection(endpoint)) as connection:
        return connection.send_request(verb, path, b"", headers).status


@pytest.fixture
def server() -> Iterator[Server]:
    """A server, with a container engine where one can run."""
    if missing():
        with running_server() as server:
            yield server
        return
    with running_engine() as docker:
        docker.finish("said", "echo hello")
        with running_server(environ=environment(DOCKER_HOST=docker.address)) as server:
            yield server


def test_memory(server: Server) -> None:
    """Idle, after each method in JSON, and after every page and a method in protobuf."""
    idle = memory(server)
    for method in ("GetQuote", "GetKey", "Info", "GetTlsKey", "Attest", "Version"):
        call(server.dstack, method)
    methods = memory(server)
    statuses = [_status(server.url, "GET", path) for path in PAGES]
    statuses.append(_status(server.dstack, "POST", "/Version", BINARY))
    every = memory(server)
    print(f"\nidle {idle:.1f} MB, after methods {methods:.1f}, after every route {every:.1f}")
    assert statuses == [200] * (len(PAGES) + 1) or missing()
