"""Kill programs between each two steps of an emit, and look at what they leave.

Run by a test as a program of its own, because it forks: `journal_kill_rig.py FOLDER`. Prints a JSON
array: for each situation and step its name, how many events were found, and what was wrong.
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
from tests.tees import Machine

FIRST, SECOND, NEXT = (runtime_event(name, name.encode() * 30) for name in ("a", "b", "c"))


def journal(machine: Machine) -> Journal:
    """Return the journal of a program that starts now."""
    access = RegisterAccess(machine.read, machine.extend)
    return Journal(OsFolder(machine.log, LOCK), access, boot_id=machine.boot_id)


def fresh(_: Machine) -> int:
    """Nothing was emitted yet."""
    return 0


def used(machine: Machine) -> int:
    """One event was emitted before."""
    journal(machine).emit(FIRST)
    return 1


def rebooted(machine: Machine) -> int:
    """One event was emitted in an earlier boot."""
    journal(machine).emit(FIRST)
    machine.boot("boot-2")
    return 0


def torn(machine: Machine) -> int:
    """A program died in the middle of the log's last line."""
    count = used(machine)
    emit_until(machine, lambda _, name: name.startswith("half append"))
    return count + 1


def emit_until(machine: Machine, dies: Callable[[int, str], bool]) -> str:
    """Emit SECOND in a child that dies at a step; return the step, nothing if it did not."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        numbers = itertools.count()

        def step(name: str) -> None:
            if dies(next(numbers), name):
                os.write(write, name.encode())
                os.kill(os.getpid(), signal.SIGKILL)

        emitting = journal(machine)
        emitting.watch(step)
        emitting.emit(SECOND)
        os._exit(0)
    os.close(write)
    _, status = os.waitpid(child, 0)
    with os.fdopen(read) as pipe:
        where = pipe.read()
    assert os.WIFSIGNALED(status) == bool(where), status
    return where


def at(number: int) -> Callable[[int, str], bool]:
    """Return what is true of one step, counted from 0."""
    return lambda count, _: count == number


def check(machine: Machine, before: int, *, done: bool) -> tuple[int, str]:
    """Start the next program; return how many events there are, and what is wrong."""
    after = journal(machine)
    events = after.events()
    if replay_from(ZERO, events) != machine.read():
        return len(events), "the log does not replay to the register"
    if len(events) not in ((before + 1,) if done else (before, before + 1)):
        return len(events), "an event too few or too many"
    after.emit(NEXT)
    if after.events() != (*events, NEXT) or replay_from(ZERO, after.events()) != machine.read():
        return len(events), "it does not go on"
    return len(events), ""


def main(folder: Path) -> None:
    """Try every step of every situation."""
    found = []
    for situation in (fresh, used, rebooted, torn):
        for number in itertools.count():
            shutil.rmtree(folder)
            folder.mkdir()
            machine = Machine(folder)
            before = situation(machine)
            where = emit_until(machine, at(number))
            count, wrong = check(machine, before, done=not where)
            found.append((situation.__name__, where, count - before, wrong))
            if not where:
                break
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
