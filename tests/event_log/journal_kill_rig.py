"""Kill processes between every two steps of an emit, and check the remaining files.

A separate program, because it forks: `journal_kill_rig.py FOLDER`. Prints a JSON array with, for
each initial state and step, its name, the number of events found, and the error.
"""

import itertools
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from attestkit.event_log.journal import LOCK, Journal, RegisterAccess
from attestkit.event_log.journal_files import OsFolder
from attestkit.event_log.journal_protocols import ZERO, replay_from
from attestkit.event_log.runtime_events import runtime_event
from tests.event_log.journal_rig import watch
from tests.machines.tees import Machine

FIRST, SECOND, NEXT = (runtime_event(name, name.encode() * 30) for name in ("a", "b", "c"))


def open_journal(machine: Machine) -> Journal:
    """Return the journal of a new process."""
    access = RegisterAccess(machine.read, machine.extend)
    return Journal(OsFolder(machine.log, LOCK), access, boot_id=machine.boot_id)


def fresh(_: Machine) -> int:
    """Prepare a machine without events."""
    return 0


def used(machine: Machine) -> int:
    """Prepare a machine with one event."""
    open_journal(machine).emit(FIRST)
    return 1


def rebooted(machine: Machine) -> int:
    """Prepare a machine with one event of an earlier boot."""
    open_journal(machine).emit(FIRST)
    machine.boot("boot-2")
    return 0


def torn(machine: Machine) -> int:
    """Prepare a machine on which a process was killed while it appended a line."""
    count = used(machine)
    emit_until_killed(machine, lambda _, name: name.startswith("half append"))
    return count + 1


def emit_until_killed(machine: Machine, kill_at: Callable[[int, str], bool]) -> str:
    """Emit SECOND in a child that is killed at a step; return the step, or "" if it finished."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        numbers = itertools.count()

        def step(name: str) -> None:
            if kill_at(next(numbers), name):
                os.write(write, name.encode())
                os.kill(os.getpid(), signal.SIGKILL)

        emitting = open_journal(machine)
        watch(emitting, step)
        emitting.emit(SECOND)
        os._exit(0)
    os.close(write)
    _, status = os.waitpid(child, 0)
    with os.fdopen(read) as pipe:
        where = pipe.read()
    assert os.WIFSIGNALED(status) == bool(where), status
    return where


def step_is(number: int) -> Callable[[int, str], bool]:
    """Return a predicate that is true for one step, counted from 0."""
    return lambda count, _: count == number


def check_recovery(machine: Machine, before: int, *, done: bool) -> tuple[int, str]:
    """Start a new process; return the number of events and the problem found."""
    after = open_journal(machine)
    events = after.events()
    if replay_from(ZERO, events) != machine.read():
        return len(events), "the log does not replay to the register"
    if len(events) not in ((before + 1,) if done else (before, before + 1)):
        return len(events), "wrong number of events"
    after.emit(NEXT)
    if after.events() != (*events, NEXT) or replay_from(ZERO, after.events()) != machine.read():
        return len(events), "an emit after recovery fails"
    return len(events), ""


def main(folder: Path) -> None:
    """Kill at every step from every initial state."""
    found = []
    for prepare in (fresh, used, rebooted, torn):
        for number in itertools.count():
            shutil.rmtree(folder)
            folder.mkdir()
            machine = Machine(folder)
            before = prepare(machine)
            where = emit_until_killed(machine, step_is(number))
            count, wrong = check_recovery(machine, before, done=not where)
            found.append((prepare.__name__, where, count - before, wrong))
            if not where:
                break
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
