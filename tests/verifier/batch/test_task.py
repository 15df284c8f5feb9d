"""Many verifications: order kept, each outcome in its place, on any executor."""

import os
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from attestkit.collateral.cache import CollateralCache
from attestkit.errors import AttestKitError, PolicyError, UsageError
from attestkit.verifier import AttestationResult, Item, Verifier
from attestkit.verifier.batch import scheduler
from tests.verifier import parcels
from tests.verifier.parcels import NONCE, NOW, PKI, CountingWay, tell_now

RAW = parcels.evidence().to_bytes()


def judge() -> Verifier:
    """Return a verifier that pickles."""
    return Verifier(PKI.root_der, parcels.collateral())


@pytest.fixture(scope="module", params=["here", "threads", "processes"])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor | None]:
    """Return each kind of executor, and none."""
    if request.param == "here":
        yield None
    elif request.param == "threads":
        with ThreadPoolExecutor(3) as pool:
            yield pool
    else:
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            yield pool


def outcome(found: AttestationResult | AttestKitError) -> str:
    """Tell results from refusals."""
    return "good" if isinstance(found, AttestationResult) else type(found).__name__


def test_order_and_outcomes(executor: Executor | None) -> None:
    """A refusal is in its place, and keeps its reason and steps."""
    kinds = [
        Item(RAW, NONCE),
        Item(RAW, b"other"),
        Item(RAW[:-1], NONCE),
        Item(RAW, None),
        Item(b"", NONCE),
    ]
    items = [kinds[index * 7 % 5] for index in range(83)]
    told: list[tuple[int, int]] = []
    found = judge().verify_many(
        iter(items), executor, progress=lambda done, total: told.append((done, total)), now=NOW
    )
    expected = {
        kinds[0]: "good",
        kinds[1]: "PolicyError",
        kinds[2]: "FormatError",
        kinds[3]: "good",
        kinds[4]: "FormatError",
    }
    assert [outcome(each) for each in found] == [expected[item] for item in items]
    refused = next(each for each in found if isinstance(each, PolicyError))
    assert refused.reason == "report_data"
    assert refused.steps
    assert [total for _, total in told] == [83] * len(told)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1] == (83, 83)


def test_collateral_of_an_item(executor: Executor | None) -> None:
    """It is used for that item alone."""
    without = Verifier(PKI.root_der)
    items = [Item(RAW, NONCE), Item(RAW, NONCE, parcels.collateral())]
    assert [outcome(each) for each in without.verify_many(items, executor, now=NOW)] == [
        "CollateralError",
        "good",
    ]


@pytest.mark.parametrize("kept", ["memory", "folder"])
def test_collateral_is_fetched_once(executor: Executor | None, tmp_path: Path, kept: str) -> None:
    """Threads share the verifier, and a process keeps its own from chunk to chunk."""
    way = CountingWay(tmp_path / "asked")
    cache = CollateralCache(tmp_path / "cache", clock=tell_now) if kept == "folder" else None
    judging = Verifier(
        PKI.root_der, pccs_url="http://pccs", getter=way, cache=cache, clock=tell_now
    )
    for _ in range(2):
        found = judging.verify_many([Item(RAW, NONCE)] * 100, executor, now=NOW)
        assert {outcome(each) for each in found} == {"good"}
    processes = 2 if isinstance(executor, ProcessPoolExecutor) else 1
    assert 4 <= len(way.urls()) <= 4 * processes
    assert len(set(way.urls())) == 4


def test_none_and_nonsense() -> None:
    """No items are no outcomes; something that is no item is refused in its place."""
    assert judge().verify_many([]) == []
    nonsense: list[Any] = [5, (RAW,), Item(RAW, NONCE)]
    found = judge().verify_many(nonsense, now=NOW)
    assert [outcome(each) for each in found] == ["UsageError", "UsageError", "good"]


def test_a_process_that_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it was given is judged all the same, in another."""
    monkeypatch.setattr(scheduler, "_CHUNK", 1)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        pool.submit(os._exit, 1)
        found = judge().verify_many([Item(RAW, NONCE)] * 3, pool, now=NOW)
    assert [outcome(each) for each in found] == ["good"] * 3


def test_an_executor_that_takes_nothing() -> None:
    """It is an error of its owner's, not a verdict."""

    class Closed(Executor):
        def submit(self, *_args: object, **_options: object) -> "Future[Any]":
            raise RuntimeError("closed")

    with pytest.raises(UsageError, match="executor"):
        judge().verify_many([Item(RAW, NONCE)], Closed(), now=NOW)


def test_a_progress_callback_that_fails() -> None:
    """It ends the work, and its exception is the caller's own."""

    def failing(_done: int, _total: int) -> None:
        raise KeyError("mine")

    with ThreadPoolExecutor(1) as pool, pytest.raises(KeyError, match="mine"):
        judge().verify_many([Item(RAW, NONCE)] * 40, pool, failing, now=NOW)
