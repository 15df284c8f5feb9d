"""Exploration of schedules: those with few preemptions first.

A preemption is a switch away from a thread that could continue. Most races need one or two of them,
so that all schedules with so many are tried first (Musuvathi and Qadeer, "Iterative context
bounding", 2007).
"""

import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, TypeAlias

from tests.concurrency.keeping import Keeping
from tests.concurrency.stage import Stage
from tests.concurrency.world import World


def _nothing() -> None:
    """Do nothing."""


class Run(NamedTuple):
    """The threads of one run."""

    threads: Sequence[Callable[[], object]]
    check: Callable[[], None] = _nothing  # asserts the final state


Scenario: TypeAlias = Callable[[World, ExitStack], Run]
"""Creates the threads of one run; the stack is closed after it."""


class Explored(NamedTuple):
    """The extent of a successful exploration."""

    schedules: int
    complete: bool  # all schedules within the bound
    decisions: int  # of the longest schedule


class RaceError(AssertionError):
    """A schedule that fails, with the switches of its threads."""


def explore(
    scenario: Scenario, world: World, *, fine: bool, preemptions: int = 2, most: int = 1_000_000
) -> Explored:
    """Try all schedules with at most `preemptions` preemptions, those with fewer first.

    Args:
        scenario: The threads to explore.
        world: The modules that they use; each of their lines is a step.
        fine: Whether accesses within a line are steps, too.
        preemptions: The bound.
        most: Maximum number of schedules, a random selection of those with equal preemptions.

    Raises:
        RaceError: If a schedule fails.
    """
    level, tried, longest = [b""], 0, 0
    order = random.Random(0)
    for used in range(preemptions + 1):
        order.shuffle(level)
        following: list[bytes] = []
        while level:
            if tried == most:
                return Explored(tried, complete=False, decisions=longest)
            prefix = level.pop()
            stage = Stage(_Prefix(prefix), world.files, fine=fine)
            _run(scenario, world, stage)
            tried += 1
            longest = max(longest, len(stage.decisions))
            same, more = _find_alternatives(stage, len(prefix))
            level += same
            if used < preemptions:
                following += more
        level = following
    return Explored(tried, complete=True, decisions=longest)


class _Prefix:
    """These choices first, then the current thread continues if it can."""

    def __init__(self, choices: bytes) -> None:
        self._choices = iter(choices)

    def __call__(self, options: tuple[int, ...], current: int | None) -> int:
        chosen = next(self._choices, None)
        if chosen is not None:
            assert chosen in options, "the run differs from the previous one: not deterministic"
            return chosen
        return options[0] if current is None else current


def _run(scenario: Scenario, world: World, stage: Stage) -> None:
    with ExitStack() as stack:
        threads, check = scenario(world, stack)
        stage.run(threads)
        errors: list[Any] = [stage.failure, *(task.error for task in stage.tasks)]
        if stage.timeouts:
            errors.append(AssertionError("a wake-up is missing: only time ended a wait"))
        error = next((error for error in errors if error is not None), None)
        if error is None:
            with Keeping(only=Exception) as kept:
                check()
            error = kept.error
    if error is not None:
        steps = [f"  thread {switch.task} from {switch.where}" for switch in stage.switches]
        raise RaceError("\n".join([f"{type(error).__name__}: {error}", *steps])) from error


def _find_alternatives(stage: Stage, since: int) -> tuple[list[bytes], list[bytes]]:
    """Return the alternatives: without an additional preemption, and with one."""
    same, more = list[bytes](), list[bytes]()
    chosen = bytes(decision.chosen for decision in stage.decisions)
    for index in range(since, len(stage.decisions)):
        options, current, taken = stage.decisions[index]
        for other in options:
            if other != taken:
                prefix = chosen[:index] + bytes([other])
                (same if current is None else more).append(prefix)
    return same, more
