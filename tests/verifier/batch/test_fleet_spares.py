"""Tests of batches in which no replacement process starts: the given executor continues."""

import gc
import os
import signal
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from attestkit.errors import UsageError, VerificationError
from attestkit.verifier import AttestationResult, Item, Verifier
from attestkit.verifier.batch import scheduler
from tests.raising import raises
from tests.verifier.batch.test_scheduler import (
    POISON,
    SPAWN,
    KillableVerifier,
    ScriptedExecutor,
    close,
    lose,
    refuse,
)
from tests.verifier.parcels import NOW, PKI

VERIFIER = Verifier(PKI.root_der)
EXECUTOR_ERROR = BrokenExecutor("the same each time")


class RefusingExecutor(Executor):
    """An executor that rejects all tasks with one shared exception."""

    def submit(self, _call: Callable[..., Any], /, *_given: Any, **_more: Any) -> "Future[Any]":
        """Reject the task."""
        raise EXECUTOR_ERROR


class LosingExecutor(Executor):
    """An executor that fails all tasks with one shared exception."""

    def submit(self, _call: Callable[..., Any], /, *_given: Any, **_more: Any) -> "Future[Any]":
        """Fail the task."""
        done: Future[Any] = Future()
        done.set_exception(EXECUTOR_ERROR)
        return done


class CountedEvidence(bytes):
    """Evidence that counts its live instances."""

    alive = 0

    def __init__(self) -> None:
        CountedEvidence.alive += 1

    def __del__(self) -> None:
        """Discount the instance."""
        CountedEvidence.alive -= 1


@pytest.fixture(params=[RefusingExecutor, LosingExecutor])
def started_pools(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> list[Executor]:
    """Replace attestkit's own pools by failing ones, and return those that were started."""
    pools: list[Executor] = []

    def pool(_self: object, _workers: int) -> Executor:
        pools.append(request.param())
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
    found = VERIFIER.verify_many([Item(b"\4", None)] * 400, ScriptedExecutor(lose), now=NOW)
    assert [is_internal(each) for each in found] == [True] * 16 + [False] * 384
    assert {str(getattr(each, "__cause__", "")) for each in found[:16]} == {str(EXECUTOR_ERROR)}
    assert len(started_pools) == 2


def test_batch_retries_executor_that_recovers(started_pools: list[Executor]) -> None:
    """An executor that fails temporarily is used again for later tasks."""
    script = (lose, close, refuse, close)
    found = VERIFIER.verify_many([Item(b"\4", None)] * 100, ScriptedExecutor(*script), now=NOW)
    assert [is_internal(each) for each in found] == [True] * 64 + [False] * 36
    assert len(started_pools) == 2


@pytest.mark.parametrize("executor_type", [RefusingExecutor, LosingExecutor])
@pytest.mark.usefixtures("started_pools")
def test_stream_rejected_items_are_released(executor_type: type[Executor]) -> None:
    """Neither rejected items nor their outcomes are kept in memory."""
    outcomes = []
    gc.disable()
    try:
        most_alive = 0
        items = (Item(CountedEvidence(), None) for _ in range(600))
        for _, outcome in VERIFIER.verify_stream(items, executor_type(), window=32, now=NOW):
            assert isinstance(outcome, VerificationError)
            outcomes.append(outcome)
            most_alive = max(most_alive, CountedEvidence.alive)
        assert most_alive <= 64  # the window, and the items yielded last
    finally:
        gc.enable()
    assert len(outcomes) == 600


def hang_after_first_process(folder: Path) -> None:
    """Hang in every process but the first."""
    (folder / str(os.getpid())).touch()
    if len(list(folder.iterdir())) > 1:
        signal.pause()


def test_batch_start_timeout_ends_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that does not start in time is ended; the cause names the timeout."""
    with ProcessPoolExecutor(1, SPAWN, hang_after_first_process, (tmp_path,)) as pool:
        assert pool.submit(len, "begun").result() == 5
        monkeypatch.setattr(scheduler, "_LONGEST_BEGIN", 0.2)
        evidence = [Item(POISON, None)] * 20
        found = KillableVerifier(PKI.root_der).verify_many(evidence, pool, now=NOW)
    assert {getattr(each, "reason", "") for each in found} == {"internal"}
    assert {str(getattr(each, "__cause__", "")) for each in found} == {
        "no process began within 0.2 seconds"
    }
    assert 1 <= len(list(tmp_path.iterdir())) <= 5


def test_batch_in_importing_process_raises_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is importing the main module must not verify its parent's items."""
    monkeypatch.setattr("multiprocessing.process.current_process", ImportingProcess)
    with raises(UsageError, "wrong_process"):
        VERIFIER.verify_many([Item(b"\4", None)], ScriptedExecutor(), now=NOW)
    assert not isinstance(VERIFIER.verify_many([Item(b"\4", None)], now=NOW)[0], AttestationResult)


class ImportingProcess:
    """A process that imports the main module."""

    _inheriting = True
