"""Tests of linearizability with several processes: killed servers, and other programs.

A simulated TD belongs to one program at a time; an emulated kernel is shared by many.
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
from attestkit.serve.background_server import BackgroundServer
from attestkit.serve.endpoints import ListenAddresses
from attestkit.serve.event_loop_thread import EventLoopThread
from tests.concurrency.clients import History
from tests.concurrency.td_model import CLIENTS, TdModel, model, run
from tests.rigs.emulator import ROOT, Emulator, emulator, environment, requires_fuse
from tests.rigs.guest.system import AppFiles
from tests.serve.server import Server, refusal, running_server
from tests.thorough import unless_limited

pytestmark = pytest.mark.slow

STATE: Final = ("--state-dir", "state")


class KilledServerModel(TdModel):
    """A server process on a persistent state folder."""

    def start(self) -> str:
        """Start the server in a new folder."""
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
        """Stop the server."""
        self._running.close()
        self._top.close()

    @rule()
    def kill(self) -> None:
        """Kill the server at any time, and start another."""
        self._server.process.kill()
        self._server.process.wait()
        for client in self.clients:
            client.lose()
        self._run_again()

    @precondition(lambda self: any(client.waiting for client in self.clients))
    @rule()
    def kill_at_work(self) -> None:
        """Kill the server while requests are in flight."""
        self.kill()

    @rule()
    def end(self) -> None:
        """Stop the server gracefully: pending requests are answered."""
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
        """Check that a second program cannot open the TD, while the server continues."""
        with pytest.raises(BackendBusyError):
            Simulator(state_dir=self.folder / "state")

    @precondition(lambda self: not hasattr(self, "refused"))
    @rule()
    def serve_beside(self) -> None:
        """Check once per sequence that a second server cannot start."""
        self.refused = True
        state = str(self.folder / "state")
        with tempfile.TemporaryDirectory(prefix="ak") as other:
            options = ("--backend", "simulator", "--dir", other, "--http", "none")
            line = refusal(*options, "--state-dir", state, folder=Path(other), code=3)
            assert "another process runs the simulated TD" in line


def test_killed_server_loses_no_acknowledged_event() -> None:
    """Over any number of kills no acknowledged event is lost, and no partial one is visible.

    `make kills` kills more servers, at random moments.
    """
    run(KilledServerModel, unless_limited(4, 2), 20, shrink=False)


# A program that emits the events of a line, and prints their outcomes.
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
    """Another program that emits events, and whose responses may be pending."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._in, self._out = process.stdin, process.stdout
        assert self._out.readline() == "ready\n"
        self.pending: list[tuple[int, str]] = []

    def send(self, history: History, names: Sequence[str]) -> None:
        """Send names of events to emit, without waiting."""
        self.pending = [(history.tick(), name) for name in names]
        self._in.write(" ".join(names) + "\n")
        self._in.flush()

    def receive(self, history: History) -> None:
        """Record the outcomes."""
        for begin, name in self.pending:
            answer = self._out.readline()
            assert answer, "it has ended"
            history.emitted(begin, name, done=answer == "done\n")
        self.pending = []


class SharedMachineModel(TdModel):
    """A server on an emulated kernel that other programs use as well."""

    thread: EventLoopThread
    machine: Emulator
    emitters: Sequence[Emitter]
    app: Path
    backend: str
    count: ClassVar[int] = 0  # of events, whose names are unique over many sequences

    def start(self) -> str:
        """Start a server on the machine in its current state."""
        self._stack = contextlib.ExitStack()
        place = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="ak"))
        host = HostShared(self.app)
        self._stack.callback(host.close)
        self._tee = self._stack.enter_context(Attester(self._make(), host))
        path = Path(place, "s")
        self._stack.enter_context(
            BackgroundServer(self._tee, ListenAddresses(dstack=path), thread=self.thread)
        )
        return str(path)

    def _make(self) -> Backend:
        if self.backend == "configfs_tsm":
            return configfs_tsm.ConfigfsTsm(root=self.machine.root)
        return tdx_ioctl.TdxIoctl(root=self.machine.root, qgs=self.machine.qgs)

    def stop(self) -> None:
        """Stop the server, but not the machine."""
        self._stack.close()

    def new_name(self) -> str:
        """Return a new event name."""
        SharedMachineModel.count += 1
        return f"event-{SharedMachineModel.count}"

    @rule(number=st.integers(0, 1), count=st.integers(1, 6))
    def send_to_another_program(self, number: int, count: int) -> None:
        """Send events to another program."""
        if not self.emitters[number].pending:
            self.emitters[number].send(self.history, [self.new_name() for _ in range(count)])

    @rule(number=st.integers(0, 1))
    def receive_from_another_program(self, number: int) -> None:
        """Receive the outcomes of another program."""
        self.emitters[number].receive(self.history)

    @rule()
    def emit_from_all(self) -> None:
        """Let all idle clients and programs emit, then receive from the programs."""
        for number in range(2):
            self.send_to_another_program(number, 6)
        for number in range(CLIENTS):
            self.send_emit(number, "00")
        for number in range(2):
            self.receive_from_another_program(number)

    @rule()
    def quote_beside(self) -> None:
        """Read the log as a third program."""
        begin = self.history.tick()
        with Attester(self._make()) as tee:
            log = tee.event_log()
        self.history.saw(begin, tuple(event.name for event in log.runtime))

    @rule(fault=st.sampled_from(["ebusy:2", "slow:2ms", "rtmr_extend_fails", "rtmr_extend_lies"]))
    def inject_fault(self, fault: str) -> None:
        """Inject a fault into the next call of any program."""
        self.machine.fault(fault)

    def teardown(self) -> None:
        """Clear all faults, and receive all outcomes."""
        try:
            self.machine.clear_faults()
            for number in range(2):
                self.receive_from_another_program(number)
        finally:
            super().teardown()


@pytest.fixture
def machine() -> Iterator[Emulator]:
    """A TDX guest of Linux 6.18 with a short boot log, which is faster to check."""
    with emulator(qgs=True) as machine:
        yield machine


@pytest.mark.rig
@requires_fuse
@pytest.mark.parametrize("backend", ["configfs_tsm", "tdx_ioctl"])
def test_programs_on_emulated_kernel_are_linearizable(
    machine: Emulator, tmp_path: Path, backend: str
) -> None:
    """A server with clients, and programs that emit and read beside it, are linearizable."""
    app = AppFiles.make(tmp_path / "app").folder
    with (
        EventLoopThread() as thread,
        _emitter(machine, backend) as one,
        _emitter(machine, backend) as two,
    ):
        values = {"machine": machine, "emitters": (one, two), "backend": backend}
        shared = model(SharedMachineModel, thread=thread, app=app, **values)
        run(shared, unless_limited(12, 6), 25, shrink=False)
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
        process.stdin.close()  # ends the program
        assert process.wait(60) == 0
