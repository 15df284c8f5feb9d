"""What threads share holds in every schedule that is tried, and would not without what guards it.

The default run tries some schedules of each subject. `-m slow` tries far more of them, and
`ATTESTKIT_SCHEDULES=n` n of each with up to three preemptions, and as many random ones.
"""

import os
import sys
from collections.abc import Callable
from typing import Final

import pytest

from tests.concurrency.explore import RaceError, explore, explore_randomly, replay
from tests.concurrency.subjects import SUBJECTS

FEW: Final = 40
MANY: Final = int(os.environ.get("ATTESTKIT_SCHEDULES", "1000"))

_AGAIN: Final = "            self._check_usable()  # again, now that nobody can close it\n"

# What to take out of a subject's modules: (old text, new text), all of it at once.
GUARDS: Final[dict[str, list[tuple[str, str]]]] = {
    "turns": [
        ("            self.acquire()\n            queue.popleft()", "            queue.popleft()")
    ],
    "file queue": [("_lock(place, self._draw(place) - 1)", "self._draw(place)")],
    "closed queue": [("            if self._closed:\n                self.close()\n", "")],
    "journal": [
        ("self._folder.enter_queue()", "pass"),
        ("fcntl.flock(self._lock_fd, fcntl.LOCK_EX)", "pass"),
    ],
    "evidence": [
        (
            f"with self._history(), self._device:\n{_AGAIN}            quote",
            "if True:\n            quote",
        )
    ],
    "closing": [("if self._closed:  # by another thread", "if False:  # by another thread")],
    "direct extend": [
        ("with self._changing:\n            changed", "if True:\n            changed")
    ],
    "keys": [
        ("        value = bytes(self._secrets[name])\n", ""),
        (
            "self._root_key()  # behind it, see `close`\n        return value",
            "self._root_key()\n        return bytes(self._secrets[name])",
        ),
    ],
    "issue cache": [("with self._lock:\n            if key in", "if True:\n            if key in")],
    "collateral cache": [("if self._entries.get(key) is known:", "if True:")],
    "one fetch": [("with self._lock:\n            running =", "if True:\n            running =")],
    "doubted": [("with self._lock:  # another thread", "if True:  # another thread")],
    "log text": [
        ("self._known: tuple[tuple[Event, ...], LongText] = ()", "self._events, self._text = ()"),
        ("known, text = self._known", "known = self._events; text = self._text"),
        ("self._known = events", "self._events, self._text = events"),
    ],
    "log lines": [("if not (self._waiting or self._refused):\n                return", "return")],
    "parts": [
        ("start, end = waiting.pop()", "start, end = waiting[-1]\n                waiting.pop()")
    ],
    "failing parts": [("raise errors[0]", "pass")],
    "faults": [("with self._lock:\n            queue =", "if True:\n            queue =")],
    "recording": [
        (
            'with self.locked():\n            self._tape.answer("journal_emit"',
            'if True:\n            self._tape.answer("journal_emit"',
        )
    ],
}


class Broken:
    """An edit that takes guards out."""

    def __init__(self, guards: list[tuple[str, str]]) -> None:
        self.left = list(guards)
        self._guards = guards

    def __call__(self, text: str) -> str:
        """Return the text without them."""
        for guard in self._guards:
            if guard[0] in text:
                self.left.remove(guard)
                text = text.replace(*guard)
        return text


@pytest.mark.parametrize("name", SUBJECTS)
def test_it_holds(name: str) -> None:
    """In the first schedules, and in a few random ones."""
    subject = SUBJECTS[name](str)
    assert explore(subject, most=FEW).schedules == FEW
    explore_randomly(subject, schedules=FEW // 4)


@pytest.mark.parametrize("name", SUBJECTS)
def test_without_its_guard_it_does_not(name: str) -> None:
    """A schedule is found that breaks it, and breaks it again."""
    broken = Broken(GUARDS[name])
    subject = SUBJECTS[name](broken)
    with pytest.raises(RaceError) as raced:
        explore(subject, most=30 * FEW)
    assert not broken.left, "a guard is not where it was: see what has become of it"
    with pytest.raises(RaceError):
        replay(subject, raced.value.schedule)


@pytest.mark.slow
@pytest.mark.parametrize("name", SUBJECTS)
def test_it_holds_in_many_schedules(
    name: str, record_property: Callable[[str, object], None]
) -> None:
    """All with one preemption, as many as there is time for with more, and random ones."""
    long = "ATTESTKIT_SCHEDULES" in os.environ
    subject = SUBJECTS[name](str)
    explored = explore(subject, preemptions=3 if long else 2, most=MANY)
    random = explore_randomly(subject, schedules=MANY // 3, depth=4)
    record_property("schedules", explored.schedules + random.schedules)
    sys.stdout.write(f"{name} {explored} {random.schedules} random\n")
    assert explored.complete or explored.schedules == MANY
