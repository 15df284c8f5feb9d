"""Where no process of attestkit's own begins: the given executor goes on, and nothing piles up."""

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
from tests.verifier.batch.test_scheduler import POISON, SPAWN, Mortal, Scripted, close, lose, refuse
from tests.verifier.parcels import NOW, PKI

JUDGE = Verifier(PKI.root_der)
WRONG = BrokenExecutor("the same each time")


class Refusing(Executor):
    """Takes no work, with one exception for all."""

    def submit(self, _call: Callable[..., Any], /, *_given: Any, **_more: Any) -> "Future[Any]":
        """Refuse it."""
        raise WRONG


class Losing(Executor):
    """Loses each task, with one exception for all."""

    def submit(self, _call: Callable[..., Any], /, *_given: Any, **_more: Any) -> "Future[Any]":
        """Lose it."""
        done: Future[Any] = Future()
        done.set_exception(WRONG)
        return done


class Seen(bytes):
    """Evidence of which one can tell how much is still there."""

    alive = 0

    def __init__(self) -> None:
        """Count it."""
        Seen.alive += 1

    def __del__(self) -> None:
        """Count it no more."""
        Seen.alive -= 1


@pytest.fixture(params=[Refusing, Losing])
def begun(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[Executor]:
    """Have no pool of attestkit's own work; return those that were tried."""
    tried: list[Executor] = []

    def pool(_self: object, _workers: int) -> Executor:
        tried.append(request.param())
        return tried[-1]

    monkeypatch.setattr(scheduler._Workers, "_pool", pool)
    return tried


def test_an_executor_that_is_well_goes_on(begun: list[Executor]) -> None:
    """What it lost is refused, with the cause; all else it judges, as if nothing had been."""
    found = JUDGE.verify_many([Item(b"\4", None)] * 400, Scripted(lose), now=NOW)
    assert [getattr(each, "reason", "") for each in found] == ["internal"] * 16 + [""] * 384
    assert {str(getattr(each, "__cause__", "")) for each in found[:16]} == {str(WRONG)}
    assert len(begun) == 2


def test_an_executor_that_comes_back_is_asked(begun: list[Executor]) -> None:
    """A scheduler may be gone for some tasks: they are refused, and the next ones judged."""
    script = (lose, close, refuse, close)
    found = JUDGE.verify_many([Item(b"\4", None)] * 100, Scripted(*script), now=NOW)
    assert [getattr(each, "reason", "") for each in found] == ["internal"] * 64 + [""] * 36
    assert len(begun) == 2


@pytest.mark.parametrize("given", [Refusing, Losing])
@pytest.mark.usefixtures("begun")
def test_what_is_refused_is_let_go(given: type[Executor]) -> None:
    """However many tasks fail for one reason: neither evidence nor outcomes hold what was taken."""
    kept = []
    gc.disable()
    try:
        most = 0
        items = (Item(Seen(), None) for _ in range(600))
        for _, outcome in JUDGE.verify_stream(items, given(), window=32, now=NOW):
            assert isinstance(outcome, VerificationError)
            kept.append(outcome)
            most = max(most, Seen.alive)
        assert most <= 64  # the window, and what was yielded last
    finally:
        gc.enable()
    assert len(kept) == 600


def hang(folder: Path) -> None:
    """Begin the first process, and no other."""
    (folder / str(os.getpid())).touch()
    if len(list(folder.iterdir())) > 1:
        signal.pause()


def test_a_process_that_does_not_begin_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for ever: it is ended, what is left is refused, and the cause says how long that was."""
    with ProcessPoolExecutor(1, SPAWN, hang, (tmp_path,)) as pool:
        assert pool.submit(len, "begun").result() == 5
        monkeypatch.setattr(scheduler, "_LONGEST_BEGIN", 0.2)
        evidence = [Item(POISON, None)] * 20
        found = Mortal(PKI.root_der).verify_many(evidence, pool, now=NOW)
    assert {getattr(each, "reason", "") for each in found} == {"internal"}
    assert {str(getattr(each, "__cause__", "")) for each in found} == {
        "no process began within 0.2 seconds"
    }
    assert 1 <= len(list(tmp_path.iterdir())) <= 5


def test_a_program_without_a_guard_begins_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that imports it to begin judges nothing: it would take the items of its parent."""
    monkeypatch.setattr("multiprocessing.process.current_process", Beginning)
    with pytest.raises(UsageError, match="__main__"):
        JUDGE.verify_many([Item(b"\4", None)], Scripted(), now=NOW)
    assert not isinstance(JUDGE.verify_many([Item(b"\4", None)], now=NOW)[0], AttestationResult)


class Beginning:
    """A process that imports the main module."""

    _inheriting = True
