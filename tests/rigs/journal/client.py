"""Processes that emit and attest on an emulated machine, and can be killed.

Run by a test as a separate program, because it forks: all modules are loaded once, so that a child
starts in milliseconds. Each input line is a JSON array of orders. A child is started for each
order, all begin together, and the output line contains the messages and exit status of each.
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
from attestkit.event_log.journal_files import OsFolder
from tests.keeping import Keeping
from tests.rigs.journal import upstream_agent

LONGEST = 100  # seconds after which a child counts as hung
HALVES = ("write", "append")

Say = Callable[..., None]
Step = Callable[[str], None]


class Order(NamedTuple):
    """Task of a child."""

    do: str  # a key of ACTIONS
    root: str  # of the machine
    log: str  # directory of the runtime log
    qgs: str | None = None  # QGS for TdxIoctl; None: ConfigfsTsm
    names: tuple[str, ...] = ()  # names of the events to emit
    stop: int | str | None = (
        None  # number or name of the step at which it is killed; -1: list the steps
    )
    # Seconds from the first message to the kill, and the time limit for that message.
    kill: tuple[float, float] | None = None
    room: int | None = None  # maximum file size in bytes, until an event is refused
    times: int = 0  # number of attestations


class Child(NamedTuple):
    """A running child."""

    order: Order
    pid: int
    pipe: int  # its messages


def make_payload(name: str) -> bytes:
    """Return an event's payload of 0 to 2 KiB, determined by its name."""
    seed = hashlib.sha256(name.encode()).digest()
    return (seed * 64)[: int.from_bytes(seed[:2], "big") % 2048]


# -- steps ---------------------------------------------------------------------------------------


def make_watched_folder(step: Step) -> type[OsFolder]:
    """Return a folder class whose operations call `step` before, during and after each."""

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

    return type("WatchedFolder", (OsFolder,), {name: watched(name) for name in list_operations()})


def list_operations() -> list[str]:
    """Return the names of a journal folder's operations, without `path_of`."""
    every = [name for name, what in vars(OsFolder).items() if name[0] != "_" and callable(what)]
    return [name for name in every if name != "path_of"]


def wrap_with_steps(step: Step, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """Return `call` with a step before and after it."""

    def operation(*arguments: Any) -> Any:
        step(f"before {name}")
        result = call(*arguments)
        step(f"after {name}")
        return result

    return operation


def watch_backend(backend: TdGuest, step: Step) -> None:
    """Call `step` around each operation of the backend's journal and registers."""
    vars(guest)["OsFolder"] = make_watched_folder(step)
    registers: Any = backend._rtmrs
    registers.extend = wrap_with_steps(step, "extend register", registers.extend)
    registers.read_fresh = wrap_with_steps(step, "read register", registers.read_fresh)
    names = DeviceCalls._fields
    calls = DeviceCalls(
        *(wrap_with_steps(step, f"call {name}", getattr(REAL_CALLS, name)) for name in names)
    )
    registers._calls = registers._device._calls = calls


def make_stepper(stop: int | str, say: Say) -> Step:
    """Return a function that counts steps, and kills this process at `stop` after reporting it."""
    numbers = count()

    def step(name: str) -> None:
        if stop in (next(numbers), name, -1):
            say("step", name)
            if stop != -1:
                os.kill(os.getpid(), signal.SIGKILL)

    return step


# -- actions of a child --------------------------------------------------------------------------


def open_backend(order: Order, say: Say) -> Attester:
    """Open the machine's TEE."""
    paths = KernelPaths.below(order.root)._replace(runtime_log=Path(order.log))
    backend: TdGuest
    backend = TdxIoctl(paths=paths, qgs=order.qgs) if order.qgs else ConfigfsTdx(paths=paths)
    if order.stop is not None:
        watch_backend(backend, make_stepper(order.stop, say))
    return Attester(backend)


def emit(order: Order, say: Say) -> None:
    """Emit the events one after the other, and report each result with its time."""
    emit_all(open_backend(order, say), order.names, say)


def emit_all(tee: Attester, names: Iterator[str] | tuple[str, ...], say: Say) -> None:
    """Emit events; after a refusal the file size limit is raised."""
    for name in names:
        begin = time.monotonic()
        try:
            tee.emit_event(name, make_payload(name))
        except AttestKitError as error:
            say("failed", name, type(error).__name__, str(error))
            limit_file_size(resource.RLIM_INFINITY)
        else:
            say("done", name, begin, time.monotonic())


def emit_for_ever(order: Order, say: Say) -> None:
    """Emit until killed."""
    (prefix,) = order.names
    emit_all(open_backend(order, say), (f"{prefix}.{number}" for number in count()), say)


def look(order: Order, say: Say) -> None:
    """Attest, and report the events, and RTMR3 from the quote and from the register."""
    report_evidence(open_backend(order, say), say)


def report_evidence(tee: Attester, say: Say) -> None:
    """Attest, and report the events, and RTMR3 from the quote and from the register."""
    evidence = Attestation.from_bytes(tee.attest(report_data=b"look", pad=True).to_bytes())
    assert evidence.quote is not None
    names = [event.name for event in evidence.runtime_events]
    say("found", names, evidence.quote.rtmrs[3].hex(), tee.registers()[3].hex())


def look_and_emit(order: Order, say: Say) -> None:
    """Attest, and emit."""
    tee = open_backend(order, say)
    report_evidence(tee, say)
    emit_all(tee, order.names, say)


def emit_and_look(order: Order, say: Say) -> None:
    """Emit, and attest."""
    tee = open_backend(order, say)
    emit_all(tee, order.names, say)
    report_evidence(tee, say)


def attest(order: Order, say: Say) -> None:
    """Attest repeatedly."""
    tee = open_backend(order, say)
    for _ in range(order.times):
        report_evidence(tee, say)


def upstream(order: Order, say: Say) -> None:
    """Emit like another program."""
    for name in order.names:
        begin = time.monotonic()
        upstream_agent.emit(Path(order.root), Path(order.log), name, make_payload(name))
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


def limit_file_size(room: int) -> None:
    """Limit the file size to `room` bytes; a write beyond fails with EFBIG."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, most))


# -- children ------------------------------------------------------------------------------------


def start_child(order: Order, gate: tuple[int, int]) -> Child:
    """Start a child, which begins when this process closes the pipe `gate`."""
    pipe, speaks = os.pipe()
    pid = os.fork()
    if pid:
        os.close(speaks)
        return Child(order, pid, pipe)
    status = 1
    try:
        with Keeping() as kept:  # exit the child in any case
            signal.alarm(LONGEST)
            os.close(gate[1])
            os.read(gate[0], 1)
            if order.room is not None:
                limit_file_size(order.room)

            def say(*what: object) -> None:
                os.write(speaks, f"{json.dumps(what)}\n".encode())

            ACTIONS[order.do](order, say)
            status = 0
        if kept.error is not None:
            traceback.print_exception(kept.error)
    finally:
        os._exit(status)


def end_child(child: Child) -> dict[str, object]:
    """Wait for a child, or kill it in time; return its messages and exit status."""
    if child.order.kill is not None:
        patience, delay = child.order.kill
        if select.select([child.pipe], [], [], patience)[0]:
            time.sleep(delay)
        os.kill(child.pid, signal.SIGKILL)
    with os.fdopen(child.pipe) as pipe:
        messages = [json.loads(line) for line in pipe]
    _, status = os.waitpid(child.pid, 0)
    return {"messages": messages, "status": os.waitstatus_to_exitcode(status)}


def main() -> None:
    """Execute each input line."""
    for line in sys.stdin:
        orders = [Order(**order) for order in json.loads(line)]
        gate = os.pipe()
        children = [start_child(order, gate) for order in orders]
        for fd in gate:
            os.close(fd)
        sys.stdout.write(json.dumps(list(map(end_child, children))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
