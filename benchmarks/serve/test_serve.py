"""The server on its socket, beside a raw ASGI application that does the same cryptography.

Both take turns; what counts is the ratio of their requests per second of processor time. The clock
is the server's own, so that other programs on its core do not count; `busy`, which `-s` prints, is
the share of the time in which it had that core, and 1 on a quiet machine.

16 connections; the server has a core to itself, where there are two.
"""

import os
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
from benchmarks.serve.load import Contestant, generate, post
from tests.serve.server import PATIENCE, environment, running_server

ROUNDS = 7
SECONDS = 0.5
REQUESTS = {
    "GetKey": b'{"path": "my/key/path", "purpose": "signing", "algorithm": "secp256k1"}',
    "GetQuote": b'{"report_data": "1234deadbeef"}',
    "Info": b"{}",
    "Sign": b'{"algorithm": "secp256k1", "data": "deadbeef"}',
    "v1/GetKey": b'{"domain": "wallet", "algorithm": "secp256k1"}',
    "v1/Attest": b'{"report_data": "1234deadbeef", "include_boottime_gpu_evidence": false}',
    "v1/Info": b"{}",
}


@pytest.fixture(scope="module")
def contestants() -> Iterator[tuple[Contestant, Contestant]]:
    """The server and its peer, on the same core; the load generator is on another."""
    cores = sorted(os.sched_getaffinity(0))
    with running_server("--http", "none") as server:
        ours = Contestant(server.dstack, server.process.pid)
        sizes = [
            f"{name}={generate(server.dstack, post(f'/{name}', body), seconds=0.1).size}"
            for name, body in REQUESTS.items()
        ]
        path = str(server.folder / "peer.sock")
        script = Path(__file__).with_name("raw_asgi.py")
        with subprocess.Popen(
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
def test_requests(
    contestants: tuple[Contestant, Contestant], name: str, ledger: Ledger, *, quick: bool
) -> None:
    """One method, both servers in turn."""
    request = post(f"/{name}", REQUESTS[name])
    sizes = {generate(c.address, request, seconds=0.01).size for c in contestants}
    assert len(sizes) == 1
    for contestant in contestants:
        contestant.measure(request, 0.01 if quick else SECONDS)  # warm
    if quick:
        return
    rounds = [[c.measure(request, SECONDS) for c in contestants] for _ in range(ROUNDS)]
    ours, peer = (median(found[i][0] for found in rounds) for i in (0, 1))
    ratio = median(found[1][0] / found[0][0] for found in rounds)
    busy = [median(found[i][1] for found in rounds) for i in (0, 1)]
    print(
        f"\n{name:9} {sizes.pop():6} bytes: attestkit {1 / ours:6.0f}/s, "
        f"raw ASGI {1 / peer:6.0f}/s, ratio {ratio:.2f} (busy {busy[0]:.2f}, {busy[1]:.2f})"
    )
    what = f"{name} on the socket, 16 connections"
    values, ratios = {OURS: ours, "raw ASGI": peer}, {"raw ASGI": ratio}
    ledger.add(Result(name, what, "s", values, ratios, note=f"{1 / ours:.0f} requests/s"))
