"""Fleets: none lost with a worker, a bounded number under way, poison refused by itself."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import (
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from attestkit.attestation import Attestation
from attestkit.collateral.pccs_client import Response
from attestkit.errors import UsageError
from attestkit.verifier import AttestationResult, Item, Verifier
from attestkit.verifier.batch import input_queue, scheduler
from attestkit.verifier.batch.task import Outcome, Sent, Task
from tests import fleet as show
from tests.records import ROOT
from tests.serve.server import environment
from tests.verifier import parcels
from tests.verifier.parcels import NONCE, NOW, PKI

RAW = parcels.evidence().to_bytes()
POISON = b"\4\0 poison"
SPAWN = get_context("spawn")


class Mortal(Verifier):
    """A verifier that some evidence kills, as a fault in native code would."""

    def verify(self, evidence: Any, **more: Any) -> AttestationResult:
        """Judge, or die."""
        if evidence == POISON:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().verify(evidence, **more)


@dataclass(frozen=True)
class Strike:
    """What ends the process that calls it, but for all after the first: the mark is then there."""

    mark: Path

    def __call__(self, url: str) -> Response:
        """Fail as a getter: nobody fetches here."""
        raise AssertionError(url)

    def once(self) -> None:
        """Die, if nobody has yet."""
        with contextlib.suppress(FileExistsError):
            self.mark.touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)


class Struck(Verifier):
    """A verifier whose worker somebody kills in the middle, once."""

    def verify(self, evidence: Any, **more: Any) -> AttestationResult:
        """Judge, or die."""
        if evidence == RAW and isinstance(self._getter, Strike):
            self._getter.once()
        return super().verify(evidence, **more)


def mortal() -> Mortal:
    """Return a verifier that pickles."""
    return Mortal(PKI.root_der, parcels.collateral())


def kinds(found: Iterable[Outcome]) -> list[str]:
    """Return a word for each outcome: good, or the reason."""
    return [
        "good" if isinstance(each, AttestationResult) else getattr(each, "reason", "") or "format"
        for each in found
    ]


class Scripted(Executor):
    """Does a task at once, or what the script says in its place."""

    def __init__(self, *script: Callable[["Future[Any]"], object]) -> None:
        self.script = list(script)
        self.submitted = 0

    def submit(self, call: Callable[..., Any], /, *given: Any, **_more: Any) -> "Future[Any]":
        """Do it, or not."""
        self.submitted += 1
        done: Future[Any] = Future()
        if self.script:
            self.script.pop(0)(done)
        elif POISON in [item[0] for item in given[0]._items]:
            done.set_exception(BrokenExecutor("a process ended"))
        else:
            done.set_result(call(*given))
        return done


def refuse(_task: "Future[Any]") -> None:
    """Take no work."""
    raise BrokenExecutor("no more")


def close(_task: "Future[Any]") -> None:
    """Take no work, as a client whose scheduler is gone."""
    raise RuntimeError("not running")


def lose(task: "Future[Any]") -> None:
    """Lose a task, as a scheduler does that has seen it kill workers."""
    task.set_exception(ConnectionError("KilledWorker"))


def forget(task: "Future[Any]") -> None:
    """Cancel a task."""
    task.cancel()
    task.set_running_or_notify_cancel()


def nothing(task: "Future[Any]") -> None:
    """Answer with something else than the task."""
    task.set_result([])


def nonsense(task: "Future[Any]") -> None:
    """Answer with what is no outcome."""
    task.set_result([None] * 16)


def well(task: "Future[Any]") -> None:
    """Answer sixteen items."""
    task.set_result([UsageError("judged elsewhere")] * 16)


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have the pools that take another's place be here; return how many workers each has."""
    asked: list[int] = []

    def pool(_self: object, workers: int) -> Executor:
        asked.append(workers)
        return Scripted()

    monkeypatch.setattr(scheduler._Workers, "_pool", pool)
    return asked


# -- dead workers ---------------------------------------------------------------------------------


def test_a_killed_worker_loses_nothing(tmp_path: Path) -> None:
    """The process is killed in the middle: the pool is broken, and all are judged."""
    struck = Struck(PKI.root_der, parcels.collateral(), getter=Strike(tmp_path / "mark"))
    evidence = [Item(b"", None)] * 40 + [Item(RAW, NONCE)] * 60
    with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
        found = struck.verify_many(evidence, pool, now=NOW)
    assert (tmp_path / "mark").exists()
    assert kinds(found) == ["format"] * 40 + ["good"] * 60


@pytest.mark.slow
def test_poison_ends_processes_and_no_neighbour() -> None:
    """Evidence that ends every process is one refusal; those beside it in its task are judged."""
    evidence: list[Any] = [Item(RAW, NONCE)] * 40
    evidence[20] = Item(POISON, None)
    evidence[30] = (lambda: None, None)  # does not pickle
    with ProcessPoolExecutor(2, mp_context=SPAWN) as pool:
        found = judge_many(mortal(), evidence, pool)
    expected = ["good"] * 40
    expected[20] = expected[30] = "internal"
    assert kinds(found) == expected


def test_poison_is_refused_by_itself(pools: list[int]) -> None:
    """A bounded number of processes end of it: one in the pool, one with its task, two alone."""
    evidence = [Item(RAW, NONCE)] * 40
    evidence[20] = Item(POISON, None)
    found = mortal().verify_many(evidence, Scripted(), now=NOW)
    assert kinds(found) == ["good"] * 20 + ["internal"] + ["good"] * 19
    assert pools == [1] * 4  # the last judges its neighbours


@pytest.mark.parametrize("step", [lose, forget, refuse, nothing, nonsense])
@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.usefixtures("pools")
def test_an_executor_that_breaks(step: Callable[["Future[Any]"], object], at: int) -> None:
    """It loses a task, takes no more, or answers nonsense: processes of ours judge what it had."""
    evidence = [Item(RAW, NONCE), Item(RAW, b"other")] * 12
    found = mortal().verify_many(evidence, Scripted(*[well] * at, step), now=NOW)
    expected = ["good", "report_data"] * 12
    assert kinds(found)[16 * at :] == expected[16 * at :]


@pytest.mark.usefixtures("pools")
def test_an_executor_that_closes() -> None:
    """From the first on it is its owner's mistake; in the middle the rest is judged elsewhere."""
    evidence = [Item(RAW, NONCE)] * 24
    found = mortal().verify_many(evidence, Scripted(well, close), now=NOW)
    assert kinds(found)[16:] == ["good"] * 8
    with pytest.raises(UsageError, match="takes no work"):
        mortal().verify_many(evidence, Scripted(close), now=NOW)


def judge_many(verifier: Verifier, evidence: list[Any], executor: Executor) -> list[Outcome]:
    """Judge what may be no items."""
    return verifier.verify_many(evidence, executor, now=NOW)


@pytest.mark.usefixtures("pools")
def test_a_verifier_that_does_not_pickle() -> None:
    """It is its owner's mistake and told as such: no refusal of evidence, and no process begins."""
    verifier = Verifier(PKI.root_der, parcels.collateral(), clock=lambda: NOW)
    evidence = [Item(RAW, NONCE)] * 20
    pool = ProcessPoolExecutor(1, mp_context=SPAWN)
    with pool, pytest.raises(UsageError, match="does not pickle"):
        verifier.verify_many(evidence, pool, now=NOW)
    with pytest.raises(UsageError, match="does not pickle"):  # an executor we do not know
        verifier.verify_many(evidence, Scripted(lose), now=NOW)
    with ThreadPoolExecutor(1) as threads:
        assert kinds(verifier.verify_many(evidence, threads, now=NOW)) == ["good"] * 20


@pytest.mark.parametrize("step", [lose, refuse, nothing])
@pytest.mark.usefixtures("pools")
def test_an_executor_that_gives_up_is_told_once(
    step: Callable[["Future[Any]"], object], caplog: pytest.LogCaptureFixture
) -> None:
    """A warning with the cause, however many tasks it had; none where nothing broke."""
    evidence = [Item(RAW, NONCE)] * 40
    with caplog.at_level("WARNING", "attestkit.verifier"):
        mortal().verify_many(evidence, Scripted(), now=NOW)
        assert not caplog.records
        mortal().verify_many(evidence, Scripted(step, step), now=NOW)
    (record,) = caplog.records
    assert record.name == "attestkit.verifier"
    cause = {"lose": "KilledWorker", "refuse": "no more", "nothing": "something else"}
    assert cause[step.__name__] in record.getMessage()


def test_broken_threads() -> None:
    """A pool whose threads do not begin is replaced by one of threads: nothing has to pickle."""

    def fail() -> None:
        raise OSError("no thread")

    verifier = Verifier(PKI.root_der, parcels.collateral(), clock=lambda: NOW)
    with ThreadPoolExecutor(1, initializer=fail) as pool:
        found = verifier.verify_many([Item(RAW, NONCE)] * 20, pool)
    assert kinds(found) == ["good"] * 20


# -- streams --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("window", [1, 5, 40])
def test_a_bounded_number_is_under_way(window: int, *, ordered: bool) -> None:
    """Of an iterator without end no more is taken than the window beyond what was yielded."""
    taken = 0

    def endless() -> Iterator[Item]:
        nonlocal taken
        while True:
            taken += 1
            yield Item(b"", None)

    with ThreadPoolExecutor(2) as pool:
        stream = Verifier(PKI.root_der).verify_stream(
            endless(), pool, window=window, ordered=ordered, now=NOW
        )
        for given in range(1, 200):
            index, _ = next(stream)
            assert taken <= given + window + min(16, window)
            if ordered:
                assert index == given - 1


@pytest.mark.parametrize("window", [1, 3])
def test_a_writer_that_waits_for_answers(window: int) -> None:
    """With a full window no item is asked for before there is an answer: who waits gets one."""
    answered = 0

    def asking() -> Iterator[Item]:
        for number in range(12):
            assert answered > number - window
            yield Item(b"", None)

    with ThreadPoolExecutor(1) as pool:
        stream = Verifier(PKI.root_der).verify_stream(asking(), pool, window=window, now=NOW)
        for _ in stream:
            answered += 1
    assert answered == 12


def test_bytes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large evidence makes small tasks, and few of them are under way."""
    monkeypatch.setattr(scheduler, "_CHUNK_BYTES", 100)
    monkeypatch.setattr(scheduler, "_BYTES", 250)
    executor = Scripted()
    found = Verifier(PKI.root_der).verify_many([Item(bytes(60), None)] * 20, executor, now=NOW)
    assert len(found) == 20
    assert executor.submitted == 10


@pytest.mark.parametrize("kind", ["response", "attestation", "quote", "bundle"])
def test_bytes_of_objects_are_bounded(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object counts with the bytes of its quote, log and configuration, as one of bytes does."""
    raw = parcels.evidence()
    assert raw.quote is not None
    large = {"quote": raw.quote.raw.hex(), "event_log": "[]", "vm_config": " " * 60_000}
    evidence: Any = {
        "bundle": b"",
        "response": Attestation.from_agent_response(large),
        "attestation": raw,
        "quote": raw.quote,
    }[kind]
    collateral = parcels.collateral() if kind == "bundle" else None
    least = {"bundle": 4000, "response": 60_000, "attestation": len(RAW) // 2, "quote": 4000}[kind]
    item = Item(evidence, None, collateral)
    size = input_queue.size_of(item)
    assert least <= size < 2 * len(repr(large)) + 100_000
    monkeypatch.setattr(scheduler, "_CHUNK_BYTES", size + 1)
    executor = Scripted()
    found = Verifier(PKI.root_der).verify_many([item] * 20, executor, now=NOW)
    assert len(found) == 20
    assert executor.submitted == 10


@pytest.mark.parametrize("window", [0, -1, 1_000_001, 2.5, None])
def test_a_window_that_is_none(window: Any) -> None:
    """It is told at the call, not at the first outcome."""
    with pytest.raises(UsageError, match="window"):
        Verifier(PKI.root_der).verify_stream([], window=window)


def test_an_iterator_that_fails() -> None:
    """Its exception is the caller's own."""

    def failing() -> Iterator[Item]:
        yield Item(b"", None)
        raise KeyError("mine")

    with ThreadPoolExecutor(1) as pool, pytest.raises(KeyError, match="mine"):
        list(Verifier(PKI.root_der).verify_stream(failing(), pool, now=NOW))


def test_every_executor_finds_the_same() -> None:
    """Here, threads: a stream has each place once, with what `verify_many` says of it."""
    evidence = list(show.items(40, 20))
    here = [show.told(each) for each in show.judge().verify_many(evidence, now=NOW)]
    show.check(show.judge().verify_many(evidence, now=NOW), 20)
    with ThreadPoolExecutor(2) as pool:
        stream = show.judge().verify_stream(evidence, pool, window=7, now=NOW)
        found = {index: show.told(outcome) for index, outcome in stream}
    assert [found[index] for index in range(40)] == here


def test_a_process_that_was_killed_is_gone() -> None:
    """The record counts it by that: also before anybody has asked for its end."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        assert show.is_running(process.pid)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not show.is_running(process.pid)
    assert not show.is_running(process.pid)


# -- dask -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_cluster_that_loses_a_worker() -> None:
    """Of 1,000 pieces exactly the 100 altered ones are refused, each for its reason, in order."""
    pytest.importorskip("distributed")
    done = subprocess.run(
        [sys.executable, "-m", "tests.fleet", "--pieces", "1000"],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "100 refused" in done.stdout
    assert done.stderr == ""  # no word of the cluster's


def test_dask_is_loaded_by_who_asks_for_it() -> None:
    """Neither the library nor the verifier loads it, or pyarrow."""
    script = (
        "import sys, attestkit.verifier, attestkit.cli.commands.verify_many\n"
        "print(sorted({'dask', 'distributed', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, check=True
    )
    assert done.stdout == b"[]\n"


def test_a_task_has_a_name_of_its_own() -> None:
    """Dask takes two tasks of one name for one: no evidence chooses the name of its task."""
    task = Task(Sent(mortal()), [Item(RAW, NONCE)], NOW)
    assert task.__dask_tokenize__() != task.__dask_tokenize__()


@pytest.mark.slow
@pytest.mark.filterwarnings(show.DASKS_OWN)
def test_poison_on_a_cluster() -> None:
    """Dask gives a task up that has ended four workers: the poison in it is refused, alone."""
    pytest.importorskip("distributed")
    evidence = [Item(RAW, NONCE)] * 40
    evidence[20] = Item(POISON, None)
    with show.cluster() as client:
        found = mortal().verify_many(evidence, client.get_executor(), now=NOW)
    assert kinds(found) == ["good"] * 20 + ["internal"] + ["good"] * 19


@pytest.mark.slow
@pytest.mark.filterwarnings(show.DASKS_OWN)
def test_the_command_on_a_cluster(tmp_path: Path) -> None:
    """Its lines are those of one process, and stderr has no word of the cluster's."""
    pytest.importorskip("distributed")
    (tmp_path / "root").write_bytes(PKI.root_der)
    parcels.collateral().save(tmp_path / "collateral")
    lines = [
        json.dumps(
            {"id": number, "evidence": RAW.hex(), "report_data": (b"x", NONCE)[number % 2].hex()}
        )
        for number in range(60)
    ]
    (tmp_path / "lines").write_text("\n".join(lines))
    words = ["--trust-anchor", str(tmp_path / "root"), "--at", NOW.isoformat()]
    words += ["--collateral", str(tmp_path / "collateral"), str(tmp_path / "lines")]
    with show.cluster() as client:
        address = client.scheduler.address
        told = [
            _verify_many(*words, *more) for more in (("--scheduler", address), ("--workers", "0"))
        ]
    assert told[0] == told[1]
    assert told[0][0] == 4
    assert told[0][2] == b"attestkit: 30 of 60 not accepted\n"


def _verify_many(*words: str) -> tuple[int, bytes, bytes]:
    done = subprocess.run(
        [sys.executable, "-m", "attestkit", "verify-many", *words],
        env=environment(),
        capture_output=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr
