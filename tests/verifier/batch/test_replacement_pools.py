"""Tests of replacement pools: initializers, and pools whose processes do not start."""

import os
import signal
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from attestkit.errors import FormatError, UsageError, VerificationError
from attestkit.verifier import AttestationResult, VerificationItem, Verifier
from attestkit.verifier.batch import scheduler
from tests.raising import raises
from tests.verifier.batch.initializers import fail_initializer, hang_after_first_process
from tests.verifier.batch.test_scheduler import (
    POISON,
    RAW,
    SPAWN,
    KillableVerifier,
    ScriptedExecutor,
    close,
    lose,
    refuse,
)
from tests.verifier.platforms import intel
from tests.verifier.platforms.intel import NONCE, NOW, PKI

VERIFIER = Verifier(trust_anchor=PKI.root_der)
EXECUTOR_ERROR = BrokenExecutor("the same each time")


def refuse_alike(_task: "Future[Any]") -> None:
    """Reject the task with one shared exception."""
    raise EXECUTOR_ERROR


def lose_alike(task: "Future[Any]") -> None:
    """Fail the task with one shared exception."""
    task.set_exception(EXECUTOR_ERROR)


STEPS = (refuse_alike, lose_alike)


class CountedEvidence(bytes):
    """Evidence that counts its live instances."""

    alive = 0

    def __init__(self) -> None:
        CountedEvidence.alive += 1

    def __del__(self) -> None:
        """Discount the instance."""
        CountedEvidence.alive -= 1


@pytest.fixture(params=STEPS)
def started_pools(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> list[Executor]:
    """Replace attestkit's own pools by failing ones, and return those that were started."""
    pools: list[Executor] = []

    def pool(_self: object, _workers: int) -> Executor:
        pools.append(ScriptedExecutor(*[request.param] * 1000))
        return pools[-1]

    monkeypatch.setattr(scheduler._Workers, "_pool", pool)
    return pools


def is_internal(outcome: object) -> bool:
    """Return whether evidence was rejected because its verification was not completed."""
    return isinstance(outcome, VerificationError) and outcome.reason == "internal"


def test_batch_continues_with_given_executor_if_replacement_fails(
    started_pools: list[Executor],
) -> None:
    """Items of failed tasks are rejected; the given executor verifies the rest."""
    found = VERIFIER.verify_many(
        [VerificationItem(b"\4", report_data=None)] * 400, ScriptedExecutor(lose), now=NOW
    )
    assert [is_internal(each) for each in found] == [True] * 16 + [False] * 384
    assert {str(getattr(each, "__cause__", "")) for each in found[:16]} == {str(EXECUTOR_ERROR)}
    assert len(started_pools) == 2


def test_batch_retries_executor_that_recovers(started_pools: list[Executor]) -> None:
    """An executor that fails temporarily is used again for later tasks."""
    script = (lose, close, refuse, close)
    found = VERIFIER.verify_many(
        [VerificationItem(b"\4", report_data=None)] * 100, ScriptedExecutor(*script), now=NOW
    )
    assert [is_internal(each) for each in found] == [True] * 64 + [False] * 36
    assert len(started_pools) == 2


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.usefixtures("started_pools", "no_collector")
def test_stream_rejected_items_are_released(step: Callable[["Future[Any]"], object]) -> None:
    """Neither rejected items nor their outcomes are kept in memory."""
    outcomes = []
    most_alive = 0
    items = (VerificationItem(CountedEvidence(), report_data=None) for _ in range(600))
    executor = ScriptedExecutor(*[step] * 1000)
    for _, outcome in VERIFIER.verify_stream(items, executor, window=32, now=NOW):
        assert isinstance(outcome, VerificationError)
        outcomes.append(outcome)
        most_alive = max(most_alive, CountedEvidence.alive)
    assert most_alive <= 64  # the window, and the items yielded last
    assert len(outcomes) == 600


@pytest.mark.slow
def test_batch_start_timeout_ends_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that does not start in time is ended; the cause names the timeout."""
    with ProcessPoolExecutor(1, SPAWN, hang_after_first_process, (tmp_path,)) as pool:
        assert pool.submit(len, "begun").result() == 5
        monkeypatch.setattr(scheduler, "_LONGEST_BEGIN", 0.2)
        evidence = [VerificationItem(POISON, report_data=None)] * 20
        found = KillableVerifier(trust_anchor=PKI.root_der).verify_many(evidence, pool, now=NOW)
    assert {getattr(each, "reason", "") for each in found} == {"internal"}
    assert {str(getattr(each, "__cause__", "")) for each in found} == {
        "no process began within 0.2 seconds"
    }
    assert 1 <= len(list(tmp_path.iterdir())) <= 5


def test_batch_in_importing_process_raises_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is importing the main module must not verify its parent's items."""
    importing = SimpleNamespace(_inheriting=True)
    monkeypatch.setattr("multiprocessing.process.current_process", lambda: importing)
    with raises(UsageError, "wrong_process"):
        VERIFIER.verify_many(
            [VerificationItem(b"\4", report_data=None)], ScriptedExecutor(), now=NOW
        )
    assert not isinstance(
        VERIFIER.verify_many([VerificationItem(b"\4", report_data=None)], now=NOW)[0],
        AttestationResult,
    )


# -- initializers ----------------------------------------------------------------------------------

FATAL_EVIDENCE = b"\4\0 ends the process that verifies it first"
INITIALIZED: list[str] = []  # in this process


def initialize(folder: Path, state: str) -> None:
    """Initialize the process, and create a file named by its PID."""
    INITIALIZED.extend([state, str(folder)])
    (folder / str(os.getpid())).touch()


class InitializedVerifier(Verifier):
    """A verifier that requires an initialized process."""

    def verify(self, evidence: Any, **options: Any) -> AttestationResult:
        """Verify; kill the first process on FATAL_EVIDENCE."""
        state, folder = INITIALIZED
        assert state == "ready"
        if evidence == FATAL_EVIDENCE and len(list(Path(folder).iterdir())) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().verify(evidence, **options)


@pytest.mark.slow
def test_replacement_processes_run_initializer(tmp_path: Path) -> None:
    """Processes that retry a task, and those that continue, run the pool's initializer."""
    evidence = [VerificationItem(RAW, report_data=NONCE)] * 20
    evidence[3] = VerificationItem(FATAL_EVIDENCE, report_data=None)
    verifier = InitializedVerifier(trust_anchor=PKI.root_der, collateral=intel.collateral())
    with ProcessPoolExecutor(1, SPAWN, initialize, (tmp_path, "ready")) as pool:
        found = verifier.verify_many(evidence, pool, now=NOW)
    assert isinstance(found.pop(3), FormatError)
    assert all(isinstance(each, AttestationResult) for each in found)
    assert 2 <= len(list(tmp_path.iterdir())) <= 4


@pytest.mark.parametrize("stream", [pytest.param(False, marks=pytest.mark.slow), True])
def test_initializer_that_exits_is_retried_bounded_times(tmp_path: Path, *, stream: bool) -> None:
    """All items are rejected, and the number of started processes is bounded."""
    evidence = [VerificationItem(RAW, report_data=NONCE)] * 800
    verifier = Verifier(trust_anchor=PKI.root_der, collateral=intel.collateral())
    with ProcessPoolExecutor(1, SPAWN, fail_initializer, (tmp_path,)) as pool:
        if stream:
            found = [each for _, each in verifier.verify_stream(iter(evidence), pool, now=NOW)]
        else:
            found = verifier.verify_many(evidence, pool, now=NOW)
    assert len(found) == 800
    assert {getattr(each, "reason", "") for each in found} == {"internal"}
    assert len(list(tmp_path.iterdir())) <= 8
