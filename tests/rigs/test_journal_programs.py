"""Programs that use one runtime log at the same time: in turn, and none sees another's half event.

On the kernel's files as the emulator has them. Evidence is also made while others emit.
"""

import contextlib
import threading
from collections.abc import Iterator
from itertools import pairwise

import pytest

from attestkit.attester import Attester
from attestkit.errors import ReplayError
from attestkit.event_log.journal import Journal
from tests.rigs.emulator import PATIENCE, requires_fuse
from tests.rigs.journal_client import payload_of
from tests.rigs.journal_machine import (
    KINDS,
    Answer,
    Machine,
    machine_with_log,
    many,
    names_in,
    replay_names,
)

pytestmark = [pytest.mark.rig, pytest.mark.slow, requires_fuse]


@pytest.fixture(name="running", scope="module", params=KINDS)
def run_machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """Run a machine of each kind."""
    with machine_with_log(request.param, at_its_place=True) as machine:
        yield machine


@pytest.fixture(name="machine")
def boot_machine(running: Machine) -> Machine:
    """Boot it, with an empty folder for the log."""
    running.start_over()
    return running


def check_together(machine: Machine, answers: list[Answer], *, extra: int = 0) -> None:
    """Require that every event is there once, in an order that the programs could have seen.

    Args:
        machine: Where they ran.
        answers: What they said.
        extra: How many events may be there beside those that were acknowledged.
    """
    names = machine.logged()
    done = [name for answer in answers for name in answer.done]
    assert all(answer.failed == [] for answer in answers)
    assert len(set(names)) == len(names)
    assert set(done) <= set(names)
    assert len(names) <= len(done) + extra
    for answer in answers:
        assert [name for name in names if name in set(answer.done)] == answer.done
    times = {name: (begin, end) for answer in answers for name, begin, end in answer.times}
    latest = 0.0  # when the last of those before was asked for
    for name in names:
        if name in times:
            begin, end = times[name]
            assert end >= latest, f"{name} was done before one was asked for that is before it"
            latest = max(latest, begin)


@pytest.mark.parametrize("programs", [2, 4])
def test_programs_may_emit_at_the_same_time(machine: Machine, programs: int) -> None:
    """Each of their events is there, once, in one order; the first of them makes the log."""
    orders = [machine.order("emit", *many(who, 100)) for who in range(programs)]
    answers = machine.together(*orders)
    assert [len(answer.done) for answer in answers] == [100] * programs
    check_together(machine, answers)
    order = [name.partition(".")[0] for name in machine.logged()]
    changes = sum(one != two for one, two in pairwise(order))
    assert changes >= programs  # they did run at the same time


def test_evidence_agrees_with_itself_while_others_emit(machine: Machine) -> None:
    """Every quote is explained by the log beside it, and the logs only grow."""
    emitters = [machine.order("emit", *many(who, 60)) for who in range(2)]
    attesters = [machine.order("attest", times=30)] * 2
    answers = machine.together(*emitters, *attesters)
    check_together(machine, answers)
    names = machine.logged()
    for answer in answers[2:]:
        assert len(answer.found) == 30
        lengths = []
        for found, quoted, _ in answer.found:
            assert replay_names(found) == quoted
            assert names[: len(found)] == found
            lengths.append(len(found))
        assert lengths == sorted(lengths)
        assert len(set(lengths)) >= 3  # it was at the same time


def test_another_program_may_emit_at_the_same_time(machine: Machine) -> None:
    """The lock is shared with whoever knows the format, and evidence still agrees."""
    machine.upstream("before")
    answers = machine.together(
        machine.order("upstream", *many("theirs", 60)),
        machine.order("emit", *many("ours", 60)),
        machine.order("attest", times=10),
    )
    assert [len(answer.done) for answer in answers] == [60, 60, 0]
    for found, quoted, _ in answers[2].found:
        assert replay_names(found) == quoted
    names = machine.logged()
    assert names[0] == "before"
    assert len(names) == 121
    for answer in answers:
        assert [name for name in names if name in set(answer.done)] == answer.done


@pytest.mark.parametrize("delay", [0.0, 0.003, 0.01, 0.03])
def test_a_killed_program_holds_nobody_up(machine: Machine, delay: float) -> None:
    """Whatever it held, the others go on at once, and decide what it left."""
    answers = machine.together(
        machine.order("emit for ever", "killed", kill=(60, delay)),
        *(machine.order("emit", *many(who, 30)) for who in range(2)),
    )
    assert answers[0].killed
    assert [len(answer.done) for answer in answers[1:]] == [30, 30]
    assert machine.run("look").found
    check_together(machine, answers, extra=1)


# -- before there is a folder ----------------------------------------------------------------------


@pytest.fixture(name="without_folder")
def boot_without_folder(machine: Machine) -> Machine:
    """Boot a machine on which nobody has made the log's folder yet."""
    log = machine.root.parent / "missing/dstack"
    without = Machine(machine.kind, machine.emulator, machine.clients, log)
    without.start_over()
    return without


@pytest.mark.parametrize("quote_first", [True, False])
def test_evidence_agrees_while_another_program_emits_the_first_event(
    without_folder: Machine, monkeypatch: pytest.MonkeyPatch, *, quote_first: bool
) -> None:
    """Also where there was no folder, so no lock in it, when the evidence was begun."""
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
            assert names_in(tee) in ([], ["first"])
    finally:
        other.join()
    assert machine.logged() == ["first"]


def test_nobody_decides_on_an_event_without_the_lock(
    without_folder: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever began to attest before there was a folder leaves alone what is on its way now."""
    machine = without_folder
    extended, goes_on = threading.Event(), threading.Event()

    def step(name: str) -> None:
        if name == "after extend":
            extended.set()
            assert goes_on.wait(PATIENCE)

    emitter, backend = machine.backend(), machine.backend()
    journal = emitter.open_journal()
    assert isinstance(journal, Journal)
    journal.watch(step)
    real = backend.get_quote
    with Attester(backend) as tee, Attester(emitter) as other:
        thread = threading.Thread(target=other.emit_event, args=("first", payload_of("first")))

        def quote_before_another_emits(report_data: bytes) -> bytes:
            quote = real(report_data)
            if thread.ident is None:
                thread.start()
                extended.wait(1)  # unless it waits for us
            return quote

        monkeypatch.setattr(backend, "get_quote", quote_before_another_emits)
        timer = threading.Timer(2, goes_on.set)  # if we wait for it
        timer.start()
        with contextlib.suppress(ReplayError):  # the other test's subject
            tee.attest(b"")
        timer.cancel()
        goes_on.set()
        thread.join()
    assert machine.logged() == ["first"]
