"""Exploration of schedules: all with few preemptions, or random ones from a seed.

A preemption is a switch away from a thread that could continue. Most races need one or two of them,
so that all schedules with so many are tried first (Musuvathi and Qadeer, "Iterative context
bounding", 2007). Random schedules give each thread a priority, and lower the highest one at a few
moments (Burckhardt and others, "A randomized scheduler", 2010).
"""

import random
import re
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import NamedTuple, TypeAlias

from tests.concurrency.stage import Choose, Stage
from tests.keeping import Keeping

__all__ = [
    "Explored",
    "RaceError",
    "Run",
    "Scenario",
    "Subject",
    "explore",
    "explore_randomly",
    "replay",
]


def _nothing() -> None:
    """Do nothing."""


class Run(NamedTuple):
    """The threads of one run."""

    threads: Sequence[Callable[[], object]]
    check: Callable[[], None] = _nothing  # asserts the final state
    end: Callable[[], object] = _nothing  # called last, also after a failure


Scenario: TypeAlias = Callable[[], Run]
"""Creates the threads of one run."""


class Subject(NamedTuple):
    """A scenario to explore."""

    scenario: Scenario
    watched: frozenset[str]  # files
    fine: bool = False  # whether accesses within a line are steps, too
    timeouts: bool = False  # whether a wait may end by its timeout only


class Explored(NamedTuple):
    """The extent of a successful exploration."""

    schedules: int
    complete: bool  # all schedules within the bound
    decisions: int  # of the longest schedule


class RaceError(AssertionError):
    """A failing schedule; `schedule` can be passed to `replay`."""

    def __init__(self, schedule: str, text: str) -> None:
        super().__init__(text)
        self.schedule = schedule


def explore(
    subject: Subject, *, preemptions: int = 2, most: int = 1_000_000, seed: int = 0
) -> Explored:
    """Try all schedules with at most `preemptions` preemptions, those with fewer first.

    Args:
        subject: The scenario to explore.
        preemptions: The bound.
        most: Maximum number of schedules, a random selection of those with equal preemptions.
        seed: Of the selection.

    Raises:
        RaceError: If a schedule fails.
    """
    level, tried, longest = [b""], 0, 0
    order = random.Random(seed)
    for used in range(preemptions + 1):
        order.shuffle(level)
        following: list[bytes] = []
        while level:
            if tried == most:
                return Explored(tried, complete=False, decisions=longest)
            prefix = level.pop()
            stage = _run(subject, _Prefix(prefix))
            tried += 1
            longest = max(longest, len(stage.decisions))
            same, more = _find_alternatives(stage, len(prefix))
            level += same
            if used < preemptions:
                following += more
        level = following
    return Explored(tried, complete=True, decisions=longest)


def explore_randomly(
    subject: Subject, *, schedules: int, seed: int = 0, depth: int = 3
) -> Explored:
    """Try `schedules` random schedules, each with `depth` changes of priority.

    Raises:
        RaceError: If a schedule fails.
    """
    longest = len(_run(subject, _Prefix(b"")).decisions)
    for number in range(schedules):
        stage = _run(subject, _Priorities(f"{seed}:{number}", longest, depth))
        longest = max(longest, len(stage.decisions))
    return Explored(schedules + 1, complete=False, decisions=longest)


def replay(subject: Subject, schedule: str) -> None:
    """Repeat the schedule of a `RaceError`."""
    runs = re.findall(r"(\d+)x(\d+)", schedule)
    choices = b"".join(bytes([int(number)]) * int(times) for number, times in runs)
    _run(subject, _Prefix(choices))


class _Prefix:
    """These choices first, then the current thread continues if it can."""

    def __init__(self, choices: bytes) -> None:
        self._choices = choices
        self._next = 0

    def __call__(self, options: tuple[int, ...], current: int | None) -> int:
        if self._next < len(self._choices):
            chosen = self._choices[self._next]
            self._next += 1
            assert chosen in options, "the run is another than the one before: it is not determined"
            return chosen
        return options[0] if current is None else current


class _Priorities:
    """Runs the thread of the highest priority, which is lowered at random moments."""

    def __init__(self, seed: str, decisions: int, depth: int) -> None:
        self._random = random.Random(seed)
        self._priorities: dict[int, float] = {}
        self._drops = {self._random.randrange(max(1, decisions)) for _ in range(depth)}
        self._made = 0

    def __call__(self, options: tuple[int, ...], current: int | None) -> int:
        if current is not None and self._made in self._drops:
            self._priorities[current] = -self._made - 1.0
        self._made += 1
        for number in options:
            self._priorities.setdefault(number, self._random.random())
        return max(options, key=lambda number: self._priorities[number])


def _run(subject: Subject, choose: Choose) -> Stage:
    run = subject.scenario()
    stage = Stage(choose, subject.watched, fine=subject.fine)
    try:
        stage.run(run.threads)
        error = _error(subject, stage, run.check)
    finally:
        run.end()
    if error is not None:
        raise _create_race_error(stage, error) from error
    return stage


def _error(subject: Subject, stage: Stage, check: Callable[[], None]) -> BaseException | None:
    """Return the error of a run, or None."""
    error: BaseException | None = stage.failure
    for task in stage.tasks:
        error = error or task.error
    if error is None and stage.timeouts and not subject.timeouts:
        error = AssertionError("a wake-up is missing: only time ended a wait")
    if error is None:
        with Keeping(only=Exception) as kept:  # reported with its schedule
            check()
        error = kept.error
    return error


def _create_race_error(stage: Stage, error: BaseException) -> RaceError:
    chosen = [decision.chosen for decision in stage.decisions]
    schedule = " ".join(f"{number}x{len([*same])}" for number, same in groupby(chosen))
    steps = "\n".join(f"  thread {switch.task} from {switch.where}" for switch in stage.switches)
    text = f"{type(error).__name__}: {error}\nschedule {schedule!r}:\n{steps}"
    return RaceError(schedule, text)


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
