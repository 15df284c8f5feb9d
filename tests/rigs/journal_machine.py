"""An emulated machine with a runtime log, and the programs that use it, for the tests of the log.

What is on disk and what the register holds is measured without attestkit, by journal_upstream.
"""

import contextlib
import json
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from attestkit.attester import Attester
from attestkit.backends.configfs_tsm import ConfigfsTdx
from attestkit.backends.linux.paths import KernelPaths
from attestkit.backends.tdx_ioctl import TdxIoctl
from tests.rigs import journal_upstream
from tests.rigs.emulator import PATIENCE, ROOT, Emulator, emulator, environment
from tests.rigs.journal_client import LONGEST, Order, payload_of

PENDING: Final = "runtime_event.pending"
BOOT_ID: Final = "runtime_event.boot_id"

# A kernel with register files; and one without, which the other form of the ioctl is for.
KINDS: Final[dict[str, dict[str, Any]]] = {
    "configfs_tsm": {},
    "tdx_ioctl": {"kernel": "6.12", "driver": "C'", "qgs": True},
}


@dataclass(frozen=True)
class Answer:
    """What a program said, and how it ended."""

    said: list[list[Any]]
    status: int  # -9: it was killed

    def _of(self, kind: str) -> list[list[Any]]:
        return [what for head, *what in self.said if head == kind]

    @property
    def done(self) -> list[str]:
        """Names of the events that were acknowledged."""
        return [name for name, *_ in self._of("done")]

    @property
    def times(self) -> list[tuple[str, float, float]]:
        """Of these events when they were asked for, and when acknowledged."""
        return [(name, begin, end) for name, begin, end in self._of("done")]

    @property
    def failed(self) -> list[tuple[str, str, str]]:
        """Of events that were not: name, class and text of the error."""
        return [(name, kind, text) for name, kind, text in self._of("failed")]

    @property
    def steps(self) -> list[str]:
        """The steps that it was asked to tell."""
        return [name for (name,) in self._of("step")]

    @property
    def found(self) -> list[tuple[list[str], bytes, bytes]]:
        """What it saw: names of events, RTMR3 in the quote, and RTMR3 by itself."""
        return [
            (names, bytes.fromhex(quoted), bytes.fromhex(register))
            for names, quoted, register in self._of("found")
        ]

    @property
    def killed(self) -> bool:
        """Whether it ended as it had to."""
        return self.status == -signal.SIGKILL


class Machine:
    """An emulated machine, its runtime log, and the program that starts programs on it."""

    def __init__(
        self, kind: str, emulated: Emulator, clients: "subprocess.Popen[str]", log: Path
    ) -> None:
        self.kind = kind
        self.emulator = emulated
        self.root = emulated.root
        self.log = log
        self.clients = clients

    def start_over(self) -> None:
        """Boot it, without any log."""
        self.emulator.clear_faults()
        self.emulator.reboot()
        if self.log.is_symlink():  # the emulator's own folder stays
            for file in self.log.iterdir():
                file.unlink()
        else:
            shutil.rmtree(self.log, ignore_errors=True)

    # -- programs ------------------------------------------------------------------------------

    def order(self, do: str, *names: str, **more: Any) -> Order:
        """Return an order for a program on this machine."""
        qgs = self.emulator.qgs
        return Order(do, str(self.root), str(self.log), qgs, names, **more)

    def run(self, do: str, *names: str, **more: Any) -> Answer:
        """Run one program to its end."""
        (answer,) = self.together(self.order(do, *names, **more))
        return answer

    def together(self, *orders: Order) -> list[Answer]:
        """Run programs at the same time to their ends; whoever is not killed must end well."""
        assert self.clients.stdin is not None
        assert self.clients.stdout is not None
        self.clients.stdin.write(json.dumps([order._asdict() for order in orders]) + "\n")
        self.clients.stdin.flush()
        ready, _, _ = select.select([self.clients.stdout], [], [], LONGEST + PATIENCE)
        assert ready, "the programs hang"
        answers = [Answer(**answer) for answer in json.loads(self.clients.stdout.readline())]
        for order, answer in zip(orders, answers, strict=True):
            mortal = order.kill is not None or order.stop is not None
            assert answer.status == 0 or (answer.killed and mortal), answer
        return answers

    def backend(self) -> ConfigfsTdx | TdxIoctl:
        """Return a new backend in this process."""
        paths = KernelPaths.below(self.root)._replace(runtime_log=self.log)
        if self.emulator.qgs:
            return TdxIoctl(paths=paths, qgs=self.emulator.qgs)
        return ConfigfsTdx(paths=paths)

    def upstream(self, name: str, version: int = 1) -> None:
        """Emit an event as another program does."""
        journal_upstream.emit(self.root, self.log, name, payload_of(name), version)

    # -- what is there -------------------------------------------------------------------------

    def register(self) -> bytes:
        """Return RTMR3."""
        return journal_upstream.read_register(self.root)

    def read(self, name: str) -> bytes | None:
        """Return a file beside the log, None where there is none."""
        try:
            return (self.log / name).read_bytes()
        except FileNotFoundError:
            return None

    def logged(self) -> list[str]:
        """Return the names in the log, which must replay to the register."""
        events = journal_upstream.read_events(self.log)
        assert journal_upstream.replay(digest for _, digest in events) == self.register()
        return [name for name, _ in events]

    def what_is_left(self) -> str:
        """Tell how far the event on its way got, by what a program left."""
        pending = self.read(PENDING)
        log = self.read(journal_upstream.LOG) or b""
        if pending is None:
            return "nothing on its way"
        if not pending.endswith(b"\n"):
            return "half announced"
        whole = log[: log.rfind(b"\n") + 1]
        if log != whole:
            return "half logged"
        if self.register() != replay_lines(whole):
            return "extended"
        return "logged" if log.endswith(pending) else "announced"


def replay_lines(log: bytes) -> bytes:
    """Return what RTMR3 holds if all events are ours."""
    names = [json.loads(line)["event"] for line in log.splitlines()]
    return replay_names(names)


def replay_names(names: list[str]) -> bytes:
    """Return what RTMR3 holds after these events with their own payloads."""
    return journal_upstream.replay(
        journal_upstream.digest_of(name, payload_of(name)) for name in names
    )


def names_in(tee: Attester) -> list[str]:
    """Return the names of the events in evidence, which must agree with itself."""
    quote, log = tee.quote_and_log(bytes(64))
    names = [event.name for event in log.runtime]
    assert replay_names(names) == quote.rtmrs[3]
    return names


def many(who: object, number: int) -> list[str]:
    """Return names of events."""
    return [f"{who}.{count}" for count in range(number)]


@contextlib.contextmanager
def machine_with_log(kind: str, *, at_its_place: bool = False) -> Iterator[Machine]:
    """Run a machine of one of KINDS until the end of the block.

    Args:
        kind: The backend that it is for.
        at_its_place: The runtime log is where it is on every machine, in a folder that exists;
            else in one that does not exist yet.
    """
    with emulator(**KINDS[kind]) as emulated, clients() as program:
        top = emulated.root if at_its_place else emulated.root.parent
        yield Machine(kind, emulated, program, top / "run/log/dstack")


@contextlib.contextmanager
def clients() -> Iterator["subprocess.Popen[str]"]:
    """Run the program that starts programs."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.rigs.journal_client"],
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
