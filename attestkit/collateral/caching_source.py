"""Collateral source of a verifier: a PCCS or Intel's PCS with a cache and rollback protection.

Every part has its own signature and dates, so parts of two responses can be combined. A PCCS may
be behind another one, and a network attacker may replay collateral of before the last TCB recovery
or revocation. A verified part is therefore used until a newer one is fetched.

Fetched collateral is not authenticated, so the cache may contain a response that was altered in
transit, with a next update years ahead. If a verification fails with cached collateral, it is
fetched again, unless the same collateral was verified before: then the evidence is at fault.
Invalid evidence can therefore neither evict verified collateral nor cause more than one request a
minute for a known platform.

Rollback protection: verified collateral is stored in the cache apart from fetched collateral, for
each root, even past its expiry. In collateral fetched later, by any process with the folder and
after a restart, each part is replaced by the verified one if that is newer. Unverified
collateral is never compared: a forged part with a late date must not replace a genuine part.
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
from typing import Final, NamedTuple, TypeAlias

from attestkit._crypto.hashes import sha256
from attestkit._crypto.x509.app_certificates import read_certificate
from attestkit._crypto.x509.pem_chain import split_chain
from attestkit._system.bounded_cache import BoundedCache
from attestkit._system.fork_safety import call_now_and_after_fork
from attestkit.collateral.cache import CollateralCache, Key
from attestkit.collateral.intel_collateral import Collateral, merge_newest
from attestkit.collateral.pccs_client import PckCertQuery, Platform, Service, base_url, platform_of
from attestkit.collateral.responses import Getter
from attestkit.errors import AttestKitError, CollateralError, UsageError
from attestkit.quote import TEE_SGX, Quote

_PAUSE: Final = 60.0  # seconds between two repeated fetches for one platform
_REMEMBERED: Final = 256  # entries of each cache
_STORE_SECONDS: Final = 1.0  # wait for another process that stores verified collateral
_logger = logging.getLogger("attestkit.collateral")


def root_key_id(collateral: Collateral) -> str | None:
    """Return the SHA-256 of the key of the root in the TCB info issuer chain, in hex.

    The key is not authenticated. Collateral of different roots is never compared, and verifiers
    reject a chain that its root did not sign. None if the chain is malformed.
    """
    try:
        chain = split_chain(collateral.tcb_info_issuer_chain.encode("utf-8", "replace"), 0)
        return sha256(read_certificate(chain[-1]).spki_der).hex()
    except AttestKitError:
        return None


class CollateralLookup(NamedTuple):
    """Result of a lookup: collateral for a quote, its cache key, whether it was in the cache."""

    collateral: Collateral
    key: Key  # of `shared` in the cache
    cached: bool  # whether it was in the cache
    shared: Collateral  # the same without pck_certificate_chain
    query: PckCertQuery | None  # of pck_certificate_chain


# Called before a request, with the PCK certificate chain in PEM, if the service returned one.
BeforeFetch: TypeAlias = Callable[[str | None], object]


def _allow(_: str | None) -> None:
    """Allow every fetch."""


class CollateralSource:
    """PCCS or Intel's PCS with a cache; threads may share it.

    Concurrent lookups of the same collateral wait for a single fetch, in threads and in processes
    whose caches share a folder.
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
        """Create a source without sending a request.

        Args:
            pccs_url: Base URL of the service, http or https; of Intel's,
                `https://api.trustedservices.intel.com`.
            getter: Function that gets a URL and returns a `Response`; if None, an `HttpGetter` is
                used.
            cache: Cache of responses; if None, responses are not cached.
            max_age: Maximum age of cached responses; None uses them until their next update.
            timer: Monotonic clock in seconds, for the pause between repeated fetches.

        Raises:
            UsageError: If `pccs_url` is not an http or https URL, or has a user name, query or
                fragment.
        """
        self._base = base_url(pccs_url)
        self._getter, self._cache, self._max_age = getter, cache, max_age
        self._verified = BoundedCache[Key, Collateral](_REMEMBERED)
        self._certificates = BoundedCache[PckCertQuery, tuple[Platform, str]](_REMEMBERED)
        self._refetched = BoundedCache[Key, Key](_REMEMBERED, timer=timer)  # a minute ago at most
        call_now_and_after_fork(self._forget_parent)

    def _forget_parent(self) -> None:
        """Create the locks, and drop the fetches that a parent process continues."""
        self._lock, self._storing = Lock(), Lock()
        self._running: dict[Key, Future[Collateral | None]] = {}

    def find(self, quote: Quote, before: BeforeFetch = _allow) -> CollateralLookup:
        """Return the collateral for `quote`, from the cache or the service.

        For a quote with an encrypted PPID, the platform's PCK certificate is requested first. It is
        cached only after a verification, because untrusted quotes can name any number of PPIDs.

        Args:
            quote: Quote of a TD or an SGX enclave.
            before: Function that is called before a request, or before the wait for that of
                another thread; its exception cancels the fetch. Its argument is the PCK certificate
                chain in PEM, if the service returned one, else None.

        Raises:
            AttestKitError: As for `Collateral.fetch`, or an error of `before`.
        """
        if not isinstance(quote, Quote):
            raise UsageError(
                f"quote: must be a Quote, not {type(quote).__name__}; use Quote.parse",
                reason="wrong_type",
            )
        tee = "sgx" if quote.tee_type == TEE_SGX else "tdx"
        platform, query, chain = platform_of(quote), None, None
        if isinstance(platform, PckCertQuery):
            query = platform
            known = self._certificates.find(query)
            if known is None:
                before(None)
            platform, chain = known or self._service().find(query)
        key = (self._base, tee, *platform)
        shared, cached = self._find_cached(key), True
        if shared is None:
            before(chain)
        while shared is None:  # a refetch of another thread may return None
            shared, cached = self._fetch_once(
                key, lambda: self._find_cached(key), lambda: self._fetch(key, tee, platform)
            )
        return _lookup(shared, key, query, chain, cached=cached)

    def refetch(
        self, doubted: CollateralLookup, before: BeforeFetch = _allow
    ) -> CollateralLookup | None:
        """Fetch collateral again after a verification with cached collateral has failed.

        Args:
            doubted: Result of `find` with which the verification failed.
            before: As for `find`; its exception cancels the fetch.

        Returns:
            Newer collateral. None if `doubted` was fetched just now or has been verified before, if
            the last repeated fetch was less than a minute ago, or if the service has the same or
            older collateral or cannot be reached.
        """
        key, old = doubted.key, doubted.shared
        if doubted.query is not None:
            self._certificates.discard(doubted.query)
        if not doubted.cached or self._verified.find(key) == old:
            return None
        _, tee, *names = key

        def newer() -> Collateral | None:
            held = self._find_cached(key)
            return None if held == old else held

        def fetch_newer() -> Collateral | None:
            if self._refetched.find(key):
                return None
            self._refetched.put(key, key, _PAUSE)
            return self._fetch(key, tee, Platform(*names))

        shared = newer()
        if shared is None:
            if self._refetched.find(key) and key not in self._running:
                return None
            before(doubted.collateral.pck_certificate_chain)
            try:
                shared, _ = self._fetch_once(key, newer, fetch_newer)
            except AttestKitError:  # the first verification's error is more useful
                return None
        if shared is None or shared == old:
            return None
        chain = doubted.collateral.pck_certificate_chain
        return _lookup(shared, key, doubted.query, chain, cached=False)

    def mark_verified(self, found: CollateralLookup) -> None:
        """Store the collateral of a lookup after a successful verification, against rollback."""
        if self._verified.find(found.key) is not found.shared and self._store_verified(
            found.key, found.shared
        ):
            self._verified.put(found.key, found.shared)
        chain = found.collateral.pck_certificate_chain
        if found.query is not None and chain and self._certificates.find(found.query) is None:
            self._certificates.put(found.query, (Platform(*found.key[2:]), chain))

    def _find_cached(self, key: Key) -> Collateral | None:
        if self._cache is None:
            return None
        held = self._cache.get(key, max_age=self._max_age)
        if held is None or self._verified.find(key) is held:
            return held
        newer = self._replace_older_parts(key, held, self._cache)  # cached before the verified one
        return held if newer is held else self._cache.replace(key, held, newer, self._max_age)

    def _fetch(self, key: Key, tee: str, platform: Platform) -> Collateral:
        fetched = self._service().collateral(tee, platform)
        if self._cache is None:
            return fetched
        collateral = self._replace_older_parts(key, fetched, self._cache)
        if collateral is not fetched:
            text = "%s returned older collateral for %s than verified; keeping the newer parts"
            _logger.warning(text, self._base, platform.fmspc)
        self._cache.put(key, collateral)
        return collateral

    @staticmethod
    def _replace_older_parts(key: Key, found: Collateral, cache: CollateralCache) -> Collateral:
        """Return `found`; parts older than verified ones in `cache` are replaced by the latter."""
        last = cache.get_verified(_verified_key(key, found))
        return found if last is None else merge_newest(last, found)

    def _store_verified(self, key: Key, passed: Collateral) -> bool:
        """Store collateral for rollback protection; return whether no part of it is outdated."""
        if self._cache is None:
            return True
        verified_key = _verified_key(key, passed)
        with self._storing, self._cache.fetch_lock(verified_key, _STORE_SECONDS):
            last = self._cache.get_verified(verified_key)
            merged = passed if last is None else merge_newest(last, passed)
            if merged != last:
                self._cache.put_verified(verified_key, merged)
        return merged is passed

    def _service(self) -> Service:
        getter = self._getter
        if getter is None:
            from attestkit.collateral.http_getter import HttpGetter  # lazy: loads http and ssl

            getter = HttpGetter()
        return Service(self._base, getter)

    def _fetch_once(
        self,
        key: Key,
        held: Callable[[], Collateral | None],
        fetch: Callable[[], Collateral | None],
    ) -> tuple[Collateral | None, bool]:
        """Return the cached or fetched collateral, and whether it was cached.

        Concurrent threads with the same key share one fetch: the later ones wait, and get the
        value of the first one, as not cached, or a copy of its error.

        Args:
            key: Key of the collateral.
            held: Returns the cached collateral; None if there is none to use.
            fetch: Fetches the collateral, if `held` returns None; it returns None, which is then
                returned, if no fetch is due.
        """
        mine = Future[Collateral | None]()
        with self._lock:
            running = self._running.get(key)
            if running is None:
                self._running[key] = mine
        if running is not None:
            try:
                return running.result(), False
            except AttestKitError as error:
                raise copy(error) from error  # one instance per thread
        try:
            value = held()  # another thread may have stored it
            cached = value is not None
            if value is None:
                with self._fetch_lock(key):
                    value = held()  # another process may have stored it
                    cached = value is not None
                    value = fetch() if value is None else value
            mine.set_result(value)
        except AttestKitError as error:
            mine.set_exception(error)
            raise
        except BaseException:
            message = "collateral: fetch was interrupted; try again"
            mine.set_exception(CollateralError(message, reason="fetch_failed"))
            raise
        finally:
            with self._lock:
                self._running.pop(key, None)  # missing if `fetch` forked this process
        return value, cached

    def _fetch_lock(self, key: Key) -> AbstractContextManager[object]:
        return nullcontext() if self._cache is None else self._cache.fetch_lock(key)


def _verified_key(key: Key, collateral: Collateral) -> Key:
    """Return the cache key of verified collateral: `key` and the key id of its root."""
    return (root_key_id(collateral) or "", *key)


def _lookup(
    shared: Collateral, key: Key, query: PckCertQuery | None, chain: str | None, *, cached: bool
) -> CollateralLookup:
    merged = shared if chain is None else replace(shared, pck_certificate_chain=chain)
    return CollateralLookup(merged, key, cached, shared, query)
