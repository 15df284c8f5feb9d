"""Tests of shared state under explored schedules: it is correct, and incorrect without its lock.

`-m slow` tries a thousand schedules of each subject, fewer in continuous integration, and
`make interleave` by `ATTESTKIT_SCHEDULES=n` n of each with up to three preemptions.
"""

import os
import sys
from typing import Final

import pytest

from tests.concurrency.explore import RaceError, explore
from tests.concurrency.subjects import SUBJECTS
from tests.concurrency.world import World
from tests.thorough import MOST

MANY: Final = int(os.environ.get("ATTESTKIT_SCHEDULES", min(1000, MOST)))
FEWEST: Final = 50  # schedules that each subject has at least


class RemoveGuards:
    """An edit of modules that removes guards, and records those that it did not find."""

    def __init__(self, *guards: tuple[str, str]) -> None:
        self.remaining = list(guards)
        self._guards = guards

    def __call__(self, text: str) -> str:
        """Return the text without the guards."""
        for guard in self._guards:
            if guard[0] in text:
                self.remaining.remove(guard)
                text = text.replace(*guard)
        return text


@pytest.mark.slow
@pytest.mark.parametrize("name", SUBJECTS)
def test_subject_without_guard_fails(name: str) -> None:
    """Without its guards a subject fails in some schedule."""
    scenario, modules, guards, fine = SUBJECTS[name]
    if fine and sys.version_info >= (3, 13):
        pytest.skip("since Python 3.13, threads miss most events of opcodes")
    edit = RemoveGuards(*guards)
    with pytest.raises(RaceError):
        explore(scenario, World(*modules, edit=edit), fine=fine, most=1500)
    assert not edit.remaining, "a guard is not where it was: see what has become of it"


@pytest.mark.slow
@pytest.mark.parametrize("name", SUBJECTS)
def test_subject_is_correct_in_many_schedules(name: str) -> None:
    """A subject is correct in all schedules with one preemption, and in many others."""
    preemptions = 3 if "ATTESTKIT_SCHEDULES" in os.environ else 2
    scenario, modules, _, fine = SUBJECTS[name]
    world = World(*modules)
    explored = explore(scenario, world, fine=fine, preemptions=preemptions, most=MANY)
    sys.stdout.write(f"{name} {explored}\n")
    assert explored.complete or explored.schedules == MANY
    assert explored.schedules >= min(FEWEST, MANY)  # fewer if threads are no longer interrupted
