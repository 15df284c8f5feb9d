"""Processes that share a runtime log take turns, and none sees a partial or loses an event.

They use the kernel files of the emulator. Evidence is also made while others emit. The registers
are in the emulator, so they outlive a killed process, like those of hardware.
"""

import random
import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import pytest

from tests.rigs.emulator import requires_fuse
from tests.rigs.journal.machine import (
    KINDS,
    Machine,
    Result,
    machine_with_log,
    make_names,
    replay_names,
)
from tests.rigs.journal.upstream_agent import VERSION
from tests.thorough import unless_limited

pytestmark = [pytest.mark.rig, pytest.mark.slow, requires_fuse]


@pytest.fixture(name="running", scope="module", params=KINDS)
def run_machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """Run a machine of each type."""
    with machine_with_log(request.param) as machine:
        yield machine


@pytest.fixture(name="machine")
def boot_machine(running: Machine) -> Machine:
    """Boot it, with an empty directory for the log."""
    running.start_over()
    return running


def check_together(machine: Machine, results: list[Result], *, extra: int = 0) -> None:
    """Assert that each event is logged once, in an order consistent with the processes' times.

    Args:
        machine: The machine of the processes.
        results: Their results.
        extra: Number of logged events besides the acknowledged ones.
    """
    names = machine.logged()
    done = [name for result in results for name in result.done]
    assert all(result.failed == [] for result in results)
    assert len(set(names)) == len(names)
    assert set(done) <= set(names)
    assert len(names) <= len(done) + extra
    for result in results:
        assert [name for name in names if name in set(result.done)] == result.done
    times = {name: (begin, end) for result in results for name, begin, end in result.times}
    latest = 0.0  # latest request time of the previous events
    for name in names:
        if name in times:
            begin, end = times[name]
            assert end >= latest, f"{name} ended before an earlier event was requested"
            latest = max(latest, begin)


@pytest.mark.parametrize("programs", [2, 4])
def test_processes_emit_concurrently(machine: Machine, programs: int) -> None:
    """Each event is logged once, and the first process creates the log."""
    events = unless_limited(100, 50)
    orders = [machine.order("emit", *make_names(program, events)) for program in range(programs)]
    results = machine.together(*orders)
    assert [len(result.done) for result in results] == [events] * programs
    check_together(machine, results)
    order = [name.partition(".")[0] for name in machine.logged()]
    changes = sum(one != two for one, two in pairwise(order))
    assert changes >= programs  # they ran concurrently


def test_evidence_is_consistent_during_concurrent_events(machine: Machine) -> None:
    """Each log explains its quote, and logs only grow."""
    emitters = [machine.order("emit", *make_names(program, 60)) for program in range(2)]
    attesters = [machine.order("attest", times=30)] * 2
    results = machine.together(*emitters, *attesters)
    check_together(machine, results)
    names = machine.logged()
    for result in results[2:]:
        assert len(result.found) == 30
        lengths = []
        for found, quoted, _ in result.found:
            assert replay_names(found) == quoted
            assert names[: len(found)] == found
            lengths.append(len(found))
        assert lengths == sorted(lengths)
        assert len(set(lengths)) >= 3  # concurrent with the events


def test_foreign_program_emits_concurrently(machine: Machine) -> None:
    """The lock is shared with other implementations of the format."""
    machine.upstream("before")
    results = machine.together(
        machine.order("upstream", *make_names("theirs", 60)),
        machine.order("emit", *make_names("ours", 60)),
        machine.order("attest", times=10),
    )
    assert [len(result.done) for result in results] == [60, 60, 0]
    for found, quoted, _ in results[2].found:
        assert replay_names(found) == quoted
    names = machine.logged()
    assert names[0] == "before"
    assert len(names) == 121
    for result in results:
        assert [name for name in names if name in set(result.done)] == result.done


@pytest.mark.parametrize("delay", [0.0, 0.01])
def test_killed_process_does_not_block_others(machine: Machine, delay: float) -> None:
    """The others continue, and complete its event."""
    results = machine.together(
        machine.order("emit for ever", "killed", kill=(60, delay)),
        *(machine.order("emit", *make_names(program, 30)) for program in range(2)),
    )
    assert results[0].killed
    assert [len(result.done) for result in results[1:]] == [30, 30]
    assert machine.run("attest").found
    check_together(machine, results, extra=1)


@pytest.mark.parametrize("version", [1, 2])
def test_agent_log_without_boot_id_is_adopted(machine: Machine, version: int) -> None:
    """It is continued in its version, by attestkit and by the other program."""
    machine.upstream("a", version)
    (machine.log / VERSION).write_text(str(version))
    assert machine.run("emit", "b").done == ["b"]
    machine.upstream("c", version)
    ((names, quoted, register),) = machine.run("attest").found
    assert names == machine.logged() == ["a", "b", "c"]
    assert quoted == register == machine.register()
    assert machine.read(VERSION) == b"%d" % version


# -- random kills ----------------------------------------------------------------------------------

ROUNDS = {"configfs_tsm": unless_limited(150, 50), "tdx_ioctl": unless_limited(50, 25)}
MOST_ROUNDS = 600  # until each state was observed
PHASES = {"no event pending", "announced", "extended", "logged"}
REBOOT = 25  # rounds per boot, so that kills also affect the archive and a log's first event
SEED = 3


class KillTimes:
    """Random kill times: sometimes during the start, mostly during an event.

    The duration of a start and of an event is measured first.
    """

    def __init__(self, machine: Machine) -> None:
        self._random = random.Random(SEED)
        began = time.monotonic()
        times = machine.run("emit", *map(str, range(20))).times
        self._start = times[0][2] - began
        self._event = (times[-1][2] - times[0][2]) / (len(times) - 1)

    def next(self) -> tuple[float, float]:
        """Return the time limit for the first event, and the delay of the kill, in seconds."""
        if self._random.random() < 0.25:
            return self._random.uniform(0, self._start), 0
        return 60, self._random.uniform(0, 3 * self._event)


def test_random_kills_lose_no_acknowledged_event(machine: Machine) -> None:
    """Many kills, until each state was observed on the disk; `make kills` makes more.

    The state is determined from the files.
    """
    times = KillTimes(machine)
    left: Counter[str] = Counter()
    acknowledged = rounds = 0
    expected = machine.logged()
    while rounds < ROUNDS[machine.kind] or not left.keys() >= PHASES:
        assert rounds < MOST_ROUNDS, left
        if rounds % REBOOT == REBOOT - 1:
            machine.emulator.reboot()
            expected = []
        killed = machine.run("emit for ever", str(rounds), kill=times.next())
        assert killed.killed
        assert killed.failed == []
        left[machine.describe_pending() if expected or killed.done else "an earlier boot"] += 1
        acknowledged += len(killed.done)
        expected += killed.done
        ((names, quoted, register),) = machine.run("attest").found
        assert replay_names(names) == quoted == register
        assert names in (expected, [*expected, f"{rounds}.{len(killed.done)}"])
        if names:
            assert machine.logged() == names
        expected = names
        rounds += 1
    assert acknowledged > rounds // 2
