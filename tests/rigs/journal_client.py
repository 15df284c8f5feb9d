"""Programs that emit and attest on an emulated machine, and are killed: children of this one.

Run by a test as a program of its own, because it forks: all is loaded once, so that a child starts
in milliseconds. Each line on standard input is a JSON array of orders. A child is started for each,
they begin together, and the line that is printed then has what each of them said, and how it ended.
"""

import hashlib
import json
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from attestkit.attestation import Attestation
from attestkit.attester import Attester
from attestkit.backends.configfs_tsm import ConfigfsTdx
from attestkit.backends.linux.paths import KernelPaths
from attestkit.backends.linux.syscalls import REAL_CALLS, DeviceCalls
from attestkit.backends.tdx import guest
from attestkit.backends.tdx.guest import TdGuest
from attestkit.backends.tdx_ioctl import TdxIoctl
from attestkit.errors import AttestKitError
from attestkit.event_log.journal_files import Folder, OsFolder
from tests.keeping import Keeping
from tests.rigs import journal_upstream

LONGEST = 100  # seconds that a child may live: whatever hangs is seen
HALVES = ("write", "append")

Say = Callable[..., None]
Step = Callable[[str], None]


class Order(NamedTuple):
    """What a child is to do, and where."""

    do: str  # a key of ACTIONS
    root: str  # of the machine
    log: str  # the folder of the runtime log
    qgs: str | None = None  # the QGS for TdxIoctl; None: ConfigfsTsm
    names: tuple[str, ...] = ()  # of the events to emit
    stop: int | str | None = None  # number or name of the step at which it dies; -1: list them
    # Seconds: it is killed so long after the first thing it says, or after so long without one.
    kill: tuple[float, float] | None = None
    room: int | None = None  # bytes that a file may have, until an event is refused
    times: int = 0  # how often to attest


class Child(NamedTuple):
    """A child that runs."""

    order: Order
    pid: int
    pipe: int  # where it speaks


def payload_of(name: str) -> bytes:
    """Return the payload of an event: 0 to 2 KiB that follow from its name."""
    seed = hashlib.sha256(name.encode()).digest()
    return (seed * 64)[: int.from_bytes(seed[:2], "big") % 2048]


# -- steps ---------------------------------------------------------------------------------------


def watched_folder(step: Step) -> type[OsFolder]:
    """Return the folder whose every operation calls `step` before, after, and in the middle."""

    def watched(name: str) -> Callable[..., object]:
        real = getattr(OsFolder, name)

        def operation(folder: OsFolder, *arguments: Any) -> object:
            what = " ".join((name, *arguments[:1]))
            step(f"before {what}")
            if name in HALVES:
                file, data = arguments
                real(folder, file, data[: len(data) // 2])
                step(f"half {what}")
                OsFolder.append(folder, file, data[len(data) // 2 :])
                result = None
            else:
                result = real(folder, *arguments)
            step(f"after {what}")
            return result

        return operation

    return type("WatchedFolder", (OsFolder,), {name: watched(name) for name in operations()})


def operations() -> list[str]:
    """Return the names of all operations of a journal's folder; what only names a file is none."""
    every = [name for name, what in vars(Folder).items() if name[0] != "_" and callable(what)]
    return [name for name in every if name != "place"]


def around(step: Step, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """Return `call` with a step before and after it."""

    def operation(*arguments: Any) -> Any:
        step(f"before {name}")
        result = call(*arguments)
        step(f"after {name}")
        return result

    return operation


def watch(backend: TdGuest, step: Step) -> None:
    """Call `step` around all that the journal of `backend` does, system calls of devices too."""
    vars(guest)["OsFolder"] = watched_folder(step)
    registers: Any = backend._rtmrs
    registers.extend = around(step, "extend register", registers.extend)
    registers.read_fresh = around(step, "read register", registers.read_fresh)
    names = DeviceCalls._fields
    calls = DeviceCalls(
        *(around(step, f"call {name}", getattr(REAL_CALLS, name)) for name in names)
    )
    registers._calls = registers._device._calls = calls


def stepper(stop: int | str, say: Say) -> Step:
    """Return what counts the steps and kills this program at step `stop`, after telling which."""
    numbers = count()

    def step(name: str) -> None:
        if stop in (next(numbers), name, -1):
            say("step", name)
            if stop != -1:
                os.kill(os.getpid(), signal.SIGKILL)

    return step


# -- what a child does ---------------------------------------------------------------------------


def opened(order: Order, say: Say) -> Attester:
    """Open the machine's TEE."""
    paths = KernelPaths.below(order.root)._replace(runtime_log=Path(order.log))
    backend: TdGuest
    backend = TdxIoctl(paths=paths, qgs=order.qgs) if order.qgs else ConfigfsTdx(paths=paths)
    if order.stop is not None:
        watch(backend, stepper(order.stop, say))
    return Attester(backend)


def emit(order: Order, say: Say) -> None:
    """Emit the events, one after the other, and tell of each one what came of it, and when."""
    emit_all(opened(order, say), order.names, say)


def emit_all(tee: Attester, names: Iterator[str] | tuple[str, ...], say: Say) -> None:
    """Emit events; where room was short, there is enough of it after a refusal."""
    for name in names:
        begin = time.monotonic()
        try:
            tee.emit_event(name, payload_of(name))
        except AttestKitError as error:
            say("failed", name, type(error).__name__, str(error))
            set_room(resource.RLIM_INFINITY)
        else:
            say("done", name, begin, time.monotonic())


def emit_for_ever(order: Order, say: Say) -> None:
    """Emit until killed."""
    (prefix,) = order.names
    emit_all(opened(order, say), (f"{prefix}.{number}" for number in count()), say)


def look(order: Order, say: Say) -> None:
    """Attest, and tell what events there are and what RTMR3 is, in the quote and by itself."""
    find(opened(order, say), say)


def find(tee: Attester, say: Say) -> None:
    """Do what `look` does."""
    evidence = Attestation.from_bytes(tee.attest(b"look").to_bytes())
    assert evidence.quote is not None
    names = [event.name for event in evidence.runtime_events]
    say("found", names, evidence.quote.rtmrs[3].hex(), tee.registers()[3].hex())


def look_and_emit(order: Order, say: Say) -> None:
    """Attest, and emit."""
    tee = opened(order, say)
    find(tee, say)
    emit_all(tee, order.names, say)


def emit_and_look(order: Order, say: Say) -> None:
    """Emit, and attest."""
    tee = opened(order, say)
    emit_all(tee, order.names, say)
    find(tee, say)


def attest(order: Order, say: Say) -> None:
    """Attest again and again."""
    tee = opened(order, say)
    for _ in range(order.times):
        find(tee, say)


def upstream(order: Order, say: Say) -> None:
    """Emit as another program does."""
    for name in order.names:
        begin = time.monotonic()
        journal_upstream.emit(Path(order.root), Path(order.log), name, payload_of(name))
        say("done", name, begin, time.monotonic())


ACTIONS: dict[str, Callable[[Order, Say], None]] = {
    "emit": emit,
    "emit for ever": emit_for_ever,
    "look": look,
    "look and emit": look_and_emit,
    "emit and look": emit_and_look,
    "attest": attest,
    "upstream": upstream,
}


def set_room(room: int) -> None:
    """Let no file be longer than `room` bytes; writing beyond fails with EFBIG."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, most))


# -- children ------------------------------------------------------------------------------------


def start(order: Order, gate: tuple[int, int]) -> Child:
    """Start a child, which begins when this program closes the pipe `gate`."""
    pipe, speaks = os.pipe()
    pid = os.fork()
    if pid:
        os.close(speaks)
        return Child(order, pid, pipe)
    status = 1
    try:
        with Keeping() as kept:  # the end of a child, whatever it was
            signal.alarm(LONGEST)
            os.close(gate[1])
            os.read(gate[0], 1)
            if order.room is not None:
                set_room(order.room)

            def say(*what: object) -> None:
                os.write(speaks, f"{json.dumps(what)}\n".encode())

            ACTIONS[order.do](order, say)
            status = 0
        if kept.error is not None:
            traceback.print_exception(kept.error)
    finally:
        os._exit(status)


def end(child: Child) -> dict[str, object]:
    """Wait for a child, or kill it when it is time; return what it said and how it ended."""
    if child.order.kill is not None:
        patience, delay = child.order.kill
        if select.select([child.pipe], [], [], patience)[0]:
            time.sleep(delay)
        os.kill(child.pid, signal.SIGKILL)
    with os.fdopen(child.pipe) as pipe:
        said = [json.loads(line) for line in pipe]
    _, status = os.waitpid(child.pid, 0)
    return {"said": said, "status": os.waitstatus_to_exitcode(status)}


def main() -> None:
    """Do what each line asks for."""
    for line in sys.stdin:
        orders = [Order(**order) for order in json.loads(line)]
        gate = os.pipe()
        children = [start(order, gate) for order in orders]
        for fd in gate:
            os.close(fd)
        sys.stdout.write(json.dumps(list(map(end, children))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
