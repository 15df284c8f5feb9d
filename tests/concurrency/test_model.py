"""A TD's log through a server: whatever clients do at once, some order explains all answers.

`-m slow` takes more sequences, and `ATTESTKIT_EXAMPLES=n` takes n of each model.
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
from attestkit.serve.background_server import LoopThread, Served
from attestkit.serve.endpoints import Places
from tests.concurrency.clients import Client, History
from tests.concurrency.td_model import TdModel, model, run

SEED: Final = bytes(range(32))

# What goes wrong, and whether an event that it strikes is acknowledged all the same.
FAULTS: Final = ("rtmr_extend_fails", "rtmr_extend_lies", "quote_fails", "slow:1ms", "ebusy")


class InThread(TdModel):
    """A server in a thread of this process, which uses the TD as well."""

    thread: LoopThread
    folder = False  # whether the TD is one of a state folder

    def start(self) -> str:
        """Boot a TD and serve it."""
        self._stack = contextlib.ExitStack()
        place = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="ak"))
        state = f"{place}/state" if self.folder else None
        self.tee = self._stack.enter_context(Attester(Simulator(seed=SEED, state_dir=state)))
        path = Path(place, "s")
        self._stack.enter_context(Served(self.tee, Places(dstack=path), thread=self.thread))
        return str(path)

    def stop(self) -> None:
        """End it."""
        self._stack.close()

    @rule()
    def emit_beside(self) -> None:
        """The program itself emits."""
        begin, name, done = self.history.tick(), self.new_name(), True
        try:
            self.tee.emit_event(name, b"ours")
        except (BackendError, JournalError):
            done = False
        self.history.emitted(begin, name, done=done)

    @rule()
    def quote_beside(self) -> None:
        """The program itself asks for a quote."""
        begin = self.history.tick()
        with contextlib.suppress(BackendError):
            quote, log = self.tee.quote_and_log(bytes(64))
            log.check(quote)
            self.history.saw(begin, tuple(event.name for event in log.runtime))

    @rule(fault=st.sampled_from(FAULTS))
    def go_wrong(self, fault: str) -> None:
        """Let something go wrong, the next time or the one after."""
        backend = self.tee.backend
        assert isinstance(backend, Simulator)
        backend.faults.arm(fault)

    @rule()
    def reboot(self) -> None:
        """Boot again while requests are in flight."""
        backend = self.tee.backend
        assert isinstance(backend, Simulator)
        begin = self.history.tick()
        backend.reset()
        self.history.booted(begin, self.booted)

    def teardown(self) -> None:
        """Let nothing go wrong any more."""
        backend = self.tee.backend
        assert isinstance(backend, Simulator)
        backend.faults.clear()
        super().teardown()


@pytest.fixture(scope="module")
def thread() -> Iterator[LoopThread]:
    """A thread that runs one server after the other."""
    with LoopThread() as thread:
        yield thread


def test_clients_at_once(thread: LoopThread) -> None:
    """Four clients, the program itself, faults and reboots."""
    run(model(InThread, thread=thread), 15, 25)


@pytest.mark.slow
@pytest.mark.parametrize("folder", [False, True])
def test_clients_at_once_for_long(thread: LoopThread, *, folder: bool) -> None:
    """More and longer sequences, also where the log is a file."""
    run(model(InThread, thread=thread, folder=folder), 150, 60)


def test_an_event_that_is_not_there_is_found(thread: LoopThread) -> None:
    """A server that acknowledges an event and does not have it is told from one that does."""
    td = model(InThread, thread=thread)()
    td.tee._source.emit_event = lambda *_: None
    td.send_emit(0, "00")
    with pytest.raises(AssertionError, match="no order of these explains"):
        td.teardown()


def test_a_quote_of_before_is_found(thread: LoopThread) -> None:
    """So is one that shows a client what was, though all of it is true."""
    td = model(InThread, thread=thread)()
    old = td.tee.quote_and_log(bytes([1]) * 64)
    td.emit_beside()
    td.tee._source.quote_and_log = lambda _: old
    td.clients[0].send("GetQuote", report_data="01" * 64)
    td.receive(0)
    del td.tee._source.quote_and_log
    with pytest.raises(AssertionError, match="no order of these explains"):
        td.teardown()


def test_a_history_is_checked() -> None:
    """An acknowledged event that no quote has makes the check fail, and it tells the calls."""
    history = History()
    history.emitted(history.tick(), "lost", done=True)
    history.saw(history.tick(), ())
    with pytest.raises(AssertionError, match="lost"):
        history.check(())
    assert not Client("/nowhere", history).waiting
