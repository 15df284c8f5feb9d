"""Collateral for a verifier: a service, a cache before it, and a second try where that is doubtful.

Nothing fetched is believed, so a cache may hold an answer that somebody altered on its way, with
a next update that is years off. It stays until a verification has refused evidence over it: then
the service is asked once more, unless the same collateral has passed before, for then the evidence
is to blame. Who sends bad evidence can so neither displace what has passed, nor have a service
asked more than once a minute for a platform that it knows.

Nor does an answer that is older, though Intel's and in date. What has passed is kept in the cache
apart from what was fetched, for each root, also where it has ended; of whatever is fetched later,
by any process on the folder and after a restart, each part gives way to a newer one there
(`merge`). What has not passed is compared with nothing: a forged part, however new it says it is,
must not lock out the true one.
"""

import logging
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import replace
from datetime import timedelta
from threading import Lock
from time import monotonic
from typing import Final, NamedTuple, TypeAlias, TypeVar

from attestkit.collateral.cache import CollateralCache, Key
from attestkit.collateral.intel_collateral import Collateral
from attestkit.collateral.merge import newest, root_of
from attestkit.collateral.pccs_client import (
    Getter,
    HiddenPlatform,
    Platform,
    Service,
    base_url,
    platform_of,
)
from attestkit.errors import AttestKitError, CollateralError, UsageError
from attestkit.quote import TEE_SGX, Quote

__all__ = ["CollateralSource", "Found"]

_PAUSE: Final = 60.0  # seconds between two second tries for one platform
_REMEMBERED: Final = 256  # platforms, of each kind of memory
_KEEP_SECONDS: Final = 1.0  # to wait for another process that keeps what has passed
_Name = TypeVar("_Name")
_Value = TypeVar("_Value")
_logger = logging.getLogger("attestkit.collateral")


class Found(NamedTuple):
    """Collateral for a quote, and where it was."""

    collateral: Collateral
    key: Key  # of `shared` in the cache
    cached: bool  # whether it was in the cache, perhaps for long
    shared: Collateral  # the same without the certificate of one platform
    hidden: HiddenPlatform | None  # whose certificate that is


Before: TypeAlias = Callable[[str | None], object]


def _nothing(_: str | None) -> None:
    """Have nothing against asking a service."""


class CollateralSource:
    """A PCCS or Intel's service with a cache before it; any number of threads may share it.

    Threads that want the same at once wait for one fetch, and so do processes whose caches are in
    one folder.
    """

    def __init__(
        self,
        pccs_url: str,
        *,
        getter: Getter | None = None,
        cache: CollateralCache | None = None,
        max_age: timedelta | None = None,
        timer: Callable[[], float] = monotonic,
    ) -> None:
        """Set up for a service; nothing is asked yet.

        Args:
            pccs_url: The service, as for `Collateral.fetch`; also the next three.
            getter: What gets a URL; None is HTTP.
            cache: Where answers are kept; None keeps none.
            max_age: How old an answer from the cache may be.
            timer: Seconds that pass, for the pause between second tries.

        Raises:
            UsageError: `pccs_url` is no http or https URL, or holds a password.
        """
        self._base = base_url(pccs_url)
        self._getter, self._cache, self._max_age = getter, cache, max_age
        self._timer = timer
        self._lock, self._keeping = Lock(), Lock()
        self._running: dict[Key, Future[Collateral | None]] = {}
        # What has passed a verification, by platform; the oldest first, as in all of these.
        self._passed: dict[Key, Collateral] = {}
        self._certificates: dict[HiddenPlatform, tuple[Platform, str]] = {}
        self._tried_again: dict[Key, float] = {}

    def find(self, quote: Quote, before: Before = _nothing) -> Found:
        """Return the collateral for `quote`, from the cache if it is there; see `fetch` for errors.

        A quote with an encrypted PPID has one request more, for the platform's certificate, until
        that has passed a verification: strangers can invent such names without end.

        Args:
            quote: Of a TD or an SGX enclave.
            before: Called before the service is asked, or another's request is waited for. It is
                handed the chain of the PCK certificate if the service has told it, and what it
                raises comes out.
        """
        if not isinstance(quote, Quote):
            raise UsageError(f"quote is a Quote, not {type(quote).__name__}: see Quote.parse")
        tee = "sgx" if quote.tee_type == TEE_SGX else "tdx"
        platform, hidden, chain = platform_of(quote), None, None
        if isinstance(platform, HiddenPlatform):
            hidden = platform
            known = self._certificates.get(hidden)
            if known is None:
                before(None)
            platform, chain = known or self._service().find(hidden)
        key = (self._base, tee, *platform)
        shared, cached = self._held(key), True
        if shared is None:
            before(chain)
        while shared is None:  # a second try of another thread may end without
            shared, cached = self._once(
                key, lambda: self._held(key), lambda: self._ask(key, tee, platform)
            )
        return _found(shared, key, hidden, chain, cached=cached)

    def find_again(self, doubted: Found, before: Before = _nothing) -> Found | None:
        """Return other collateral in place of some over which evidence was refused.

        None if there is none: it was fetched just now, or has passed a verification before, or the
        service has been asked lately, has the same or what is older, or cannot be reached. `before`
        is as for `find`.
        """
        key, old = doubted.key, doubted.shared
        if doubted.hidden is not None:
            with self._lock:  # another thread may be about to let go of the oldest
                self._certificates.pop(doubted.hidden, None)
        if not doubted.cached or self._passed.get(key) == old:
            return None
        _, tee, *names = key

        def newer() -> Collateral | None:
            held = self._held(key)
            return None if held == old else held

        def ask() -> Collateral | None:
            if self._asked_lately(key):
                return None
            self._remember(self._tried_again, key, self._timer())
            return self._ask(key, tee, Platform(*names))

        shared = newer()
        if shared is None:
            if self._asked_lately(key) and key not in self._running:
                return None
            before(doubted.collateral.pck_certificate_chain)
            try:
                shared, _ = self._once(key, newer, ask)
            except AttestKitError:  # that the evidence was refused says more
                return None
        if shared is None or shared == old:
            return None
        chain = doubted.collateral.pck_certificate_chain
        return _found(shared, key, doubted.hidden, chain, cached=False)

    def passed(self, found: Found) -> None:
        """Remember collateral with which a verification has passed."""
        if self._passed.get(found.key) is not found.shared and self._keep(found.key, found.shared):
            self._remember(self._passed, found.key, found.shared)
        chain = found.collateral.pck_certificate_chain
        if found.hidden is not None and found.hidden not in self._certificates and chain:
            self._remember(self._certificates, found.hidden, (Platform(*found.key[2:]), chain))

    def _held(self, key: Key) -> Collateral | None:
        if self._cache is None:
            return None
        held = self._cache.get(key, max_age=self._max_age)
        if held is None or self._passed.get(key) is held:
            return held
        newer = self._not_older(key, held, self._cache)  # it may be from before that has passed
        return held if newer is held else self._cache.amend(key, held, newer, self._max_age)

    def _asked_lately(self, key: Key) -> bool:
        last = self._tried_again.get(key)
        return last is not None and self._timer() - last < _PAUSE

    def _ask(self, key: Key, tee: str, platform: Platform) -> Collateral:
        fetched = self._service().collateral(tee, platform)
        if self._cache is None:
            return fetched
        collateral = self._not_older(key, fetched, self._cache)
        if collateral is not fetched:
            text = "%s has older collateral for %s than has passed before: what is newer stays"
            _logger.warning(text, self._base, platform.fmspc)
        self._cache.put(key, collateral)
        return collateral

    @staticmethod
    def _not_older(key: Key, found: Collateral, cache: CollateralCache) -> Collateral:
        """Return what was found, but for those parts of which newer ones have passed anywhere."""
        last = cache.kept(_kept(key, found))
        return found if last is None else newest(last, found)

    def _keep(self, key: Key, passed: Collateral) -> bool:
        """Keep what has passed for other processes, and for after this one, unless it is older.

        Tell whether it is not.
        """
        if self._cache is None:
            return True
        kept = _kept(key, passed)
        with self._keeping, self._cache.turn(kept, _KEEP_SECONDS):
            last = self._cache.kept(kept)
            whole = passed if last is None else newest(last, passed)
            if whole != last:
                self._cache.keep(kept, whole)
        return whole is passed

    def _service(self) -> Service:
        getter = self._getter
        if getter is None:
            from attestkit.collateral.http_getter import HttpGetter  # late: loads http and ssl

            getter = HttpGetter()
        return Service(self._base, getter)

    def _once(
        self,
        key: Key,
        held: Callable[[], Collateral | None],
        ask: Callable[[], Collateral | None],
    ) -> tuple[Collateral | None, bool]:
        """Return what is held, or asked for by one thread for all that want it; and which."""
        mine = Future[Collateral | None]()
        with self._lock:
            running = self._running.get(key)
            if running is None:
                self._running[key] = mine
        if running is not None:
            try:
                return running.result(), False
            except AttestKitError as error:
                raise copy(error) from error  # each thread's own
        try:
            value = held()  # another thread may have been quicker
            cached = value is not None
            if value is None:
                with self._turn(key):
                    value = held()  # or another process
                    cached = value is not None
                    value = ask() if value is None else value
            mine.set_result(value)
        except AttestKitError as error:
            mine.set_exception(error)
            raise
        except BaseException:
            mine.set_exception(CollateralError("the fetch of the collateral was broken off"))
            raise
        finally:
            with self._lock:
                del self._running[key]
        return value, cached

    def _turn(self, key: Key) -> AbstractContextManager[object]:
        return nullcontext() if self._cache is None else self._cache.turn(key)

    def _remember(self, memory: dict[_Name, _Value], name: _Name, value: _Value) -> None:
        with self._lock:
            memory.pop(name, None)  # so that it goes to the end
            memory[name] = value
            while len(memory) > _REMEMBERED:
                del memory[next(iter(memory))]


def _kept(key: Key, collateral: Collateral) -> Key:
    """Return under what the cache keeps that which has passed for `key` and the root of this."""
    return (root_of(collateral) or "", *key)


def _found(
    shared: Collateral, key: Key, hidden: HiddenPlatform | None, chain: str | None, *, cached: bool
) -> Found:
    whole = shared if chain is None else replace(shared, pck_certificate_chain=chain)
    return Found(whole, key, cached, shared, hidden)
