"""SIGKILL at any moment of emit_event costs at most the event on its way, on the kernel's files.

The emulator has the registers, so they outlive the program that is killed, as hardware's do.
"""

import random
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.rigs.emulator import requires_fuse
from tests.rigs.journal_client import operations
from tests.rigs.journal_machine import (
    KINDS,
    PENDING,
    Answer,
    Machine,
    machine_with_log,
    replay_names,
)
from tests.rigs.journal_upstream import LOG

pytestmark = [pytest.mark.rig, requires_fuse]

FIRST, SECOND, NEXT = "first", "second", "after the crash"

# What a program may leave of an event on its way.
MOMENTS = {
    "half announced": f"half write {PENDING}",
    "announced": f"after write {PENDING}",
    "extended": "after extend register",
    "half logged": f"half append {LOG}",
    "logged": f"after append {LOG}",
}


@pytest.fixture(name="machine", scope="module", params=KINDS)
def make_machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """Run a machine of each kind."""
    with machine_with_log(request.param) as machine:
        yield machine


# -- the worlds in which an event is emitted -------------------------------------------------------


def fresh(machine: Machine) -> list[str]:
    """Boot, with no log and no folder for it; return the events so far."""
    machine.start_over()
    return []


def used(machine: Machine) -> list[str]:
    """Have a log with events: what the last round left, or one."""
    if not machine.logged():
        assert machine.run("emit", FIRST).done == [FIRST]
    return machine.logged()


def rebooted(machine: Machine) -> list[str]:
    """Have the log of an earlier boot, with an event that was never logged."""
    used(machine)
    stop_at(machine, "extended")
    assert machine.read(PENDING)
    machine.emulator.reboot()
    return []


def older(machine: Machine) -> list[str]:
    """Have a log of another program, which knows nothing of boot ids."""
    machine.start_over()
    machine.upstream(FIRST)
    return [FIRST]


WORLDS = {world.__name__: world for world in (fresh, used, rebooted, older)}


def stop_at(machine: Machine, left: str) -> None:
    """Emit SECOND, and die when so much of it is done."""
    assert machine.run("emit", SECOND, stop=MOMENTS[left]).killed
    assert machine.what_is_left() == left


def moments(steps: list[str]) -> list[tuple[int, str]]:
    """Return numbers and names of the steps that are not the same moment as the one before.

    Those are "before" one thing directly "after" another.
    """
    pairs = zip(["", *steps], steps, strict=False)
    return [
        (number, step)
        for number, (last, step) in enumerate(pairs)
        if not (last.startswith("after ") and step.startswith("before "))
    ]


def hit(steps: list[str]) -> set[str]:
    """Return the names of what there are steps of."""
    return {step.split()[1] for step in steps}


def check_recovery(machine: Machine, allowed: list[list[str]], *, attest_first: bool) -> list[str]:
    """Let a new program go on, and require log, register and quote to agree on one of `allowed`.

    Returns the events that it found.
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


def allowed_after(before: list[str], names: list[str], killed: Answer) -> list[list[str]]:
    """Return which events there may be: the acknowledged ones, and the one on its way at most."""
    there = [*before, *killed.done]
    return [there, there + names[len(killed.done) :][:1]]


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS)
def test_death_at_any_step_costs_at_most_the_event_on_its_way(machine: Machine, world: str) -> None:
    """Before, after and in the middle of each operation of emit_event: both or neither."""
    machine.start_over()
    before = WORLDS[world](machine)
    names = [SECOND] if before else [FIRST, SECOND]
    dry = machine.run("emit", *names, stop=-1)
    assert dry.done == names
    assert machine.logged() == [*before, *names]
    seen: list[str] = []
    outcomes = set()
    for number, step in moments(dry.steps):
        before = WORLDS[world](machine)
        killed = machine.run("emit", *names, stop=number)
        assert killed.killed
        assert killed.steps == [step]
        allowed = allowed_after(before, names, killed)
        found = check_recovery(machine, allowed, attest_first=bool(len(seen) % 2))
        outcomes.add(found == allowed[1])
        seen.append(step)
    assert seen == [step for _, step in moments(dry.steps)]
    assert outcomes == {True, False}
    # Nothing is left out: what is not here is a torn line's, or the end's.
    assert hit(dry.steps) >= {*operations(), "extend", "call"} - {"cut", "close", "rename", "make"}
    if world == "fresh":
        assert hit(dry.steps) >= {"rename", "make"}


@pytest.mark.slow
@pytest.mark.parametrize("left", MOMENTS)
def test_death_while_deciding_is_no_worse(machine: Machine, left: str) -> None:
    """A program that dies while it decides leaves it to the next one, which finds the same."""
    happened = [SECOND] if left in ("extended", "half logged", "logged") else []
    machine.start_over()
    for do in ("look", "emit"):
        used(machine)
        stop_at(machine, left)
        steps = machine.run(do, NEXT, stop=-1).steps
        deciding = moments(steps[: steps.index(f"after remove {PENDING}") + 1])
        for number, step in deciding:
            before = used(machine)
            stop_at(machine, left)
            killed = machine.run(do, NEXT, stop=number)
            assert killed.killed
            assert killed.steps == [step]
            check_recovery(machine, [[*before, *happened]], attest_first=bool(number % 2))
        assert hit(steps) >= {"stamp", "read", "remove", "enter_queue", "lock"}
        assert ("cut" in hit(steps)) == (left == "half logged")


def test_what_is_going_to_happen_is_on_the_disk_before_it_happens(machine: Machine) -> None:
    """A kill loses nothing that was written, a power failure does: the syncs are in their places.

    The event is synced, and its file's name, before the register moves; the log before the pending
    file goes.
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


# -- kills from outside ----------------------------------------------------------------------------

ROUNDS = {"configfs_tsm": 300, "tdx_ioctl": 100}
PHASES = {"nothing on its way", "announced", "extended", "logged"}
REBOOT = 25  # rounds of one boot: kills meet the archive, and the first event of a log, as well
SEED = 3


class KillTimes:
    """When to kill: while a program starts, and mostly at some moment of an event.

    What start and event take is measured first, on this machine at this load.
    """

    def __init__(self, machine: Machine) -> None:
        self._random = random.Random(SEED)
        began = time.monotonic()
        times = machine.run("emit", *map(str, range(20))).times
        self._start = times[0][2] - began
        self._event = (times[-1][2] - times[0][2]) / (len(times) - 1)

    def next(self) -> tuple[float, float]:
        """Return how long to wait for a first event, and then for the kill, in seconds."""
        if self._random.random() < 0.25:
            return self._random.uniform(0, self._start), 0
        return 60, self._random.uniform(0, 3 * self._event)


@pytest.mark.slow
def test_death_at_random_moments_loses_no_acknowledged_event(machine: Machine) -> None:
    """Programs are killed from outside, hundreds of times, until every phase of an event was hit.

    Phases are told by what is left on the disk.
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
        left[machine.what_is_left() if expected or killed.done else "an earlier boot"] += 1
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
