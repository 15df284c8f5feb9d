"""A request gets a pool of the current period; pools are closed after their last use."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.client.wire.pools import PoolSet, ProofPeriod, period
from attestkit.client.wire.steps import ReconnectError
from tests.processes import in_child


class Counter:
    """A server verifier with a generation and nothing else."""

    def __init__(self) -> None:
        self.generation = 0


def pool_set() -> tuple[Any, PoolSet[int]]:
    """Return a server verifier, and pools that are numbers."""
    server_verifier: Any = Counter()
    numbers = iter(range(1000))
    return server_verifier, PoolSet(server_verifier, lambda: next(numbers))


def test_pools_change_with_the_generation() -> None:
    """An idle pool is handed out to be closed, a busy one once its last request has ended."""
    server_verifier, pools = pool_set()
    first, closing = pools.acquire()
    assert (first.pool, closing) == (0, [])
    assert pools.acquire() == (first, [])
    server_verifier.generation += 1
    second, closing = pools.acquire()
    assert (second.pool, closing) == (1, [])
    assert pools.release(first) == []
    assert pools.release(first) == [0]
    assert pools.release(second) == []
    server_verifier.generation += 1
    assert pools.acquire()[1] == [1]


def test_pools_that_failed_are_used_no_more() -> None:
    """A retired pool gets no request, and is closed after its last one."""
    _, pools = pool_set()
    first, _ = pools.acquire()
    pools.acquire()
    assert pools.release(first, retire=True) == []
    second, _ = pools.acquire()
    assert second.pool == 1
    assert pools.release(first, retire=True) == [0]
    assert pools.release(second, retire=True) == [1]


def test_pools_are_all_closed_at_the_end() -> None:
    """All pools are handed out once, also those that are in use."""
    server_verifier, pools = pool_set()
    first, _ = pools.acquire()
    server_verifier.generation += 1
    second, _ = pools.acquire()
    assert pools.drain() == [0, 1]
    assert pools.drain() == []
    assert pools.release(first) == pools.release(second) == []
    assert pools.acquire()[0].pool == 2


@given(st.lists(st.sampled_from(["acquire", "release", "retire", "end", "drain"]), max_size=40))
def test_pools_are_closed_exactly_once(actions: list[str]) -> None:
    """In any order of events, no pool is closed twice, and none is left at the end."""
    server_verifier, pools = pool_set()
    held, closed, made = [], [], set()
    for action in actions:
        if action == "acquire":
            lease, closing = pools.acquire()
            held.append(lease)
            made.add(lease.pool)
            closed += closing
            assert lease.opened == period(server_verifier)
            assert lease.pool not in closed
        elif action in {"release", "retire"} and held:
            closed += pools.release(held.pop(0), retire=action == "retire")
        elif action == "end":
            server_verifier.generation += 1
        elif action == "drain":
            closed += pools.drain()
    for lease in held:
        closed += pools.release(lease)
    closed += pools.drain()
    assert sorted(closed) == sorted(made)


@given(
    st.text("ABCxyz-!#", min_size=1, max_size=9),
    st.text("/abc?&=%2F.:*", min_size=1, max_size=99),
    st.sampled_from("01"),
)
def test_period_knows_each_request_line(method: str, target: str, version: str) -> None:
    """After the end of the period, whatever begins a request of HTTP/1.1 is held back."""
    server_verifier: Any = Counter()
    line = f"{method} {target} HTTP/1.{version}\r\n".encode()
    opened = ProofPeriod(server_verifier, period(server_verifier))
    opened.before_write(line)
    opened.after_read()
    server_verifier.generation += 1
    for data in (line, bytearray(line + b"Host: x\r\n\r\nbody"), memoryview(line)):
        with pytest.raises(ReconnectError):
            opened.before_write(data)
    opened.before_write(b"\x81\x85frame of a WebSocket")
    opened.before_write(line)  # in the same request or message


def test_period_ends_in_forked_processes() -> None:
    """A connection that was opened before a fork carries no request of the child."""
    server_verifier: Any = Counter()
    opened = ProofPeriod(server_verifier, period(server_verifier))

    def work() -> None:
        with pytest.raises(ReconnectError):
            opened.before_write(b"GET / HTTP/1.1\r\n")

    assert in_child(work)
    opened.before_write(b"GET / HTTP/1.1\r\n")


def test_pools_of_forked_processes_do_not_wait_for_the_parent() -> None:
    """A lock that another thread held at the fork, for ever in the child, is replaced."""
    _, pools = pool_set()
    lease, _ = pools.acquire()

    def work() -> None:
        other, closing = pools.acquire()
        assert (other.pool, closing) == (1, [])
        assert pools.release(lease) == [], "nothing of the parent is closed"
        assert pools.drain() == [1]

    with pools._lock:
        assert in_child(work)
    assert pools.release(lease) == []
    assert pools.acquire()[0] is lease
