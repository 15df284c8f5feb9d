"""Taking turns, beside `threading.RLock`: what a turn costs, and who has to wait for whom.

Run `pytest benchmarks/attester/test_turns.py -s`. Printed are nanoseconds per uncontended turn, and
for 8 threads that ask in a loop how many turns of others lie between asking and one's own: 7 is
what fair is. The last line is the queue of programs before the runtime log's lock.
"""

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from attestkit._system.fifo_lock import FifoLock
from attestkit._system.file_queue import FileQueue

CLIENTS = 8
SECONDS = 1.0
DEVICE = 0.0005  # seconds that a turn takes


def cost(lock: AbstractContextManager[object], turns: int = 100_000, rounds: int = 5) -> float:
    """Return the nanoseconds of an uncontended turn, the best round's."""
    best = float("inf")
    for _ in range(rounds):
        start = time.thread_time_ns()
        for _ in range(turns):
            with lock:
                pass
        best = min(best, (time.thread_time_ns() - start) / turns)
    return best


def overtaken(lock: AbstractContextManager[object], seconds: float) -> list[int]:
    """Return for each request, in order of size, how many others were served before it."""
    order: list[int] = []
    found: list[int] = []
    end = time.monotonic() + seconds

    def client() -> None:
        while time.monotonic() < end:
            asked = len(order)
            with lock:
                found.append(len(order) - asked)
                order.append(1)
                time.sleep(DEVICE)

    threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(found)


@pytest.mark.parametrize("make", [threading.RLock, FifoLock], ids=["RLock", "FifoLock"])
def test_a_turn(make: Callable[[], AbstractContextManager[object]], *, quick: bool) -> None:
    """Print what a turn at one lock costs, and how many others go first."""
    found = overtaken(make(), 0.05 if quick else SECONDS)
    percentile = found[int(len(found) * 0.99)]
    print(f"\n{cost(make()):.0f} ns a turn; overtaken: p99 {percentile}, at most {found[-1]}")
    assert found


def test_a_place_in_the_queue(tmp_path: Path) -> None:
    """The queue's file: eight system calls."""
    queue = FileQueue(str(tmp_path / "queue"))
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter_ns()
        for _ in range(2000):
            queue.enter()
            queue.leave()
        best = min(best, (time.perf_counter_ns() - start) / 2000)
    queue.close()
    print(f"\n{best / 1000:.1f} us a place in the queue of programs")
    assert best > 0
