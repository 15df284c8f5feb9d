"""SIGKILL during emit_event loses at most the event in progress, on emulated kernel files.

The registers are in the emulator, so they outlive the killed process, like those of hardware.
"""

import random
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.rigs.emulator import requires_fuse
from tests.rigs.journal.client import list_operations
from tests.rigs.journal.machine import (
    KINDS,
    PENDING,
    Machine,
    Result,
    machine_with_log,
    replay_names,
)
from tests.rigs.journal.upstream_agent import LOG

pytestmark = [pytest.mark.rig, requires_fuse]

FIRST, SECOND, NEXT = "first", "second", "after the crash"

# States that a killed process may leave.
MOMENTS = {
    "half announced": f"half write {PENDING}",
    "announced": f"after write {PENDING}",
    "extended": "after extend register",
    "half logged": f"half append {LOG}",
    "logged": f"after append {LOG}",
}


@pytest.fixture(name="machine", scope="module", params=KINDS)
def make_machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """Run a machine of each type."""
    with machine_with_log(request.param) as machine:
        yield machine


# -- initial states of the log ---------------------------------------------------------------------


def fresh(machine: Machine) -> list[str]:
    """Boot without a log and its directory; return the events."""
    machine.start_over()
    return []


def used(machine: Machine) -> list[str]:
    """Have a log with events."""
    if not machine.logged():
        assert machine.run("emit", FIRST).done == [FIRST]
    return machine.logged()


def rebooted(machine: Machine) -> list[str]:
    """Have the log of an earlier boot, with an event that was not logged."""
    used(machine)
    stop_at(machine, "extended")
    assert machine.read(PENDING)
    machine.emulator.reboot()
    return []


def older(machine: Machine) -> list[str]:
    """Have a log of another program, without a boot ID."""
    machine.start_over()
    machine.upstream(FIRST)
    return [FIRST]


WORLDS = {world.__name__: world for world in (fresh, used, rebooted, older)}


def stop_at(machine: Machine, left: str) -> None:
    """Emit SECOND, and kill the process in that state."""
    assert machine.run("emit", SECOND, stop=MOMENTS[left]).killed
    assert machine.describe_pending() == left


def distinct_steps(steps: list[str]) -> list[tuple[int, str]]:
    """Return numbers and names of the steps that are distinct states.

    A "before" directly after an "after" is the same state.
    """
    pairs = zip(["", *steps], steps, strict=False)
    return [
        (number, step)
        for number, (last, step) in enumerate(pairs)
        if not (last.startswith("after ") and step.startswith("before "))
    ]


def touched_files(steps: list[str]) -> set[str]:
    """Return the names of the files and registers of steps."""
    return {step.split()[1] for step in steps}


def check_recovery(machine: Machine, allowed: list[list[str]], *, attest_first: bool) -> list[str]:
    """Let a new process continue; log, register and quote must agree on one of `allowed`.

    Returns the events found.
    """
    answer = machine.run("look and emit" if attest_first else "emit and look", NEXT)
    assert answer.failed == []
    ((names, quoted, register),) = answer.found
    assert replay_names(names) == quoted == register
    found = names if attest_first else names[:-1]
    assert found in allowed
    assert machine.logged() == [*found, NEXT]
    assert machine.read(PENDING) is None
    return found


def allowed_after(before: list[str], names: list[str], killed: Result) -> list[list[str]]:
    """Return the allowed event lists: the acknowledged events, with or without the next one."""
    there = [*before, *killed.done]
    return [there, there + names[len(killed.done) :][:1]]


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS)
def test_kill_at_any_step_loses_at_most_one_event(machine: Machine, world: str) -> None:
    """Before, during and after each operation of emit_event, log and register stay consistent."""
    machine.start_over()
    before = WORLDS[world](machine)
    names = [SECOND] if before else [FIRST, SECOND]
    dry = machine.run("emit", *names, stop=-1)
    assert dry.done == names
    assert machine.logged() == [*before, *names]
    seen: list[str] = []
    outcomes = set()
    for number, step in distinct_steps(dry.steps):
        before = WORLDS[world](machine)
        killed = machine.run("emit", *names, stop=number)
        assert killed.killed
        assert killed.steps == [step]
        allowed = allowed_after(before, names, killed)
        found = check_recovery(machine, allowed, attest_first=bool(len(seen) % 2))
        outcomes.add(found == allowed[1])
        seen.append(step)
    assert seen == [step for _, step in distinct_steps(dry.steps)]
    assert outcomes == {True, False}
    # All states occur, except those of a truncated line and of the end.
    assert touched_files(dry.steps) >= {*list_operations(), "extend", "call"} - {
        "cut",
        "close",
        "rename",
        "make",
    }
    if world == "fresh":
        assert touched_files(dry.steps) >= {"rename", "make"}


@pytest.mark.slow
@pytest.mark.parametrize("left", MOMENTS)
def test_kill_during_recovery_changes_nothing(machine: Machine, left: str) -> None:
    """The next process makes the same decision."""
    happened = [SECOND] if left in ("extended", "half logged", "logged") else []
    machine.start_over()
    for do in ("look", "emit"):
        used(machine)
        stop_at(machine, left)
        steps = machine.run(do, NEXT, stop=-1).steps
        deciding = distinct_steps(steps[: steps.index(f"after remove {PENDING}") + 1])
        for number, step in deciding:
            before = used(machine)
            stop_at(machine, left)
            killed = machine.run(do, NEXT, stop=number)
            assert killed.killed
            assert killed.steps == [step]
            check_recovery(machine, [[*before, *happened]], attest_first=bool(number % 2))
        assert touched_files(steps) >= {"stamp", "read", "remove", "enter_queue", "lock"}
        assert ("cut" in touched_files(steps)) == (left == "half logged")


def test_event_is_synced_before_its_extend(machine: Machine) -> None:
    """Unlike a kill, a power failure loses unsynced data.

    The event and its directory entry are synced before the extend, and the log before the pending
    file is removed.
    """
    used(machine)
    steps = machine.run("emit", SECOND, stop=-1).steps
    order = [
        f"before write {PENDING}",
        f"after sync {PENDING}",
        "after sync_folder",
        "before extend register",
        "after extend register",
        f"before append {LOG}",
        f"after sync {LOG}",
        f"before remove {PENDING}",
    ]
    places = [steps.index(step) for step in order]
    assert places == sorted(places)


# -- random kills ----------------------------------------------------------------------------------

ROUNDS = {"configfs_tsm": 300, "tdx_ioctl": 100}
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


@pytest.mark.slow
def test_random_kills_lose_no_acknowledged_event(machine: Machine) -> None:
    """Hundreds of kills, until each state was observed on the disk.

    The state is determined from the files.
    """
    machine.start_over()
    times = KillTimes(machine)
    left: Counter[str] = Counter()
    acknowledged = rounds = 0
    expected = machine.logged()
    while rounds < ROUNDS[machine.kind] or not left.keys() >= PHASES:
        assert rounds < 4 * ROUNDS[machine.kind], left
        if rounds % REBOOT == REBOOT - 1:
            machine.emulator.reboot()
            expected = []
        killed = machine.run("emit for ever", str(rounds), kill=times.next())
        assert killed.killed
        assert killed.failed == []
        left[machine.describe_pending() if expected or killed.done else "an earlier boot"] += 1
        acknowledged += len(killed.done)
        expected += killed.done
        ((names, quoted, register),) = machine.run("look").found
        assert replay_names(names) == quoted == register
        assert names in (expected, [*expected, f"{rounds}.{len(killed.done)}"])
        if names:
            assert machine.logged() == names
        expected = names
        rounds += 1
    assert acknowledged > rounds // 2
