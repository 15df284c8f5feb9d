"""The server on its socket, beside a raw ASGI application that does the same cryptography.

Run `pytest benchmarks/test_serve.py -s`. Each line has the requests of both per second of processor
time, medians of interleaved rounds, and their ratio, which is what counts: the target is 0.8. The
clock is the server's own, so that other programs on its core do not count; `busy` is the share of
the time in which it had that core, and 1 on a quiet machine.

16 connections; the server has a core to itself, where there are two.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

import pytest

from benchmarks.load import generate, post
from tests.serve.server import PATIENCE, environment, running_server

ROUNDS = 7
SECONDS = 0.5
REQUESTS = {
    "GetKey": b'{"path": "my/key/path", "purpose": "signing", "algorithm": "secp256k1"}',
    "GetQuote": b'{"report_data": "1234deadbeef"}',
    "Info": b"{}",
    "Sign": b'{"algorithm": "secp256k1", "data": "deadbeef"}',
}


class Contestant(NamedTuple):
    """A server: its socket and its process."""

    socket: str
    process: int

    def measure(self, request: bytes) -> tuple[float, float]:
        """Return requests per second of its processor time, and the share of the time it had."""
        before, begin = self.worked(), time.perf_counter()
        load = generate(self.socket, request, seconds=SECONDS)
        worked = self.worked() - before
        return load.requests / worked, worked / (time.perf_counter() - begin)

    def worked(self) -> float:
        """Return the seconds of processor time that it has used."""
        return int(Path(f"/proc/{self.process}/schedstat").read_text().split()[0]) / 1e9


@pytest.fixture(scope="module")
def contestants() -> Iterator[tuple[Contestant, Contestant]]:
    """The server and its peer, on the same core; the load generator is on another."""
    cores = sorted(os.sched_getaffinity(0))
    with running_server("--http", "none") as server:
        ours = Contestant(server.dstack, server.process.pid)
        sizes = [
            f"{name}={generate(ours.socket, post(f'/{name}', body), seconds=0.1).size}"
            for name, body in REQUESTS.items()
        ]
        path = str(server.folder / "peer.sock")
        script = Path(__file__).with_name("raw_asgi.py")
        with subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, str(script), path, *sizes], env=environment()
        ) as process:
            os.sched_setaffinity(0, cores[:1])
            for number in (ours.process, process.pid):
                os.sched_setaffinity(number, cores[-1:])
            end = time.monotonic() + PATIENCE
            while not Path(path).exists() and time.monotonic() < end:
                time.sleep(0.05)
            yield ours, Contestant(path, process.pid)
            os.sched_setaffinity(0, cores)
            process.terminate()


@pytest.mark.parametrize("name", REQUESTS)
def test_requests_per_second(contestants: tuple[Contestant, Contestant], name: str) -> None:
    """One method, both servers in turn."""
    request = post(f"/{name}", REQUESTS[name])
    for contestant in contestants:
        contestant.measure(request)  # warm
    rounds = [[c.measure(request) for c in contestants] for _ in range(ROUNDS)]
    ours, peer = (median(found[i][0] for found in rounds) for i in (0, 1))
    ratio = median(found[0][0] / found[1][0] for found in rounds)
    busy = [median(found[i][1] for found in rounds) for i in (0, 1)]
    size = generate(contestants[0].socket, request, seconds=0.01).size
    assert generate(contestants[1].socket, request, seconds=0.01).size == size
    print(
        f"\n{name:8} {size:6} bytes: attestkit {ours:6.0f}/s, raw ASGI {peer:6.0f}/s, "
        f"ratio {ratio:.2f} (busy {busy[0]:.2f}, {busy[1]:.2f})"
    )
