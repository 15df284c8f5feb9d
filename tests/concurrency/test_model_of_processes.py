"""The same with programs: a server that is killed and started again, and others beside it.

On the simulator the TD is one program's at a time; on the emulated kernel any number share it.
"""

import contextlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Final

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from attestkit.attester import Attester
from attestkit.backends import configfs_tsm, tdx_ioctl
from attestkit.backends.base import Backend
from attestkit.backends.simulator import Simulator
from attestkit.dstack.host_shared_folder import HostShared
from attestkit.errors import BackendBusyError
from attestkit.serve.background_server import LoopThread, Served
from attestkit.serve.endpoints import Places
from tests.concurrency.clients import History
from tests.concurrency.td_model import CLIENTS, TdModel, model, run
from tests.rigs.emulator import ROOT, Emulator, emulator, environment, requires_fuse
from tests.rigs.system import AppFiles
from tests.serve.server import Server, refusal, running_server

pytestmark = pytest.mark.slow

STATE: Final = ("--state-dir", "state")


class Killed(TdModel):
    """A server process on a state folder, which outlives it."""

    def start(self) -> str:
        """Start it in a new folder."""
        self._top = contextlib.ExitStack()
        self.folder = Path(self._top.enter_context(tempfile.TemporaryDirectory(prefix="ak")))
        self._running = contextlib.ExitStack()
        self._server: Server = self._run()
        return self._server.dstack

    def _run(self) -> Server:
        return self._running.enter_context(running_server(*STATE, folder=self.folder))

    def _run_again(self) -> None:
        self._running.close()
        self._server = self._run()
        assert self._server.dstack == self.path

    def stop(self) -> None:
        """End it."""
        self._running.close()
        self._top.close()

    @rule()
    def kill(self) -> None:
        """End it in the middle of whatever it does, and start another."""
        self._server.process.kill()
        self._server.process.wait()
        for client in self.clients:
            client.lose()
        self._run_again()

    @precondition(lambda self: any(client.waiting for client in self.clients))
    @rule()
    def kill_at_work(self) -> None:
        """Do so while it has requests."""
        self.kill()

    @rule()
    def end(self) -> None:
        """End it in good order: whatever was sent before is answered."""
        self._server.process.send_signal(signal.SIGTERM)
        for client in self.clients:
            if client.waiting:
                client.receive()
            client.close()
        assert self._server.process.wait(60) == 0
        self._server.check_log()
        self._run_again()

    @rule()
    def open_beside(self) -> None:
        """Refuse a second program the TD: the server goes on."""
        with pytest.raises(BackendBusyError):
            Simulator(state_dir=self.folder / "state")

    @precondition(lambda self: not hasattr(self, "refused"))
    @rule()
    def serve_beside(self) -> None:
        """Refuse a second server, once in each sequence, which is enough of a slow thing."""
        self.refused = True
        state = str(self.folder / "state")
        with tempfile.TemporaryDirectory(prefix="ak") as other:
            options = ("--backend", "simulator", "--dir", other, "--http", "none")
            line = refusal(*options, "--state-dir", state, folder=Path(other), code=3)
            assert "another program runs the simulated TD" in line


def test_a_server_that_is_killed() -> None:
    """Nothing acknowledged is lost, and nothing half done is seen, over any number of kills."""
    run(Killed, 8, 20, shrink=False)


# A program that emits: it says when it is ready, and what came of each name of a line.
EMITTER: Final = """
import sys
import attestkit
from attestkit.errors import AttestKitError

qgs = {"qgs": sys.argv[3]} if sys.argv[1] == "tdx_ioctl" else {}
with attestkit.open(sys.argv[1], root=sys.argv[2], **qgs) as tee:
    print("ready", flush=True)
    for line in sys.stdin:
        for name in line.split():
            try:
                tee.emit_event(name, b"another program")
                print("done", flush=True)
            except AttestKitError as error:
                print("refused", type(error).__name__, flush=True)
"""


class Emitter:
    """Another program that emits events, and whose answers may be left waiting."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._in, self._out = process.stdin, process.stdout
        assert self._out.readline() == "ready\n"
        self.asked: list[tuple[int, str]] = []

    def send(self, history: History, names: Sequence[str]) -> None:
        """Have it emit, one after the other, and do not wait."""
        self.asked = [(history.tick(), name) for name in names]
        self._in.write(" ".join(names) + "\n")
        self._in.flush()

    def receive(self, history: History) -> None:
        """Write down what was done."""
        for begin, name in self.asked:
            answer = self._out.readline()
            assert answer, "it has ended"
            history.emitted(begin, name, done=answer == "done\n")
        self.asked = []


class Shared(TdModel):
    """A server on an emulated kernel that other programs use as well."""

    thread: LoopThread
    machine: Emulator
    emitters: Sequence[Emitter]
    app: Path
    backend: str
    count: ClassVar[int] = 0  # of events, whose names stay over many sequences

    def start(self) -> str:
        """Serve the machine, as it is by now."""
        self._stack = contextlib.ExitStack()
        place = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="ak"))
        host = HostShared(self.app)
        self._stack.callback(host.close)
        self._tee = self._stack.enter_context(Attester(self._make(), host))
        path = Path(place, "s")
        self._stack.enter_context(Served(self._tee, Places(dstack=path), thread=self.thread))
        return str(path)

    def _make(self) -> Backend:
        if self.backend == "configfs_tsm":
            return configfs_tsm.ConfigfsTsm(root=self.machine.root)
        return tdx_ioctl.TdxIoctl(root=self.machine.root, qgs=self.machine.qgs)

    def stop(self) -> None:
        """End the server; the machine goes on."""
        self._stack.close()

    def new_name(self) -> str:
        """Return the name of an event that was never there."""
        Shared.count += 1
        return f"event-{Shared.count}"

    @rule(who=st.integers(0, 1), count=st.integers(1, 6))
    def send_to_another_program(self, who: int, count: int) -> None:
        """Have it emit, and do not wait."""
        if not self.emitters[who].asked:
            self.emitters[who].send(self.history, [self.new_name() for _ in range(count)])

    @rule(who=st.integers(0, 1))
    def hear_from_another_program(self, who: int) -> None:
        """Hear what came of it."""
        self.emitters[who].receive(self.history)

    @rule()
    def all_at_once(self) -> None:
        """Have everybody emit who is not at it yet, then hear from the programs."""
        for who in range(2):
            self.send_to_another_program(who, 6)
        for who in range(CLIENTS):
            self.send_emit(who, "00")
        for who in range(2):
            self.hear_from_another_program(who)

    @rule()
    def quote_beside(self) -> None:
        """Read the log, as a third program would."""
        begin = self.history.tick()
        with Attester(self._make()) as tee:
            log = tee.event_log()
        self.history.saw(begin, tuple(event.name for event in log.runtime))

    @rule(fault=st.sampled_from(["ebusy:2", "slow:2ms", "rtmr_extend_fails", "rtmr_extend_lies"]))
    def go_wrong(self, fault: str) -> None:
        """Let something go wrong, for whoever comes next."""
        self.machine.fault(fault)

    def teardown(self) -> None:
        """Let nothing go wrong any more, and hear from everybody."""
        try:
            self.machine.clear_faults()
            for who in range(2):
                self.hear_from_another_program(who)
        finally:
            super().teardown()


@pytest.fixture
def machine() -> Iterator[Emulator]:
    """A TDX guest of Linux 6.18, with a short log: one of thousands takes long to check."""
    with emulator(qgs=True) as machine:
        yield machine


@pytest.mark.rig
@requires_fuse
@pytest.mark.parametrize("backend", ["configfs_tsm", "tdx_ioctl"])
def test_programs_on_an_emulated_kernel(machine: Emulator, tmp_path: Path, backend: str) -> None:
    """A server with its clients, and programs that emit and read beside it."""
    app = AppFiles.make(tmp_path / "app").folder
    with (
        LoopThread() as thread,
        _emitter(machine, backend) as one,
        _emitter(machine, backend) as two,
    ):
        values = {"machine": machine, "emitters": (one, two), "backend": backend}
        run(model(Shared, thread=thread, app=app, **values), 12, 25, shrink=False)
    assert machine.entries() == []


@contextlib.contextmanager
def _emitter(machine: Emulator, backend: str) -> Iterator[Emitter]:
    words = [sys.executable, "-c", EMITTER, backend, str(machine.root), str(machine.qgs)]
    with subprocess.Popen(
        words,
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield Emitter(process)
        assert process.stdin is not None
        process.stdin.close()  # which ends it
        assert process.wait(60) == 0
