"""Emulated machine with a runtime log, and the processes that use it.

Files and register are read without attestkit, by upstream_agent.
"""

import contextlib
import json
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from tests.rigs.emulator import PATIENCE, ROOT, Emulator, emulator, environment
from tests.rigs.journal import upstream_agent
from tests.rigs.journal.client import LONGEST, Order, make_payload

PENDING: Final = "runtime_event.pending"

# A kernel with register files, and one without, which needs the second ioctl.
KINDS: Final[dict[str, dict[str, Any]]] = {
    "configfs_tsm": {},
    "tdx_ioctl": {"kernel_release": "6.12", "driver": "C'", "qgs": True},
}


@dataclass(frozen=True)
class Result:
    """Messages and exit status of a process."""

    messages: list[list[Any]]
    status: int  # -9: killed

    def _of(self, kind: str) -> list[list[Any]]:
        return [what for head, *what in self.messages if head == kind]

    @property
    def done(self) -> list[str]:
        """Return the names of the acknowledged events."""
        return [name for name, *_ in self._of("done")]

    @property
    def times(self) -> list[tuple[str, float, float]]:
        """Return name, request time and acknowledgement time of these events."""
        return [(name, begin, end) for name, begin, end in self._of("done")]

    @property
    def failed(self) -> list[tuple[str, str, str]]:
        """Return name, error type and text of the other events."""
        return [(name, kind, text) for name, kind, text in self._of("failed")]

    @property
    def found(self) -> list[tuple[list[str], bytes, bytes]]:
        """Return the observed event names, RTMR3 of the quote, and RTMR3 of the register."""
        return [
            (names, bytes.fromhex(quoted), bytes.fromhex(register))
            for names, quoted, register in self._of("found")
        ]

    @property
    def killed(self) -> bool:
        """Return whether it was killed by SIGKILL."""
        return self.status == -signal.SIGKILL


class Machine:
    """Emulated machine, its runtime log, and the program that starts processes on it."""

    def __init__(self, kind: str, emulated: Emulator, run_clients: "subprocess.Popen[str]") -> None:
        self.kind = kind
        self.emulator = emulated
        self.root = emulated.root
        self.log = emulated.root / "run/log/dstack"
        self.clients = run_clients

    def start_over(self) -> None:
        """Boot it without a log."""
        self.emulator.clear_faults()
        self.emulator.reboot()
        for file in self.log.iterdir():
            file.unlink()

    # -- processes -----------------------------------------------------------------------------

    def order(self, do: str, *names: str, **more: Any) -> Order:
        """Return an order for a process on this machine."""
        qgs = self.emulator.qgs
        return Order(do, str(self.root), str(self.log), qgs, names, **more)

    def run(self, do: str, *names: str, **more: Any) -> Result:
        """Run one process to its end."""
        (answer,) = self.together(self.order(do, *names, **more))
        return answer

    def together(self, *orders: Order) -> list[Result]:
        """Run processes concurrently to their ends; those that are not killed must succeed."""
        assert self.clients.stdin is not None
        assert self.clients.stdout is not None
        self.clients.stdin.write(json.dumps([order._asdict() for order in orders]) + "\n")
        self.clients.stdin.flush()
        ready, _, _ = select.select([self.clients.stdout], [], [], LONGEST + PATIENCE)
        assert ready, "the programs hang"
        answers = [Result(**answer) for answer in json.loads(self.clients.stdout.readline())]
        for order, answer in zip(orders, answers, strict=True):
            assert answer.status == 0 or (answer.killed and order.kill), answer
        return answers

    def upstream(self, name: str, version: int = 1) -> None:
        """Emit an event like another program."""
        upstream_agent.emit(self.root, self.log, name, make_payload(name), version)

    # -- state ---------------------------------------------------------------------------------

    def register(self) -> bytes:
        """Return RTMR3."""
        return upstream_agent.read_register(self.root)

    def read(self, name: str) -> bytes | None:
        """Return a file next to the log, or None."""
        try:
            return (self.log / name).read_bytes()
        except FileNotFoundError:
            return None

    def logged(self) -> list[str]:
        """Return the names in the log, which must replay to the register."""
        events = upstream_agent.read_events(self.log)
        assert upstream_agent.replay(digest for _, digest in events) == self.register()
        return [name for name, _ in events]

    def describe_pending(self) -> str:
        """Return the state of the event in progress, from the files."""
        pending = self.read(PENDING)
        log = self.read(upstream_agent.LOG) or b""
        if pending is None:
            return "no event pending"
        if not pending.endswith(b"\n"):
            return "half announced"
        whole = log[: log.rfind(b"\n") + 1]
        if log != whole:
            return "half logged"
        if self.register() != replay_lines(whole):
            return "extended"
        return "logged" if log.endswith(pending) else "announced"


def replay_lines(log: bytes) -> bytes:
    """Return RTMR3 after the events of a log with their own payloads."""
    names = [json.loads(line)["event"] for line in log.splitlines()]
    return replay_names(names)


def replay_names(names: list[str]) -> bytes:
    """Return RTMR3 after these events with their own payloads."""
    return upstream_agent.replay(
        upstream_agent.digest_of(name, make_payload(name)) for name in names
    )


def make_names(prefix: object, number: int) -> list[str]:
    """Return names of events."""
    return [f"{prefix}.{count}" for count in range(number)]


@contextlib.contextmanager
def machine_with_log(kind: str) -> Iterator[Machine]:
    """Run a machine of one of KINDS until the end of the block."""
    with emulator(**KINDS[kind]) as emulated, run_clients() as program:
        yield Machine(kind, emulated, program)


@contextlib.contextmanager
def run_clients() -> Iterator["subprocess.Popen[str]"]:
    """Run the program that starts processes."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.rigs.journal.client"],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        try:
            yield program
        finally:
            program.kill()
