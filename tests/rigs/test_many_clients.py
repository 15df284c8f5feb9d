"""Many ask at once: all are served, in turn, and nobody waits much longer than one round.

What is counted is not time, which a loaded machine stretches, but turns: how many requests of
others were finished while one waited. benchmarks/test_backends.py prints the times.
"""

import sys
import threading
from bisect import bisect_right
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from subprocess import PIPE, Popen
from time import monotonic_ns
from typing import Final, NamedTuple

import pytest

import attestkit
from tests.rigs.emulator import ROOT, Emulator, emulator, environment, requires_fuse

pytestmark = [pytest.mark.rig, pytest.mark.slow, requires_fuse]

THREADS: Final = 8
PROCESSES: Final = 4
REQUESTS: Final = 40  # of each client
LIMIT: Final = 2  # rounds that 99 of 100 requests may take

# A client of its own: says when it is ready, starts when told, prints when each request began and
# ended by the clock that all processes share.
CLIENT: Final = """
import sys, time
import attestkit

root, count, what = sys.argv[1], int(sys.argv[2]), sys.argv[3]
with attestkit.open("configfs_tsm", root=root) as tee:
    ask = getattr(tee, what)
    ask(bytes(64))
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(count):
        start = time.monotonic_ns()
        ask(bytes(64))
        print(start, time.monotonic_ns())
"""


class Request(NamedTuple):
    """When a request began and ended, in nanoseconds."""

    start: int
    end: int


def asked(ask: Callable[[bytes], object], count: int) -> list[Request]:
    """Make `count` requests, each as soon as the one before is answered."""
    requests = []
    for _ in range(count):
        start = monotonic_ns()
        ask(bytes(64))
        requests.append(Request(start, monotonic_ns()))
    return requests


def turns(each: list[list[Request]]) -> list[list[int]]:
    """Return of each client how many requests, its own among them, ended while each waited.

    Only the time when all clients ask counts.
    """
    first = max(requests[0].start for requests in each)
    last = min(requests[-1].end for requests in each)
    ends = sorted(request.end for requests in each for request in requests)
    return [
        [
            bisect_right(ends, end) - bisect_right(ends, start)
            for start, end in requests
            if start >= first and end <= last
        ]
        for requests in each
    ]


def rounds(each: list[list[Request]], hundredths: int = 99) -> float:
    """Return in how many rounds so many hundredths of any client's requests were through."""
    counts = turns(each)
    assert all(len(client) > REQUESTS // 4 for client in counts), "they did not ask together"
    return max(sorted(client)[len(client) * hundredths // 100] for client in counts) / len(each)


def process(machine: Emulator, what: str) -> "Popen[str]":
    """Start a client that waits for its start."""
    return Popen(
        [sys.executable, "-c", CLIENT, str(machine.root), str(REQUESTS), what],
        cwd=ROOT,
        env=environment(),
        stdin=PIPE,
        stdout=PIPE,
        text=True,
    )


def start_together(clients: "list[Popen[str]]") -> None:
    """Let all clients start once each is ready."""
    for client in clients:
        assert client.stdout is not None
        assert client.stdout.readline() == "ready\n"
    for client in clients:
        assert client.stdin is not None
        client.stdin.write("go\n")
        client.stdin.flush()


def finish(client: "Popen[str]") -> list[Request]:
    """Return a client's requests, all of them."""
    out, _ = client.communicate(timeout=120)
    assert client.returncode == 0
    requests = [Request(*map(int, line.split())) for line in out.splitlines()]
    assert len(requests) == REQUESTS
    return requests


@pytest.mark.parametrize("what", ["get_quote", "attest"])
def test_threads_of_one_attester_take_turns(what: str) -> None:
    """Eight threads: every request is served, and the device goes round."""
    with (
        emulator(faults=["slow:10ms:*"]) as machine,  # the device is what they wait for
        attestkit.open("configfs_tsm", root=machine.root) as tee,
        ThreadPoolExecutor(THREADS) as pool,
    ):
        ask = getattr(tee, what)
        together = threading.Barrier(THREADS)

        def client(_: int) -> list[Request]:
            together.wait()
            return asked(ask, REQUESTS)

        each = list(pool.map(client, range(THREADS)))
    assert rounds(each) <= LIMIT


@pytest.mark.parametrize("what", ["get_quote", "attest"])
def test_processes_take_turns(what: str) -> None:
    """Four processes: the same, through the kernel's files and the log's lock alone."""
    # Longer than a busy machine lets a process wait for a core: that is no turn of the device's.
    # A machine that is busier still does so with a few requests, a device that is unfair with most.
    with emulator(faults=["slow:40ms:*"]) as machine:
        clients = [process(machine, what) for _ in range(PROCESSES)]
        start_together(clients)
        each = [finish(client) for client in clients]
        assert machine.entries() == []
    assert rounds(each, 90) <= LIMIT


def test_overtaking_would_show() -> None:
    """A client that waits while another has five turns is more than two rounds behind."""
    greedy = [Request(10 * n, 10 * n + 9) for n in range(REQUESTS)]
    patient = [Request(50 * n + 1, 50 * n + 50) for n in range(REQUESTS // 5)]
    counts = turns([greedy, patient])
    assert max(counts[0]) <= 2
    assert max(counts[1]) == 6
    fair = [[Request(20 * n + lag, 20 * n + lag + 19) for n in range(REQUESTS)] for lag in (0, 10)]
    assert rounds(fair) == 1
