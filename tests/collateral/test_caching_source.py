"""A source asks once for all who want the same, and again where what it had is doubtful."""

import threading
from dataclasses import replace

import pytest

from attestkit.collateral import Collateral
from attestkit.collateral.cache import CollateralCache
from attestkit.collateral.caching_source import CollateralSource, Found
from attestkit.collateral.pccs_client import Response
from attestkit.errors import CollateralError
from tests.collateral.services import BASE, COLLATERAL, PLATFORM, QUOTE, TCB, Service
from tests.collateral.test_pccs_client import hidden


class Timer:
    """Seconds that stand until they are moved."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        """Return the seconds."""
        return self.seconds


def source(service: Service, timer: Timer | None = None) -> CollateralSource:
    """Return a source with a cache in memory."""
    cache = CollateralCache(None, clock=lambda: COLLATERAL.valid_from)
    return CollateralSource(BASE, getter=service, cache=cache, timer=timer or Timer())


def forge(response: Response) -> Response:
    """Alter TCB info."""
    return response._replace(body=response.body.replace(b'"UpToDate"', b'"Revoked"'))


def test_a_second_try_brings_what_is_other() -> None:
    """What was in the cache is fetched again, and what comes is kept."""
    service = Service({TCB: forge})
    asked = source(service)
    assert not asked.find(QUOTE).cached
    doubted = asked.find(QUOTE)
    assert doubted.cached
    service.changes.clear()
    again = asked.find_again(doubted)
    assert again is not None
    assert again.collateral == COLLATERAL
    assert asked.find(QUOTE).collateral == COLLATERAL
    assert len(service.urls) == 8
    other = asked.find_again(doubted)  # of a thread that had the old one too
    assert other is not None
    assert other.collateral == COLLATERAL
    assert len(service.urls) == 8


def test_no_second_try() -> None:
    """Not for what has just been fetched, has passed, or is what the service says."""
    service = Service()
    asked = source(service)
    assert asked.find_again(asked.find(QUOTE)) is None
    assert len(service.urls) == 4
    assert asked.find_again(asked.find(QUOTE)) is None  # the same again
    assert len(service.urls) == 8
    asked = source(service)
    asked.passed(asked.find(QUOTE))
    assert asked.find_again(asked.find(QUOTE)) is None
    assert len(service.urls) == 12


def test_second_tries_have_a_pause() -> None:
    """One a minute for one platform, also where it fails."""
    service, timer = Service({TCB: forge}), Timer()
    asked = source(service, timer)
    asked.find(QUOTE)
    service.changes[TCB] = lambda response: response._replace(status=503)
    for seconds, requests in ((0.0, 5), (59.0, 5), (60.0, 6), (119.0, 6), (120.0, 7)):
        timer.seconds = seconds
        assert asked.find_again(asked.find(QUOTE)) is None
        assert len(service.urls) == requests


def test_threads_wait_for_one_second_try() -> None:
    """Who doubts the same while the service is asked has its answer, too."""
    started, proceed = threading.Event(), threading.Event()
    service = Service({TCB: forge})
    asked = source(service)
    asked.find(QUOTE)
    doubted = asked.find(QUOTE)

    def slow(response: Response) -> Response:
        started.set()
        assert proceed.wait(30)
        return response

    service.changes[TCB] = slow
    found: list[object] = []
    first = threading.Thread(target=lambda: found.append(asked.find_again(doubted)))
    first.start()
    assert started.wait(30)
    second = threading.Thread(
        target=lambda: found.append(asked.find_again(doubted, lambda _: proceed.set()))
    )
    second.start()
    for thread in (first, second):
        thread.join()
    assert [one.collateral for one in found if isinstance(one, Found)] == [COLLATERAL] * 2
    assert len(service.urls) == 8


def test_a_certificate_is_kept_once_it_has_passed() -> None:
    """Names that are invented are forgotten; a second try forgets one that was known."""
    service = Service()
    asked = source(service)
    for _ in range(2):
        found = asked.find(hidden(3, 384))
    assert len(service.urls) == 4 + 2
    asked.passed(found)
    again = asked.find(hidden(3, 384))
    assert again.collateral == replace(COLLATERAL, pck_certificate_chain=PLATFORM.pck_chain)
    assert len(service.urls) == 4 + 2
    assert asked.find_again(again) is None
    asked.find(hidden(3, 384))
    assert len(service.urls) == 4 + 3


def test_encrypted_ppids_take_no_room_in_the_cache() -> None:
    """They can be invented without end; what is kept is by FMSPC and CA, as for other quotes."""
    service, cache = Service(), CollateralCache(None, clock=lambda: COLLATERAL.valid_from)
    found = [
        Collateral.fetch(quote, BASE, getter=service, cache=cache)
        for quote in (hidden(3, 384), hidden(3, 384), hidden(2, 256), QUOTE, QUOTE)
    ]
    chains = [each.pck_certificate_chain for each in found]
    assert chains == [PLATFORM.pck_chain] * 3 + [None] * 2
    assert len(cache._entries) == 1
    assert len(service.urls) == 4 + 3


@pytest.mark.parametrize("fails", [False, True])
def test_threads_wait_for_one_fetch(*, fails: bool) -> None:
    """All have its outcome, which is an exception of each one's own where it failed."""
    started, proceed = threading.Event(), threading.Event()

    def slow(response: Response) -> Response:
        started.set()
        assert proceed.wait(30)
        return response._replace(status=503) if fails else response

    service = Service({TCB: slow})
    asked = source(service)
    outcomes: list[object] = []

    def work() -> None:
        try:
            outcomes.append(asked.find(QUOTE).collateral)
        except CollateralError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    threads[0].start()
    assert started.wait(30)
    for thread in threads[1:]:
        thread.start()
    proceed.set()
    for thread in threads:
        thread.join()
    if not fails:
        assert outcomes == [COLLATERAL] * 4
        assert len(service.urls) == 4
        return
    assert len({id(outcome) for outcome in outcomes}) == 4
    assert {type(outcome) for outcome in outcomes} == {CollateralError}
    assert {str(outcome) for outcome in outcomes} == {str(outcomes[0])}


def test_an_interrupted_fetch_leaves_nobody_waiting() -> None:
    """The next one asks again."""

    def interrupt(_: Response) -> Response:
        raise KeyboardInterrupt

    service = Service({TCB: interrupt})
    asked = source(service)
    with pytest.raises(KeyboardInterrupt):
        asked.find(QUOTE)
    service.changes.clear()
    assert asked.find(QUOTE).collateral == COLLATERAL
