"""Fairness of concurrent requests: all clients are served in turn.

Turns are counted, not time, which depends on load: the number of other requests that end while one
waits. benchmarks/test_backends.py measures the time.
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
REQUESTS: Final = 40  # per client
LIMIT: Final = 2  # rounds that 99 of 100 requests may take

# A client process: prints "ready", waits for a line, and prints when each request began and ended,
# by the monotonic clock that all processes share.
CLIENT: Final = """
import sys, time
import attestkit

root, count, what = sys.argv[1], int(sys.argv[2]), sys.argv[3]
with attestkit.open("configfs_tsm", root=root) as tee:
    request = tee.get_quote if what == "get_quote" else lambda data: tee.attest(report_data=data)
    request(bytes(64))
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(count):
        start = time.monotonic_ns()
        request(bytes(64))
        print(start, time.monotonic_ns())
"""


class Request(NamedTuple):
    """Begin and end of a request, in nanoseconds."""

    start: int
    end: int


def make_requests(request: Callable[[bytes], object], count: int) -> list[Request]:
    """Make `count` requests, each as soon as the previous one has ended."""
    requests = []
    for _ in range(count):
        start = monotonic_ns()
        request(bytes(64))
        requests.append(Request(start, monotonic_ns()))
    return requests


def count_turns(each: list[list[Request]]) -> list[list[int]]:
    """Return for each client how many requests, including its own, ended while each waited.

    Only the time in which all clients make requests counts.
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


def count_rounds(each: list[list[Request]], hundredths: int = 99) -> float:
    """Return the number of rounds within which a percentile of each client's requests ended."""
    counts = count_turns(each)
    assert all(len(client) > REQUESTS // 4 for client in counts), "the clients were not concurrent"
    return max(sorted(client)[len(client) * hundredths // 100] for client in counts) / len(each)


def start_client(machine: Emulator, method: str) -> "Popen[str]":
    """Start a client process, which waits for its start."""
    return Popen(
        [sys.executable, "-c", CLIENT, str(machine.root), str(REQUESTS), method],
        cwd=ROOT,
        env=environment(),
        stdin=PIPE,
        stdout=PIPE,
        text=True,
    )


def start_together(clients: "list[Popen[str]]") -> None:
    """Start the requests of all clients once each is ready."""
    for client in clients:
        assert client.stdout is not None
        assert client.stdout.readline() == "ready\n"
    for client in clients:
        assert client.stdin is not None
        client.stdin.write("go\n")
        client.stdin.flush()


def finish(client: "Popen[str]") -> list[Request]:
    """Return all requests of a client."""
    out, _ = client.communicate(timeout=120)
    assert client.returncode == 0
    requests = [Request(*map(int, line.split())) for line in out.splitlines()]
    assert len(requests) == REQUESTS
    return requests


@pytest.mark.parametrize("method", ["get_quote", "attest"])
def test_threads_of_one_attester_are_served_in_turn(method: str) -> None:
    """Eight threads are served in rounds."""
    with (
        emulator(faults=["slow:10ms:*"]) as machine,  # the device is the bottleneck
        attestkit.open("configfs_tsm", root=machine.root) as tee,
        ThreadPoolExecutor(THREADS) as pool,
    ):
        request: Callable[[bytes], object] = tee.get_quote
        if method == "attest":
            request = lambda data: tee.attest(report_data=data)  # noqa: E731 - a method's argument
        together = threading.Barrier(THREADS)

        def client(_: int) -> list[Request]:
            together.wait()
            return make_requests(request, REQUESTS)

        each = list(pool.map(client, range(THREADS)))
    assert count_rounds(each) <= LIMIT


@pytest.mark.parametrize("method", ["get_quote", "attest"])
def test_processes_are_served_in_turn(method: str) -> None:
    """Four processes are synchronised only by the kernel's files and the log's lock."""
    # The delay exceeds the time that a loaded machine lets a process wait for a core. A machine
    # under higher load delays a few requests, an unfair device most of them.
    with emulator(faults=["slow:40ms:*"]) as machine:
        clients = [start_client(machine, method) for _ in range(PROCESSES)]
        start_together(clients)
        each = [finish(client) for client in clients]
        assert machine.entries() == []
    assert count_rounds(each, 90) <= LIMIT


def test_count_turns_detects_overtaking() -> None:
    """A client that is overtaken five times is more than two rounds behind."""
    greedy = [Request(10 * n, 10 * n + 9) for n in range(REQUESTS)]
    patient = [Request(50 * n + 1, 50 * n + 50) for n in range(REQUESTS // 5)]
    counts = count_turns([greedy, patient])
    assert max(counts[0]) <= 2
    assert max(counts[1]) == 6
    fair = [[Request(20 * n + lag, 20 * n + lag + 19) for n in range(REQUESTS)] for lag in (0, 10)]
    assert count_rounds(fair) == 1
