"""Processes that emit and attest on an emulated machine, and can be killed.

Run by a test as a separate program, because it forks: all modules are loaded once, so that a child
starts in milliseconds. Each input line is a JSON array of orders. A child is started for each
order, all begin together, and the output line contains the messages and exit status of each.
"""

import hashlib
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple

from attestkit.attestation import Attestation
from attestkit.attester import Attester
from attestkit.backends.configfs_tsm import ConfigfsTdx
from attestkit.backends.linux.kernel_paths import KernelPaths
from attestkit.backends.tdx_ioctl import TdxIoctl
from attestkit.errors import AttestKitError
from tests.concurrency.keeping import Keeping
from tests.rigs.journal import upstream_agent

LONGEST = 100  # seconds after which a child counts as hung

Say = Callable[..., None]


class Order(NamedTuple):
    """Task of a child."""

    do: str  # a key of ACTIONS
    root: str  # of the machine
    log: str  # directory of the runtime log
    qgs: str | None = None  # QGS for TdxIoctl; None: ConfigfsTsm
    names: tuple[str, ...] = ()  # names of the events to emit
    # Seconds from the first message to the kill, and the time limit for that message.
    kill: tuple[float, float] | None = None
    times: int = 1  # number of attestations


class Child(NamedTuple):
    """A running child."""

    order: Order
    pid: int
    pipe: int  # its messages


def make_payload(name: str) -> bytes:
    """Return an event's payload of 0 to 2 KiB, determined by its name."""
    seed = hashlib.sha256(name.encode()).digest()
    return (seed * 64)[: int.from_bytes(seed[:2], "big") % 2048]


# -- actions of a child --------------------------------------------------------------------------


def open_backend(order: Order) -> Attester:
    """Open the machine's TEE."""
    paths = KernelPaths.below(order.root)._replace(runtime_log=Path(order.log))
    if order.qgs:
        return Attester(TdxIoctl(paths=paths, qgs=order.qgs))
    return Attester(ConfigfsTdx(paths=paths))


def emit(order: Order, say: Say) -> None:
    """Emit the events."""
    emit_all(open_backend(order), order.names, say)


def emit_all(tee: Attester, names: Iterator[str] | tuple[str, ...], say: Say) -> None:
    """Emit events one after the other, and report each result with its time."""
    for name in names:
        begin = time.monotonic()
        try:
            tee.emit_event(name, make_payload(name))
        except AttestKitError as error:
            say("failed", name, type(error).__name__, str(error))
        else:
            say("done", name, begin, time.monotonic())


def emit_for_ever(order: Order, say: Say) -> None:
    """Emit until killed."""
    (prefix,) = order.names
    emit_all(open_backend(order), (f"{prefix}.{number}" for number in count()), say)


def report_evidence(tee: Attester, say: Say) -> None:
    """Attest, and report the events, and RTMR3 from the quote and from the register."""
    evidence = Attestation.from_bytes(tee.attest(report_data=b"look", pad=True).to_bytes())
    assert evidence.quote is not None
    names = [event.name for event in evidence.runtime_events]
    say("found", names, evidence.quote.rtmrs[3].hex(), tee.registers()[3].hex())


def attest(order: Order, say: Say) -> None:
    """Attest repeatedly."""
    tee = open_backend(order)
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
    "attest": attest,
    "upstream": upstream,
}


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
