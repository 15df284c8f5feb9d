"""Processes that share a runtime log take turns, and none sees a partial event.

They use the kernel files of the emulator. Evidence is also made while others emit.
"""

import contextlib
import threading
from collections.abc import Iterator
from itertools import pairwise

import pytest

from attestkit.attester import Attester
from attestkit.errors import ReplayError
from attestkit.event_log.journal import Journal
from tests.event_log.journal_rig import watch
from tests.rigs.emulator import PATIENCE, requires_fuse
from tests.rigs.journal.client import make_payload
from tests.rigs.journal.machine import (
    KINDS,
    Machine,
    Result,
    event_names,
    machine_with_log,
    make_names,
    replay_names,
)

pytestmark = [pytest.mark.rig, pytest.mark.slow, requires_fuse]


@pytest.fixture(name="running", scope="module", params=KINDS)
def run_machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """Run a machine of each type."""
    with machine_with_log(request.param, at_its_place=True) as machine:
        yield machine


@pytest.fixture(name="machine")
def boot_machine(running: Machine) -> Machine:
    """Boot it, with an empty directory for the log."""
    running.start_over()
    return running


def check_together(machine: Machine, results: list[Result], *, extra: int = 0) -> None:
    """Assert that each event is logged once, in an order consistent with the processes' times.

    Args:
        machine: The machine of the processes.
        results: Their results.
        extra: Number of logged events besides the acknowledged ones.
    """
    names = machine.logged()
    done = [name for result in results for name in result.done]
    assert all(result.failed == [] for result in results)
    assert len(set(names)) == len(names)
    assert set(done) <= set(names)
    assert len(names) <= len(done) + extra
    for result in results:
        assert [name for name in names if name in set(result.done)] == result.done
    times = {name: (begin, end) for result in results for name, begin, end in result.times}
    latest = 0.0  # latest request time of the previous events
    for name in names:
        if name in times:
            begin, end = times[name]
            assert end >= latest, f"{name} ended before an earlier event was requested"
            latest = max(latest, begin)


@pytest.mark.parametrize("programs", [2, 4])
def test_processes_emit_concurrently(machine: Machine, programs: int) -> None:
    """Each event is logged once, and the first process creates the log."""
    orders = [machine.order("emit", *make_names(program, 100)) for program in range(programs)]
    results = machine.together(*orders)
    assert [len(result.done) for result in results] == [100] * programs
    check_together(machine, results)
    order = [name.partition(".")[0] for name in machine.logged()]
    changes = sum(one != two for one, two in pairwise(order))
    assert changes >= programs  # they ran concurrently


def test_evidence_is_consistent_during_concurrent_events(machine: Machine) -> None:
    """Each log explains its quote, and logs only grow."""
    emitters = [machine.order("emit", *make_names(program, 60)) for program in range(2)]
    attesters = [machine.order("attest", times=30)] * 2
    results = machine.together(*emitters, *attesters)
    check_together(machine, results)
    names = machine.logged()
    for result in results[2:]:
        assert len(result.found) == 30
        lengths = []
        for found, quoted, _ in result.found:
            assert replay_names(found) == quoted
            assert names[: len(found)] == found
            lengths.append(len(found))
        assert lengths == sorted(lengths)
        assert len(set(lengths)) >= 3  # concurrent with the events


def test_foreign_program_emits_concurrently(machine: Machine) -> None:
    """The lock is shared with other implementations of the format."""
    machine.upstream("before")
    results = machine.together(
        machine.order("upstream", *make_names("theirs", 60)),
        machine.order("emit", *make_names("ours", 60)),
        machine.order("attest", times=10),
    )
    assert [len(result.done) for result in results] == [60, 60, 0]
    for found, quoted, _ in results[2].found:
        assert replay_names(found) == quoted
    names = machine.logged()
    assert names[0] == "before"
    assert len(names) == 121
    for result in results:
        assert [name for name in names if name in set(result.done)] == result.done


@pytest.mark.parametrize("delay", [0.0, 0.003, 0.01, 0.03])
def test_killed_process_does_not_block_others(machine: Machine, delay: float) -> None:
    """The others continue, and complete its event."""
    results = machine.together(
        machine.order("emit for ever", "killed", kill=(60, delay)),
        *(machine.order("emit", *make_names(program, 30)) for program in range(2)),
    )
    assert results[0].killed
    assert [len(result.done) for result in results[1:]] == [30, 30]
    assert machine.run("look").found
    check_together(machine, results, extra=1)


# -- without a log directory -----------------------------------------------------------------------


@pytest.fixture(name="without_folder")
def boot_without_folder(machine: Machine) -> Machine:
    """Boot a machine without a log directory."""
    log = machine.root.parent / "missing/dstack"
    without = Machine(machine.kind, machine.emulator, machine.clients, log)
    without.start_over()
    return without


@pytest.mark.parametrize("quote_first", [True, False])
def test_evidence_is_consistent_during_the_first_event(
    without_folder: Machine, monkeypatch: pytest.MonkeyPatch, *, quote_first: bool
) -> None:
    """The directory with the lock may be missing when the evidence is started."""
    machine = without_folder
    backend = machine.backend()
    real = backend.get_quote
    other = threading.Thread(target=machine.run, args=("emit", "first"))

    def quote_while_another_emits(report_data: bytes) -> bytes:
        before = real(report_data)
        if other.ident is None:
            other.start()
            other.join(1)  # unless it waits for us
        return before if quote_first else real(report_data)

    monkeypatch.setattr(backend, "get_quote", quote_while_another_emits)
    try:
        with Attester(backend) as tee:
            assert event_names(tee) in ([], ["first"])
    finally:
        other.join()
    assert machine.logged() == ["first"]


def test_pending_event_is_not_decided_without_the_lock(
    without_folder: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evidence started before the directory existed ignores a pending event."""
    machine = without_folder
    extended, goes_on = threading.Event(), threading.Event()

    def step(name: str) -> None:
        if name == "after extend":
            extended.set()
            assert goes_on.wait(PATIENCE)

    emitter, backend = machine.backend(), machine.backend()
    journal = emitter.open_journal()
    assert isinstance(journal, Journal)
    watch(journal, step)
    real = backend.get_quote
    with Attester(backend) as tee, Attester(emitter) as other:
        thread = threading.Thread(target=other.emit_event, args=("first", make_payload("first")))

        def quote_before_another_emits(report_data: bytes) -> bytes:
            quote = real(report_data)
            if thread.ident is None:
                thread.start()
                extended.wait(1)  # unless it waits for us
            return quote

        monkeypatch.setattr(backend, "get_quote", quote_before_another_emits)
        timer = threading.Timer(2, goes_on.set)  # if we wait for it
        timer.start()
        with contextlib.suppress(ReplayError):  # tested elsewhere
            tee.attest(report_data=bytes(64))
        timer.cancel()
        goes_on.set()
        thread.join()
    assert machine.logged() == ["first"]
