"""Tests of shared state under explored schedules: it is correct, and incorrect without its lock.

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

_SECOND_CHECK: Final = "            self._check_usable()  # again, with the lock held\n"

# Text to replace in a subject's modules to remove a guard: (old, new), applied together.
GUARDS: Final[dict[str, list[tuple[str, str]]]] = {
    "fifo lock": [
        ("            self.acquire()\n            queue.popleft()", "            queue.popleft()")
    ],
    "file queue": [("_lock(fd, self._take_ticket(fd) - 1)", "self._take_ticket(fd)")],
    "closed queue": [("            if self._closed:\n                self.close()\n", "")],
    "journal": [
        ("self._folder.enter_queue()", "pass"),
        ("fcntl.flock(self._lock_fd, fcntl.LOCK_EX)", "pass"),
    ],
    "evidence": [
        (
            f"with self._lock_journal(), self._device:\n{_SECOND_CHECK}            quote",
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
            "self._root_key()  # after the access, see `close`\n        return value",
            "self._root_key()\n        return bytes(self._secrets[name])",
        ),
    ],
    "issue cache": [("with self._lock:\n            if key in", "if True:\n            if key in")],
    "collateral cache": [("if self._entries.get(key) is known:", "if True:")],
    "shared fetch": [
        ("with self._lock:\n            running =", "if True:\n            running =")
    ],
    "refetch": [("with self._lock:  # another thread", "if True:  # another thread")],
    "log text": [
        (
            "self._encoded: tuple[tuple[Event, ...], EscapedText] = ()",
            "self._events, self._text = ()",
        ),
        (
            "encoded_events, text = self._encoded",
            "encoded_events = self._events; text = self._text",
        ),
        ("self._encoded = events", "self._events, self._text = events"),
    ],
    "log lines": [("if not (self._waiting or self._refused):\n                return", "return")],
    "parallel parts": [
        ("start, end = waiting.pop()", "start, end = waiting[-1]\n                waiting.pop()")
    ],
    "failing parallel parts": [("raise errors[0]", "pass")],
    "faults": [("with self._lock:\n            queue =", "if True:\n            queue =")],
    "recording": [
        (
            'with self.locked():\n            self._handler.call("journal_emit"',
            'if True:\n            self._handler.call("journal_emit"',
        )
    ],
}


class RemoveGuards:
    """An edit that removes guards."""

    def __init__(self, guards: list[tuple[str, str]]) -> None:
        self.remaining = list(guards)
        self._guards = guards

    def __call__(self, text: str) -> str:
        """Return the text without the guards."""
        for guard in self._guards:
            if guard[0] in text:
                self.remaining.remove(guard)
                text = text.replace(*guard)
        return text


@pytest.mark.parametrize("name", SUBJECTS)
def test_subject_is_correct_in_explored_schedules(name: str) -> None:
    """A subject is correct in the first schedules, and in some random ones."""
    subject = SUBJECTS[name](str)
    assert explore(subject, most=FEW).schedules == FEW
    explore_randomly(subject, schedules=FEW // 4)


@pytest.mark.parametrize("name", SUBJECTS)
def test_subject_without_guard_fails(name: str) -> None:
    """Without its guards a subject fails in some schedule, reproducibly."""
    edit = RemoveGuards(GUARDS[name])
    subject = SUBJECTS[name](edit)
    with pytest.raises(RaceError) as raced:
        explore(subject, most=30 * FEW)
    assert not edit.remaining, "a guard is not where it was: see what has become of it"
    with pytest.raises(RaceError):
        replay(subject, raced.value.schedule)


@pytest.mark.slow
@pytest.mark.parametrize("name", SUBJECTS)
def test_subject_is_correct_in_many_schedules(
    name: str, record_property: Callable[[str, object], None]
) -> None:
    """A subject is correct in all schedules with one preemption, and in many others."""
    long = "ATTESTKIT_SCHEDULES" in os.environ
    subject = SUBJECTS[name](str)
    explored = explore(subject, preemptions=3 if long else 2, most=MANY)
    random = explore_randomly(subject, schedules=MANY // 3, depth=4)
    record_property("schedules", explored.schedules + random.schedules)
    sys.stdout.write(f"{name} {explored} {random.schedules} random\n")
    assert explored.complete or explored.schedules == MANY
