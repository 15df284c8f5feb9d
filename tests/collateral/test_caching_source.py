"""Tests of CollateralSource: shared fetches, and refetching of doubtful collateral."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from unittest.mock import Mock

import pytest

from attestkit.collateral import Collateral
from attestkit.collateral.cache import CollateralCache
from attestkit.collateral.caching_source import CollateralSource
from attestkit.collateral.responses import Response
from attestkit.errors import CollateralError
from tests.collateral.services import (
    BASE,
    COLLATERAL,
    PLATFORM,
    QUOTE,
    TCB,
    Service,
    create_quote_with_ppid,
)
from tests.processes import in_child


def create_source(service: Service, timer: Callable[[], float] = float) -> CollateralSource:
    """Return a source with a cache in memory."""
    cache = CollateralCache(None, clock=lambda: COLLATERAL.valid_from)
    return CollateralSource(BASE, getter=service, cache=cache, timer=timer)


def forge_tcb_info(response: Response) -> Response:
    """Alter the TCB info."""
    return response._replace(body=response.body.replace(b'"UpToDate"', b'"Revoked"'))


def test_refetch_replaces_cached_collateral() -> None:
    """Cached collateral is fetched again, and the new collateral is cached."""
    service = Service({TCB: forge_tcb_info})
    source = create_source(service)
    assert not source.find(QUOTE).cached
    cached = source.find(QUOTE)
    assert cached.cached
    service.changes.clear()
    refetched = source.refetch(cached)
    assert refetched is not None
    assert refetched.collateral == COLLATERAL
    assert source.find(QUOTE).collateral == COLLATERAL
    assert len(service.urls) == 8
    second = source.refetch(cached)  # of a thread that had the old one too
    assert second is not None
    assert second.collateral == COLLATERAL
    assert len(service.urls) == 8


def test_refetch_fresh_verified_or_unchanged_returns_none() -> None:
    """Collateral that is fresh, verified or unchanged is not replaced."""
    service = Service()
    source = create_source(service)
    assert source.refetch(source.find(QUOTE)) is None
    assert len(service.urls) == 4
    assert source.refetch(source.find(QUOTE)) is None  # unchanged
    assert len(service.urls) == 8
    source = create_source(service)
    source.mark_verified(source.find(QUOTE))
    assert source.refetch(source.find(QUOTE)) is None
    assert len(service.urls) == 12


def test_refetch_is_limited_to_one_per_minute() -> None:
    """One platform is refetched at most once a minute, also after a failure."""
    service, timer = Service({TCB: forge_tcb_info}), Mock(return_value=0.0)
    source = create_source(service, timer)
    source.find(QUOTE)
    service.changes[TCB] = lambda response: response._replace(status=503)
    for seconds, requests in ((0.0, 5), (59.0, 5), (60.0, 6), (119.0, 6), (120.0, 7)):
        timer.return_value = seconds
        assert source.refetch(source.find(QUOTE)) is None
        assert len(service.urls) == requests


def test_refetch_is_shared_by_threads() -> None:
    """Threads that refetch the same collateral share one request."""
    started, proceed = threading.Event(), threading.Event()
    service = Service({TCB: forge_tcb_info})
    source = create_source(service)
    source.find(QUOTE)
    cached = source.find(QUOTE)

    def slow(response: Response) -> Response:
        started.set()
        assert proceed.wait(30)
        return response

    service.changes[TCB] = slow
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(source.refetch, cached)
        assert started.wait(30)
        second = pool.submit(source.refetch, cached, lambda _: proceed.set())
        found = [first.result(30), second.result(30)]
    assert [each and each.collateral for each in found] == [COLLATERAL] * 2
    assert len(service.urls) == 8


def test_pck_chain_is_cached_after_verification() -> None:
    """A PCK chain is cached only after a verification, and dropped by a refetch."""
    service = Service()
    source = create_source(service)
    for _ in range(2):
        found = source.find(create_quote_with_ppid(3, 384))
    assert len(service.urls) == 4 + 2
    source.mark_verified(found)
    refetched = source.find(create_quote_with_ppid(3, 384))
    assert refetched.collateral == replace(COLLATERAL, pck_certificate_chain=PLATFORM.pck_chain)
    assert len(service.urls) == 4 + 2
    assert source.refetch(refetched) is None
    source.find(create_quote_with_ppid(3, 384))
    assert len(service.urls) == 4 + 3


def test_cache_key_excludes_encrypted_ppid() -> None:
    """Untrusted encrypted PPIDs must not fill the cache: the key is FMSPC and CA."""
    service, cache = Service(), CollateralCache(None, clock=lambda: COLLATERAL.valid_from)
    found = [
        Collateral.fetch(quote, BASE, getter=service, cache=cache)
        for quote in (
            create_quote_with_ppid(3, 384),
            create_quote_with_ppid(3, 384),
            create_quote_with_ppid(2, 256),
            QUOTE,
            QUOTE,
        )
    ]
    chains = [each.pck_certificate_chain for each in found]
    assert chains == [PLATFORM.pck_chain] * 3 + [None] * 2
    assert len(cache._entries) == 1
    assert len(service.urls) == 4 + 3


def test_find_failure_is_shared_by_threads() -> None:
    """Threads share one failed fetch, and each gets an exception of its own."""
    started, proceed = threading.Event(), threading.Event()

    def fail_slowly(response: Response) -> Response:
        started.set()
        assert proceed.wait(30)
        return response._replace(status=503)

    service = Service({TCB: fail_slowly})
    source = create_source(service)

    def find() -> str:
        with pytest.raises(CollateralError) as caught:
            source.find(QUOTE)
        errors.append(caught.value)
        return str(caught.value)

    errors: list[CollateralError] = []
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(find)
        assert started.wait(30)
        others = [pool.submit(find) for _ in range(3)]
        proceed.set()
        assert {other.result(30) for other in others} == {first.result(30)}
    assert len({id(error) for error in errors}) == 4


def test_child_that_is_forked_during_a_fetch_makes_its_own() -> None:
    """It waits neither for the parent's thread nor for a lock that another thread held."""
    started, proceed = threading.Event(), threading.Event()
    parent = os.getpid()

    def wait_in_parent(response: Response) -> Response:
        if os.getpid() == parent:
            started.set()
            assert proceed.wait(60)
        return response

    source = create_source(Service({TCB: wait_in_parent}))
    assert source._cache is not None

    def child() -> None:
        found = source.find(QUOTE)
        assert (found.collateral, found.cached) == (COLLATERAL, False)
        source.mark_verified(found)
        assert source.find(QUOTE).cached

    with ThreadPoolExecutor(1) as pool:
        fetch = pool.submit(source.find, QUOTE)
        assert started.wait(60)
        with source._lock, source._storing, source._cache._lock:
            is_done = in_child(child)
        proceed.set()
        assert fetch.result(60).collateral == COLLATERAL
    assert is_done


def test_getter_may_fork() -> None:
    """Both processes return from the fetch."""
    forked: list[int] = []

    def fork(response: Response) -> Response:
        forked.append(os.fork())
        return response

    source = create_source(Service({TCB: fork}))

    def both() -> None:
        assert source.find(QUOTE).collateral == COLLATERAL
        if forked[0]:
            assert os.waitpid(forked[0], 0)[1] == 0

    assert in_child(both)


def test_find_after_interrupted_fetch_fetches_again() -> None:
    """After an interrupted fetch the next lookup fetches again."""

    def interrupt(_: Response) -> Response:
        raise KeyboardInterrupt

    service = Service({TCB: interrupt})
    source = create_source(service)
    with pytest.raises(KeyboardInterrupt):
        source.find(QUOTE)
    service.changes.clear()
    assert source.find(QUOTE).collateral == COLLATERAL
