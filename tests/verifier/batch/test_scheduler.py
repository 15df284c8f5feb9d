"""Tests of the batch scheduler: retries after worker deaths, bounds, and fatal items."""

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
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from attestkit.attestation import Attestation
from attestkit.errors import FormatError, UsageError
from attestkit.gpu.endorsements import GpuEndorsements
from attestkit.verifier import AttestationResult, EvidenceBundle, VerificationItem, Verifier
from attestkit.verifier.batch import scheduler
from attestkit.verifier.batch import task as batch_task
from attestkit.verifier.batch.task import BatchTask, Outcome, SharedVerifier
from tests.long_runs import fleet
from tests.long_runs.records import ROOT
from tests.raising import raises
from tests.runner.cases import every_case
from tests.serve.server import environment
from tests.thorough import unless_limited
from tests.verifier.platforms import intel
from tests.verifier.platforms.intel import NONCE, NOW, PKI

RAW = intel.evidence().to_bytes()
POISON = b"\4\0 poison"
SPAWN = get_context("spawn")


class KillableVerifier(Verifier):
    """A verifier whose process dies on POISON, as after a fault in native code."""

    def verify(self, evidence: Any, **more: Any) -> AttestationResult:
        """Verify, or kill the process."""
        if evidence == POISON:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().verify(evidence, **more)


def create_killable_verifier() -> KillableVerifier:
    """Return a verifier that pickles."""
    return KillableVerifier(trust_anchor=PKI.root_der, collateral=intel.collateral())


def describe_outcomes(found: Iterable[Outcome]) -> list[str]:
    """Return "good", "format" or the reason of each outcome."""
    return [
        "good"
        if isinstance(each, AttestationResult)
        else "format"
        if isinstance(each, FormatError)
        else each.reason
        for each in found
    ]


class ScriptedExecutor(Executor):
    """An executor that runs a task at once, or the next step of its script."""

    def __init__(self, *script: Callable[["Future[Any]"], object]) -> None:
        self.script = list(script)
        self.submitted = 0

    def submit(self, call: Callable[..., Any], /, *arguments: Any, **_more: Any) -> "Future[Any]":
        """Run the task, or the next step of the script."""
        self.submitted += 1
        completed: Future[Any] = Future()
        if self.script:
            self.script.pop(0)(completed)
        elif POISON in [item.evidence for item in arguments[0]._items]:
            completed.set_exception(BrokenExecutor("a process ended"))
        else:
            completed.set_result(call(*arguments))
        return completed


def refuse(_task: "Future[Any]") -> None:
    """Reject the task."""
    raise BrokenExecutor("no more")


def close(_task: "Future[Any]") -> None:
    """Reject the task, as a client without its scheduler does."""
    raise RuntimeError("not running")


def lose(task: "Future[Any]") -> None:
    """Fail the task, as a scheduler does after it killed several workers."""
    task.set_exception(ConnectionError("KilledWorker"))


def cancel(task: "Future[Any]") -> None:
    """Cancel a task."""
    task.cancel()
    task.set_running_or_notify_cancel()


def answer_empty_list(task: "Future[Any]") -> None:
    """Return a result that is not of this task."""
    task.set_result([])


def answer_wrong_type(task: "Future[Any]") -> None:
    """Return objects that are not outcomes."""
    task.set_result([None] * 16)


def answer_16_items(task: "Future[Any]") -> None:
    """Return 16 outcomes."""
    task.set_result([UsageError("verified elsewhere", reason="wrong_value")] * 16)


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Run replacement pools in this process, and return their numbers of workers."""
    worker_counts: list[int] = []

    def pool(_self: object, workers: int) -> Executor:
        worker_counts.append(workers)
        return ScriptedExecutor()

    monkeypatch.setattr(scheduler._Workers, "_pool", pool)
    return worker_counts


# -- dead workers ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_batch_fatal_item_is_rejected_alone_in_processes() -> None:
    """Only an item that kills every process is rejected; others of its task are verified."""
    evidence: list[Any] = [VerificationItem(RAW, report_data=NONCE)] * 40
    evidence[20] = VerificationItem(POISON, report_data=None)
    evidence[30] = (lambda: None, None)  # does not pickle
    with ProcessPoolExecutor(2, mp_context=SPAWN) as pool:
        found = create_killable_verifier().verify_many(evidence, pool, now=NOW)
    expected = ["good"] * 40
    expected[20] = expected[30] = "internal"
    assert describe_outcomes(found) == expected


def test_batch_fatal_item_kills_bounded_number_of_processes(pools: list[int]) -> None:
    """A fatal item kills one process of the pool, one with its task, and two alone."""
    evidence = [VerificationItem(RAW, report_data=NONCE)] * 40
    evidence[20] = VerificationItem(POISON, report_data=None)
    found = create_killable_verifier().verify_many(evidence, ScriptedExecutor(), now=NOW)
    assert describe_outcomes(found) == ["good"] * 20 + ["internal"] + ["good"] * 19
    assert pools == [1] * 4  # the last one verifies the other items


@pytest.mark.parametrize("step", [lose, cancel, refuse, answer_empty_list, answer_wrong_type])
@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.usefixtures("pools")
def test_batch_broken_executor_is_replaced(
    step: Callable[["Future[Any]"], object], at: int
) -> None:
    """Items of an executor that fails tasks are verified by attestkit's own pool."""
    evidence = [
        VerificationItem(RAW, report_data=NONCE),
        VerificationItem(RAW, report_data=b"other"),
    ] * 12
    found = create_killable_verifier().verify_many(
        evidence, ScriptedExecutor(*[answer_16_items] * at, step), now=NOW
    )
    expected = ["good", "report_data"] * 12
    assert describe_outcomes(found)[16 * at :] == expected[16 * at :]


@pytest.mark.usefixtures("pools")
def test_batch_executor_closed_later_is_replaced() -> None:
    """An executor closed from the start raises UsageError; one closed later is replaced."""
    evidence = [VerificationItem(RAW, report_data=NONCE)] * 24
    found = create_killable_verifier().verify_many(
        evidence, ScriptedExecutor(answer_16_items, close), now=NOW
    )
    assert describe_outcomes(found)[16:] == ["good"] * 8
    with raises(UsageError, "closed"):
        create_killable_verifier().verify_many(evidence, ScriptedExecutor(close), now=NOW)


@pytest.mark.usefixtures("pools")
def test_batch_unpicklable_verifier_raises_usage_error() -> None:
    """A verifier that cannot be pickled raises UsageError for processes, and works with threads."""
    verifier = Verifier(trust_anchor=PKI.root_der, collateral=intel.collateral(), clock=lambda: NOW)
    evidence = [VerificationItem(RAW, report_data=NONCE)] * 20
    pool = ProcessPoolExecutor(1, mp_context=SPAWN)
    with pool, raises(UsageError, "not_picklable"):
        verifier.verify_many(evidence, pool, now=NOW)
    with raises(UsageError, "not_picklable"):  # an executor of unknown type
        verifier.verify_many(evidence, ScriptedExecutor(lose), now=NOW)
    with ThreadPoolExecutor(1) as threads:
        assert describe_outcomes(verifier.verify_many(evidence, threads, now=NOW)) == ["good"] * 20


@pytest.mark.parametrize("step", [lose, refuse, answer_empty_list])
@pytest.mark.usefixtures("pools")
def test_batch_broken_executor_is_logged_once(
    step: Callable[["Future[Any]"], object], caplog: pytest.LogCaptureFixture
) -> None:
    """A broken executor is logged once, as a warning with its cause."""
    evidence = [VerificationItem(RAW, report_data=NONCE)] * 40
    with caplog.at_level("WARNING", "attestkit.verifier"):
        create_killable_verifier().verify_many(evidence, ScriptedExecutor(), now=NOW)
        assert not caplog.records
        create_killable_verifier().verify_many(evidence, ScriptedExecutor(step, step), now=NOW)
    (record,) = caplog.records
    assert record.name == "attestkit.verifier"
    cause = {
        "lose": "KilledWorker",
        "refuse": "no more",
        "answer_empty_list": "result of the submitted task",
    }
    assert cause[step.__name__] in record.getMessage()


def test_batch_broken_thread_pool_is_replaced_by_threads() -> None:
    """A thread pool whose threads do not start is replaced by threads: nothing must pickle."""

    def fail() -> None:
        raise OSError("no thread")

    verifier = Verifier(trust_anchor=PKI.root_der, collateral=intel.collateral(), clock=lambda: NOW)
    with ThreadPoolExecutor(1, initializer=fail) as pool:
        found = verifier.verify_many([VerificationItem(RAW, report_data=NONCE)] * 20, pool)
    assert describe_outcomes(found) == ["good"] * 20


# -- streams --------------------------------------------------------------------------------------


def test_batch_bounds_bytes_of_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large evidence makes small tasks, of which few run at once."""
    monkeypatch.setattr(scheduler, "_CHUNK_BYTES", 100)
    monkeypatch.setattr(scheduler, "_BYTES", 250)
    executor = ScriptedExecutor()
    found = Verifier(trust_anchor=PKI.root_der).verify_many(
        [VerificationItem(bytes(60), report_data=None)] * 20, executor, now=NOW
    )
    assert len(found) == 20
    assert executor.submitted == 10


@every_case(("workers", "tasks"), [(None, 63), (2, 32), (8, 32), (64, 63)])
def test_batch_submits_larger_tasks_to_few_workers(workers: int | None, tasks: int) -> None:
    """Tasks have 32 items if each worker gets four of them, otherwise 16."""
    executor: Any = ScriptedExecutor()
    if workers is not None:
        executor._max_workers = workers
    items = [VerificationItem(b"", report_data=None)] * 1000
    assert len(Verifier(trust_anchor=PKI.root_der).verify_many(items, executor, now=NOW)) == 1000
    assert executor.submitted == tasks


@pytest.mark.parametrize("kind", ["response", "attestation", "quote", "bundle"])
def test_batch_bounds_bytes_of_objects(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects count with the bytes of their quote, log and configuration."""
    raw = intel.evidence()
    assert raw.quote is not None
    large = {"quote": raw.quote.raw.hex(), "event_log": "[]", "vm_config": " " * 60_000}
    evidence: Any = {
        "bundle": b"",
        "response": Attestation.from_agent_response(large),
        "attestation": raw,
        "quote": raw.quote,
    }[kind]
    collateral = intel.collateral() if kind == "bundle" else None
    minimum = {"bundle": 4000, "response": 60_000, "attestation": len(RAW) // 2, "quote": 4000}[
        kind
    ]
    item = VerificationItem(evidence, report_data=None, collateral=collateral)
    size = batch_task.size_of(item)
    assert minimum <= size < 2 * len(repr(large)) + 100_000
    monkeypatch.setattr(scheduler, "_CHUNK_BYTES", size + 1)
    executor = ScriptedExecutor()
    found = Verifier(trust_anchor=PKI.root_der).verify_many([item] * 20, executor, now=NOW)
    assert len(found) == 20
    assert executor.submitted == 10


def test_batch_counts_bytes_that_a_bundle_adds() -> None:
    """Certificates, CRLs, evidence and endorsements of GPUs count; evidence of the CPU once."""
    endorsements = GpuEndorsements({"rim": bytes(1000)}, (bytes(2000),), bytes(4000), (b"{}",))
    bundle = EvidenceBundle(
        bytes(10), None, NOW, NONCE, (bytes(100),), (bytes(200),), bytes(400), endorsements
    )
    item = VerificationItem(
        bundle.evidence, report_data=None, gpu=bundle.gpu_evidence, bundle=bundle
    )
    assert batch_task.size_of(item) == 7712


@every_case("window", [0, -1, 1_000_001, 2.5, None])
def test_verify_stream_rejects_invalid_window(window: Any) -> None:
    """An invalid window raises UsageError at the call, not at the first outcome."""
    with raises(UsageError, "out_of_range"):
        Verifier(trust_anchor=PKI.root_der).verify_stream([], window=window)


def test_stream_outcomes_equal_verify_many() -> None:
    """A stream on threads yields each place once, with the same outcome as `verify_many`."""
    evidence = list(fleet.items(40, 20))
    expected = [fleet.summary_of(each) for each in fleet.verifier().verify_many(evidence, now=NOW)]
    fleet.check(fleet.verifier().verify_many(evidence, now=NOW), 20)
    with ThreadPoolExecutor(2) as pool:
        stream = fleet.verifier().verify_stream(evidence, pool, window=7, now=NOW)
        found = {index: fleet.summary_of(outcome) for index, outcome in stream}
    assert [found[index] for index in range(40)] == expected


# -- dask -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_dask_cluster_losing_worker_verifies_all() -> None:
    """On a cluster that loses a worker, exactly the 100 altered items are rejected."""
    pytest.importorskip("distributed")
    pieces = unless_limited(1000, 400)
    completed = subprocess.run(
        [sys.executable, "-m", "tests.long_runs.fleet", "--pieces", str(pieces)],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    assert "100 refused" in completed.stdout
    assert completed.stderr == ""  # nothing logged by dask


def test_dask_and_pyarrow_are_imported_lazily() -> None:
    """Importing the verifier imports neither dask nor pyarrow."""
    script = (
        "import sys, attestkit.verifier, attestkit.cli.commands.verify_many\n"
        "print(sorted({'dask', 'distributed', 'pyarrow'} & set(sys.modules)))"
    )
    completed = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, check=True
    )
    assert completed.stdout == b"[]\n"


def test_batch_task_has_unique_dask_token() -> None:
    """Dask merges tasks with equal tokens, so tokens are unique and independent of evidence."""
    task = BatchTask(
        SharedVerifier(create_killable_verifier()), [VerificationItem(RAW, report_data=NONCE)], NOW
    )
    assert task.__dask_tokenize__() != task.__dask_tokenize__()


@pytest.fixture(scope="module")
def dask_client() -> Iterator[Any]:
    """Start a cluster, whose processes take seconds to import what they need."""
    pytest.importorskip("distributed")
    with fleet.cluster(retries=1) as client:
        yield client


@pytest.mark.slow
@pytest.mark.filterwarnings(fleet.DASK_WARNING)
def test_verify_many_command_on_dask_cluster(tmp_path: Path, dask_client: Any) -> None:
    """The output equals that of one process, and stderr has no dask messages."""
    (tmp_path / "root").write_bytes(PKI.root_der)
    intel.collateral().save(tmp_path / "collateral")
    lines = [
        json.dumps(
            {"id": number, "evidence": RAW.hex(), "report_data": (b"x", NONCE)[number % 2].hex()}
        )
        for number in range(60)
    ]
    (tmp_path / "lines").write_text("\n".join(lines))
    arguments = ["--trust-anchor", str(tmp_path / "root"), "--at", NOW.isoformat()]
    arguments += ["--collateral", str(tmp_path / "collateral"), str(tmp_path / "lines")]
    outputs = [
        _verify_many(*arguments, *more)
        for more in (("--scheduler", dask_client.scheduler.address), ("--workers", "0"))
    ]
    assert outputs[0] == outputs[1]
    assert outputs[0][0] == 4
    assert outputs[0][2] == b"attestkit: 30 of 60 not accepted\n"


@pytest.mark.slow
@pytest.mark.filterwarnings(fleet.DASK_WARNING)
def test_dask_cluster_rejects_fatal_item_alone(dask_client: Any) -> None:
    """After two killed workers dask fails the task, and only the fatal item is rejected."""
    evidence = [VerificationItem(RAW, report_data=NONCE)] * 40
    evidence[20] = VerificationItem(POISON, report_data=None)
    executor = dask_client.get_executor()
    found = create_killable_verifier().verify_many(evidence, executor, now=NOW)
    assert describe_outcomes(found) == ["good"] * 20 + ["internal"] + ["good"] * 19


def _verify_many(*arguments: str) -> tuple[int, bytes, bytes]:
    completed = subprocess.run(
        [sys.executable, "-m", "attestkit", "verify-many", *arguments],
        env=environment(),
        capture_output=True,
        timeout=120,
        check=False,
    )
    return completed.returncode, completed.stdout, completed.stderr
