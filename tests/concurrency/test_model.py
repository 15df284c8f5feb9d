"""Tests of a TD's event log behind a server: concurrent calls are linearizable.

`-m slow` takes more sequences, and `make interleave` by `ATTESTKIT_EXAMPLES=n` n of each model.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import rule

from attestkit.attester import Attester
from attestkit.backends.simulator import Simulator
from attestkit.errors import BackendError, JournalError
from attestkit.serve.background_server import BackgroundServer
from attestkit.serve.endpoints import ListenAddresses
from attestkit.serve.event_loop_thread import EventLoopThread
from tests.concurrency.td_model import TdModel, model, run
from tests.thorough import unless_limited

SEED: Final = bytes(range(32))

# Faults; an event that one affects may be acknowledged or not.
FAULTS: Final = ("rtmr_extend_fails", "rtmr_extend_lies", "quote_fails", "slow:1ms", "ebusy")


class ThreadedServerModel(TdModel):
    """A server in a thread of this process, which uses the TD as well."""

    thread: EventLoopThread
    folder = False  # whether the TD has a state folder

    def start(self) -> str:
        """Boot a TD and serve it."""
        self._stack = contextlib.ExitStack()
        place = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="ak"))
        state = f"{place}/state" if self.folder else None
        self.tee = self._stack.enter_context(Attester(Simulator(seed=SEED, state_dir=state)))
        path = Path(place, "s")
        self._stack.enter_context(
            BackgroundServer(self.tee, ListenAddresses(dstack=path), thread=self.thread)
        )
        return str(path)

    def stop(self) -> None:
        """Stop the server."""
        self._stack.close()

    @rule()
    def emit_beside(self) -> None:
        """Emit an event in this process."""
        begin, name, done = self.history.tick(), self.new_name(), True
        try:
            self.tee.emit_event(name, b"ours")
        except (BackendError, JournalError):
            done = False
        self.history.emitted(begin, name, done=done)

    @rule()
    def quote_beside(self) -> None:
        """Get a quote in this process."""
        begin = self.history.tick()
        with contextlib.suppress(BackendError):
            quote, log = self.tee.evidence_source.quote_and_log(bytes(64))
            log.check(quote)
            self.history.saw(begin, tuple(event.name for event in log.runtime))

    @rule(fault=st.sampled_from(FAULTS))
    def inject_fault(self, fault: str) -> None:
        """Inject a fault into the next call or the one after it."""
        backend = self.tee.backend
        assert isinstance(backend, Simulator)
        backend.faults.arm(fault)

    @rule()
    def reboot(self) -> None:
        """Reboot while requests are in flight."""
        backend = self.tee.backend
        assert isinstance(backend, Simulator)
        begin = self.history.tick()
        backend.reset()
        self.history.booted(begin, self.booted)

    def teardown(self) -> None:
        """Clear all faults."""
        backend = self.tee.backend
        assert isinstance(backend, Simulator)
        backend.faults.clear()
        super().teardown()


@pytest.fixture(scope="module")
def thread() -> Iterator[EventLoopThread]:
    """A thread that runs one server after another."""
    with EventLoopThread() as thread:
        yield thread


def test_server_with_concurrent_clients_is_linearizable(thread: EventLoopThread) -> None:
    """Four clients, the process itself, faults and reboots are linearizable."""
    run(model(ThreadedServerModel, thread=thread), 15, 25)


@pytest.mark.slow
@pytest.mark.parametrize("folder", [False, True])
def test_server_with_concurrent_clients_is_linearizable_in_long_runs(
    thread: EventLoopThread, *, folder: bool
) -> None:
    """More and longer sequences are linearizable, also with the log in a file."""
    run(model(ThreadedServerModel, thread=thread, folder=folder), unless_limited(75, 35), 60)


def test_model_detects_missing_event(thread: EventLoopThread) -> None:
    """An acknowledged event that is missing from the log fails the check."""
    td = model(ThreadedServerModel, thread=thread)()
    td.tee._source.emit_event = lambda *_: None
    td.send_emit(0, "00")
    with pytest.raises(AssertionError, match="no order of these explains"):
        td.teardown()


def test_model_detects_stale_quote(thread: EventLoopThread) -> None:
    """A correct but stale quote fails the check."""
    td = model(ThreadedServerModel, thread=thread)()
    old = td.tee.evidence_source.quote_and_log(bytes([1]) * 64)
    td.emit_beside()
    td.tee._source.quote_and_log = lambda _: old
    td.clients[0].send("GetQuote", report_data="01" * 64)
    td.receive(0)
    del td.tee._source.quote_and_log
    with pytest.raises(AssertionError, match="no order of these explains"):
        td.teardown()
